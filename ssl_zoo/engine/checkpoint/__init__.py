"""Checkpoints: what a folder holds and how it is verified, when it is written, and the files of its tensors."""
