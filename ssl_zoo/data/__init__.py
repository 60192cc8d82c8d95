"""Data: sources, decoding, augmentations, the order of samples and the loader."""
