"""Setup of a device before the first step: precision, attention kernel, compilation, memory."""

import ctypes
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ssl_zoo.engine.settings import Precision, TrainerConfig
from ssl_zoo.nn import TRANSFORMER_BLOCKS, set_fused_attention

_RECOMPILE_LIMIT = 64  # forms of a block: shapes, with a gradient and without, of all tokens or the last ones
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc malloc.h


@cache
def cpu_capabilities() -> Mapping[str, object]:
    """Return the instruction sets and the name of the CPU."""
    return torch.cpu.get_capabilities()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The context of every forward pass, for a resolved precision."""
    if precision is Precision.fp32:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def prepare_device(device: torch.device) -> None:
    """Change settings of the process that make steps faster."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    elif sys.platform == "linux":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    # glibc returns large blocks to the kernel on free, and the next step faults them in again page by page.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def prepare_method(method: nn.Module, config: TrainerConfig, device: torch.device) -> nn.Module:
    """Move a method to the device, choose its attention kernel and compile its blocks if asked for."""
    set_fused_attention(method, config.fused_attention)
    if config.activation_checkpointing and device.type == "mps" and _samples_in_forward(method):
        raise ValueError(
            "trainer.activation_checkpointing=true: on MPS torch can't repeat the random numbers of drop path and "
            "dropout; set it to false, or backbone.drop_path and backbone.attention_dropout to 0"
        )
    if config.compile:
        _require_compiler()
        # Blocks of one class share the limit; beyond it, 8 by default, torch silently runs all others uncompiled.
        torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    for block in _blocks(method):
        if config.activation_checkpointing and any(p.requires_grad for p in block.parameters()):
            # Drop-path must drop the same branches again: the state of torch's global generator is kept and restored.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=True)
        if config.compile:
            block.compile()
    return method.to(device)


def _require_compiler() -> None:
    """Refuse ``trainer.compile`` where torch would find no compiler for the code that it generates."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"trainer.compile=true: torch.compile needs a C++ compiler, and there is no {compiler}; install it, name "
            "another in the environment variable CXX, or set trainer.compile=false"
        )


def _samples_in_forward(method: nn.Module) -> bool:
    rates = (getattr(module, name, 0) for module in method.modules() for name in ("drop_prob", "p"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _blocks(method: nn.Module) -> list[nn.Module]:
    return [module for module in method.modules() if isinstance(module, TRANSFORMER_BLOCKS)]
