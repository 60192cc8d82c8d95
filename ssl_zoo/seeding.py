"""Counter-based randomness: the seed of every generator is a hash of its purpose and counters."""

import hashlib

import torch


def seed_for(*key: int | str) -> int:
    """Hash ``key``, e.g. ``(seed, "masks", step)``, to a 63-bit seed."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def generator_for(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by ``seed_for(*key)``; equal keys give equal samples in every process."""
    return torch.Generator().manual_seed(seed_for(*key))
