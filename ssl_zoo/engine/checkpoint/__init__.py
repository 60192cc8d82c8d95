"""Checkpoints: content and verification (``state``), saving (``saver``), and the files of tensors (``storage``)."""
