"""Computations that keep float32 under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Turn autocast off, e.g. for batch statistics, whose matmuls it would round to bf16."""
    is_available = torch.amp.is_autocast_available(device.type)  # the meta device has none
    return torch.autocast(device.type, enabled=False) if is_available else nullcontext()
