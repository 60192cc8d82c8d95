"""Counter-based randomness: every draw comes from a generator that its purpose and counters seed."""

import hashlib

import torch


def seed_for(*key: int | str) -> int:
    """A 63-bit seed from a hash of ``key``, e.g. ``(seed, "masks", step)``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by ``seed_for(*key)``; equal keys give equal draws in every process."""
    return torch.Generator().manual_seed(seed_for(*key))
