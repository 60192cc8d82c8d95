"""Counter-based randomness: the seed of every generator is a hash of its purpose and counters."""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor


def seed_for(*key: int | str) -> int:
    """Hash ``key``, e.g. ``(seed, "masks", step)``, to a 63-bit seed."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def generator_for(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by ``seed_for(*key)``; equal keys give equal samples in every process."""
    return torch.Generator().manual_seed(seed_for(*key))


def normal_numbers(*counters: Int[Tensor, "*_"]) -> Float[Tensor, "*_"]:
    """Return a standard normal number for each tuple of counters, which are tensors that broadcast.

    The numbers are a hash of the counters alone: equal on all ranks and in every micro-batch that has the counters, and
    right in a replayed CUDA graph, where the seed of a generator would stay what it was at the capture. They are
    computed on the device of the counters; devices differ by rounding.
    """
    state = _mixed(counters[0].long())
    for counter in counters[1:]:
        state = _mixed(state + counter.long())
    # In (-1, 1), from 23 bits and a half: exact in float32, and never -1 or 1, where the inverse is infinite.
    uniform = (_shifted(state, 41).float() + 0.5) * 2.0**-22 - 1
    return 2**0.5 * torch.erfinv(uniform)


def _mixed(state: Int[Tensor, "*_"]) -> Int[Tensor, "*_"]:
    """One step of SplitMix64 (Steele et al., OOPSLA 2014), in wrapping arithmetic of signed integers."""
    state = state - 0x61C8864680B583EB
    state = (state ^ _shifted(state, 30)) * -0x40A7B892E31B1A47
    state = (state ^ _shifted(state, 27)) * -0x6B2FB644ECCEEE15
    return state ^ _shifted(state, 31)


def _shifted(state: Int[Tensor, "*_"], places: int) -> Int[Tensor, "*_"]:
    """Shift to the right and fill with zeros; torch's own shift repeats the sign."""
    return (state >> places) & ((1 << (64 - places)) - 1)
