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
    """Keep float32 matmuls on CUDA from TF32, which has 10 bits of a mantissa: too few to weigh pixels of 8 bits."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
