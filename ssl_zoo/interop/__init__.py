"""Exchange of weights with other implementations."""
