"""What the engine sets up on a device before the first step: number format, attention kernel, memory."""

import ctypes
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ssl_zoo.engine.settings import Precision, TrainerConfig
from ssl_zoo.nn import set_fused_attention

_MAX_COMPILED_FORMS = 64  # of a block: shapes, with a gradient and without, of all tokens or the last ones
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc malloc.h


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """The format that ``auto`` stands for on this device; explicit ones are returned unchanged."""
    if precision is not Precision.auto:
        return precision
    return Precision.bf16 if multiplies_bf16(device) else Precision.fp32


def multiplies_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 have instructions of their own on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions a bf16 product on a CPU is several times slower than the fp32 one.
    capabilities = cpu_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@cache
def cpu_capabilities() -> Mapping[str, object]:
    """Instruction sets and name of the CPU."""
    return torch.cpu.get_capabilities()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Context of every forward pass; ``precision`` is resolved."""
    if precision is Precision.fp32:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def prepare_device(device: torch.device) -> None:
    """Settings of the process that make steps faster and change no result."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    elif sys.platform == "linux":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    # glibc returns large blocks to the kernel on free and takes them back, page by page, on the next step. Keeping them
    # saves those page faults.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def prepare_method(method: nn.Module, config: TrainerConfig, device: torch.device) -> nn.Module:
    """Move a method to the device, choose its attention kernel and compile its blocks if asked for."""
    set_fused_attention(method, config.fused_attention)
    if config.compile:
        # Blocks of one class count together; beyond the limit, 8 otherwise, all others would silently run uncompiled.
        torch._dynamo.config.recompile_limit = _MAX_COMPILED_FORMS
    for block in _blocks(method):
        if config.activation_checkpointing and any(p.requires_grad for p in block.parameters()):
            # Drop-path must drop the same again: the state of torch's global generator is kept and restored.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=True)
        if config.compile:
            block.compile()
    return method.to(device)


def _blocks(method: nn.Module) -> list[nn.Module]:
    from timm.models.vision_transformer import Block

    return [module for module in method.modules() if isinstance(module, Block)]
