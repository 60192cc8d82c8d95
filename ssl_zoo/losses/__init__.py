"""Loss functions that methods share; each is a plain function of tensors."""
