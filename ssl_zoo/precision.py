"""Computations that keep float32 under autocast and where TF32 is allowed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Turn autocast off, e.g. for batch statistics, whose matmuls it would round to bf16."""
    is_available = torch.amp.is_autocast_available(device.type)  # the meta device has none
    return torch.autocast(device.type, enabled=False) if is_available else nullcontext()


@contextmanager
def exact_matmuls() -> Iterator[None]:
    """Let float32 matmuls round to no shorter format, such as TF32 with its 10 bits of mantissa."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
