"""The precision that ``trainer.precision=auto`` stands for: known by the device, or measured on a CPU."""

import functools
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ssl_zoo.engine.checkpoint.state import Checkpoint
from ssl_zoo.engine.device import autocast, cpu_capabilities, prepare_device
from ssl_zoo.engine.distributed import Processes
from ssl_zoo.engine.settings import Precision, TrainerConfig
from ssl_zoo.nn.blocks import transformer_blocks

_log = logging.getLogger(__name__)
_CPU_FLAGS = ("avx512_bf16", "bf16", "sve_bf16")  # x86-64; ARM's two; instructions that need not be faster than float32
_MIN_GAIN = 1.05  # bf16 must be this much faster, so that ties give the exact one
_FLOPS_PER_PASS = 4e9  # limits the images of a measured batch
_SECONDS, _MIN_ROUNDS, _MAX_ROUNDS = 0.25, 3, 40


@dataclass(frozen=True)
class PrecisionChoice:
    """A resolved precision.

    Attributes:
        reason: why it was chosen, for the log and ``environment.json``.
        gflops: measured speed by precision; None where nothing was measured.
    """

    precision: Precision
    reason: str
    gflops: Mapping[str, float] | None = None

    def plain(self) -> dict[str, Any]:
        """Return the entries of ``environment.json``."""
        measured = {} if self.gflops is None else {"precision_gflops": dict(self.gflops)}
        return {"precision": self.precision.value, "precision_reason": self.reason, **measured}


@dataclass(frozen=True)
class Workload:
    """Sizes of a transformer block and its input; the defaults are those of ViT-B/16 at 224 px."""

    embed_dim: int = 768
    num_tokens: int = 196
    num_images: int = 1

    @classmethod
    def of(cls, encoder: nn.Module, num_images: int) -> "Workload":
        """Return the sizes of an encoder's blocks on a micro-batch, or on the part of it that is quick to time."""
        dim, num_tokens = encoder.embed_dim, encoder.num_patches
        limit = max(1, int(_FLOPS_PER_PASS / cls(dim, num_tokens).flops))
        return cls(dim, num_tokens, min(num_images, limit))

    @property
    def num_heads(self) -> int:
        """Return the number of heads of about 64 channels."""
        return next(heads for heads in range(max(1, self.embed_dim // 64), 0, -1) if self.embed_dim % heads == 0)

    @property
    def flops(self) -> float:
        """Return the FLOPs of the matmuls of a forward and backward pass."""
        rows = self.num_images * self.num_tokens
        return 3 * rows * (24 * self.embed_dim**2 + 4 * self.num_tokens * self.embed_dim)


def choose_precision(
    requested: Precision, device: torch.device, workload: Workload = Workload(), recorded: Precision | None = None
) -> PrecisionChoice:
    """Return the precision of a run and the reason.

    On CUDA ``auto`` is bf16 where the GPU has bf16 matmuls. A CPU with AMX multiplies bf16 several times faster than
    float32, and one without bf16 instructions emulates it slowly. For other CPUs the instructions alone decide nothing
    (AVX-512 BF16 is twice as fast on some and slower on others), so a transformer block is timed in both. On MPS it is
    float32: autocast to bf16 depends on the version of macOS and could not be tested, and fp16 needs a loss scaler.

    Args:
        workload: what is timed.
        recorded: the precision with which the run was started. ``auto`` keeps it, so that a resumed run has the same
            losses, and an evaluation the same features, also on another machine.
    """
    if requested is not Precision.auto:
        return PrecisionChoice(requested, "set by trainer.precision")
    if recorded is not None:
        return PrecisionChoice(recorded, "recorded when the run was started")
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        known = (
            (Precision.bf16, "the GPU has bf16 matmuls") if has_bf16 else (Precision.fp32, "the GPU has none in bf16")
        )
        return PrecisionChoice(*known)
    if device.type != "cpu":
        return PrecisionChoice(Precision.fp32, f"float32 is the default of device {device.type}")
    capabilities = cpu_capabilities()
    if capabilities.get("amx_bf16"):
        return PrecisionChoice(Precision.bf16, "the CPU multiplies bf16 with AMX")
    if not any(capabilities.get(flag) for flag in _CPU_FLAGS):
        return PrecisionChoice(Precision.fp32, "the CPU has no bf16 instructions")
    return _faster(_measured(workload))


def run_precision(
    method: nn.Module, config: TrainerConfig, ranks: Processes, recorded: Precision | None = None
) -> PrecisionChoice:
    """Return the precision of a run, the same on all ranks; all of them call this at the same time.

    Args:
        method: whose encoder's sizes are timed.
        recorded: as for ``choose_precision``.
    """
    num_images = config.batch_size // (ranks.world_size * config.gradient_accumulation_steps)
    workload = Workload.of(method.encoder, max(1, num_images))
    return _agreed(choose_precision(config.precision, ranks.device, workload, recorded), ranks)


def _agreed(choice: PrecisionChoice, ranks: Processes) -> PrecisionChoice:
    """Return the choice of rank 0 on every rank, and log it there."""
    is_bf16 = bool(ranks.first(int(choice.precision is Precision.bf16)))
    precision = Precision.bf16 if is_bf16 else Precision.fp32
    if precision is not choice.precision:
        choice = replace(choice, precision=precision, reason="rank 0 chose it")
    if ranks.is_main:
        _log.info("precision %s: %s", choice.precision.value, choice.reason)
    return choice


def recorded_precision(checkpoint: Checkpoint) -> Precision | None:
    """Return the precision that a run was started with, from its checkpoint or, for older ones, its directory."""
    recorded, file = checkpoint.manifest.get("precision"), checkpoint.path.parent.parent / "environment.json"
    if recorded is None and file.is_file():
        recorded = json.loads(file.read_text(encoding="utf-8")).get("precision")
    return None if recorded is None else Precision(recorded)


def _faster(gflops: Mapping[str, float]) -> PrecisionChoice:
    bf16, fp32 = gflops["bf16"], gflops["fp32"]
    faster = Precision.bf16 if bf16 > _MIN_GAIN * fp32 else Precision.fp32
    reason = f"a transformer block reaches {bf16:.0f} GFLOP/s in bf16 and {fp32:.0f} in fp32 per core"
    return PrecisionChoice(faster, reason, {name: round(value, 1) for name, value in gflops.items()})


@functools.cache
def _measured(workload: Workload) -> Mapping[str, float]:
    """Measure GFLOP/s by precision: forward and backward pass of a block, casts included.

    Both precisions take turns and the fastest pass of each counts, since other processes only slow passes down. Passes
    run on one thread and are timed by its CPU time, which leaves out the time that other processes had the CPU. On
    several threads it would include the time in which they wait for one that is not running.
    """
    cpu, best = torch.device("cpu"), {"bf16": float("inf"), "fp32": float("inf")}
    prepare_device(cpu)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dim = workload.embed_dim
        [block] = transformer_blocks(dim, 1, workload.num_heads, mlp_ratio=4, norm_eps=1e-6)
        tokens = torch.randn(workload.num_images, workload.num_tokens, dim, requires_grad=True)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in best:  # the first pass chooses kernels and allocates
        _pass(block, tokens, autocast(Precision(name), cpu))
    end = time.perf_counter() + _SECONDS
    for number in range(_MAX_ROUNDS):
        for name in best:
            start = time.thread_time()
            _pass(block, tokens, autocast(Precision(name), cpu))
            best[name] = min(best[name], time.thread_time() - start)
        if number + 1 >= _MIN_ROUNDS and time.perf_counter() > end:
            break
    torch.set_num_threads(num_threads)
    return {name: workload.flops / seconds / 1e9 for name, seconds in best.items()}


@torch.enable_grad()
def _pass(block: nn.Module, tokens: torch.Tensor, precision: Any) -> None:
    with precision:
        output = block(tokens)
    output.float().sum().backward()
    for tensor in (tokens, *block.parameters()):
        tensor.grad = None
