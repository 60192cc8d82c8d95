"""The plan of a run on another machine: memory of a rank, traffic, hours, and what to change where it does not fit."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table

from ssl_zoo.engine.build import RunConfig
from ssl_zoo.engine.graphs import check_capturable
from ssl_zoo.engine.trainer import BatchPlan, run_length
from ssl_zoo.planning.allocation_tracker import ACTIVATIONS, GRADIENTS, WEIGHT_COPIES
from ssl_zoo.planning.fake_ranks import SimulatedSharding, simulate_sharding
from ssl_zoo.planning.memory_simulation import SimulatedMemory, simulate_memory
from ssl_zoo.planning.plan import NUM_MASK_SAMPLES, Plan, plan_batch, titled_table
from ssl_zoo.planning.tokens import stacks

_GIBI = 2**30
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
# The rest is for what no plan counts: CUDA's context, buffers of NCCL and cuBLAS, fragmentation, probes.
_USABLE = 0.9
A100_FLOPS, UTILISATION = 312e12, 0.4  # bf16 without sparsity (NVIDIA's data sheet); an assumption to be replaced
_ROWS = (
    *("trained parameters", "EMA weights and fixed tables", "optimizer state"),
    *("images", "gradient buckets", "gathered blocks"),
)
_LAST_REMEDY = {  # where smaller micro-batches don't help
    "one rank": "take more ranks and trainer.parallel=fsdp2, or a device of more memory",
    "DDP": "take trainer.parallel=fsdp2, or devices of more memory",
    "FSDP2": "take more ranks, or devices of more memory",
}


@dataclass(frozen=True)
class Machine:
    """The machine that a run is planned for.

    Args:
        world_size: ranks, one device each.
        device_memory: e.g. ``80GB``, ``79GiB``; with None the plan does not check whether the run fits.
        device_flops: peak FLOP/s of a device at the run's precision.
        utilisation: fraction of the peak that the counted FLOPs reach.

    Raises:
        ValueError: a value is out of range; the message names its option.
    """

    world_size: int = 1
    device_memory: str | None = None
    device_flops: float = A100_FLOPS
    utilisation: float = UTILISATION

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"--world-size {self.world_size}: needs at least 1")
        if not (math.isfinite(self.device_flops) and self.device_flops > 0):
            raise ValueError(f"--device-flops {self.device_flops}: needs operations per second, e.g. 312e12")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"--utilisation {self.utilisation}: needs a fraction of the peak, above 0 and at most 1")
        if self.memory_bytes == 0:
            raise ValueError(f"--device-memory {self.device_memory}: needs more than nothing, e.g. 80GB")

    @property
    def memory_bytes(self) -> int | None:
        if self.device_memory is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", self.device_memory.strip(), re.IGNORECASE)
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(
                f"--device-memory {self.device_memory}: needs a number and one of MB, GB, MiB, GiB, e.g. 80GB"
            )
        return round(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank at the peaks of the passes and of the update; ``rows`` are there at both."""

    rows: Mapping[str, int]
    backward: Mapping[str, int]
    update: int

    @property
    def peak(self) -> int:
        return sum(self.rows.values()) + max(sum(self.backward.values()), self.update)


def replicated(memory: SimulatedMemory, world_size: int) -> RankMemory:
    """Memory of a rank under DDP, with a second copy of the gradients in buckets, or of a single rank."""
    buckets = memory.trained if world_size > 1 else 0
    rows = (memory.trained, memory.fixed, memory.optimizer, memory.batch, buckets, 0)
    return RankMemory(dict(zip(_ROWS, rows, strict=True)), memory.backward, memory.update)


def sharded(memory: SimulatedMemory, shards: SimulatedSharding) -> RankMemory:
    """Memory of a rank under FSDP2: shards of parameters, gradients and optimizer state, activations as under DDP."""
    share = shards.trained / memory.trained
    rows = (shards.trained, shards.fixed, round(memory.optimizer * share), memory.batch, 0, shards.working)
    backward = {**memory.backward, GRADIENTS: round(memory.backward[GRADIENTS] * share)}
    return RankMemory(dict(zip(_ROWS, rows, strict=True)), backward, round(memory.update * share))


@dataclass(frozen=True)
class ScalePlan:
    """Memory, traffic and hours of a run on a machine, computed on fake tensors."""

    config: RunConfig
    machine: Machine

    @property
    def batch(self) -> BatchPlan:
        return self._batch(self.config)

    def print(self, console: Console) -> None:
        """Print all tables.

        Raises:
            ValueError: the run would refuse ``trainer.cuda_graphs`` on this machine.
        """
        check_capturable(self.config.trainer, torch.device("cuda"), self.machine.world_size)
        plan = Plan.of(self.config, self.machine.world_size)
        memory = self._simulate(self.config)
        shards = simulate_sharding(self.config, self.machine.world_size) if self.machine.world_size > 1 else None
        layouts = {"DDP" if shards else "one rank": replicated(memory, self.machine.world_size)}
        if shards:
            layouts["FSDP2"] = sharded(memory, shards)
        console.print(self._memory(layouts))
        if shards:
            console.print(self._traffic(memory.trained, shards))
        console.print(self._work(plan))
        for line in self._verdict(layouts, shards):
            console.print(line)

    def _batch(self, config: RunConfig) -> BatchPlan:
        return BatchPlan(config.trainer.batch_size, self.machine.world_size, config.trainer.gradient_accumulation_steps)

    def _simulate(self, config: RunConfig) -> SimulatedMemory:
        passes = config.trainer.gradient_accumulation_steps
        return simulate_memory(config, self._batch(config).micro_batch_size * passes)

    def _memory(self, layouts: Mapping[str, RankMemory]) -> Table:
        images, columns = self.batch.micro_batch_size, layouts.values()
        result = titled_table(f"Memory of a rank in GiB, {images:,} images per micro-batch", "", *layouts)
        for row in next(iter(columns)).rows:
            if any(layout.rows[row] for layout in columns):
                result.add_row(row, *(_gibi(layout.rows[row]) for layout in columns))
        names = {ACTIVATIONS: "activations", WEIGHT_COPIES: "bf16 copies of weights", GRADIENTS: "gradients"}
        for kind, name in names.items():
            result.add_row(f"{name}, at the peak of the passes", *(_gibi(layout.backward[kind]) for layout in columns))
        result.add_row("or, in the update, gradients and temporaries", *(_gibi(layout.update) for layout in columns))
        result.add_row("peak", *(_gibi(layout.peak) for layout in columns), style="bold")
        return result

    def _traffic(self, trained: int, shards: SimulatedSharding) -> Table:
        """Bytes that each rank sends in ring collectives, in which (N-1)/N of a buffer passes every rank."""
        passes = self.config.trainer.gradient_accumulation_steps
        ring = (self.machine.world_size - 1) / self.machine.world_size
        result = titled_table("Traffic of a rank per step in GiB sent", "", "DDP", "FSDP2", "how")
        once = ring * trained
        gathered, scattered = (passes * ring * part for part in (shards.gathered, shards.scattered))
        factor = "" if passes == 1 else f"{passes} micro-batches x "
        result.add_row("all-reduce of gradients", _gibi(2 * once), "", f"2 x (N-1)/N x {_gibi(trained)}")
        how = f"{factor}(N-1)/N x {_gibi(shards.gathered)}: every block before each of its passes"
        result.add_row("all-gather of parameters", "", _gibi(gathered), how)
        result.add_row("reduce-scatter", "", _gibi(scattered), f"{factor}(N-1)/N x {_gibi(shards.scattered)}")
        result.add_row("sum", _gibi(2 * once), _gibi(gathered + scattered), "", style="bold")
        return result

    def _work(self, plan: Plan) -> Table:
        trainer, machine = self.config.trainer, self.machine
        images = trainer.batch_size
        samples, counted = range(NUM_MASK_SAMPLES), plan.step_flops
        found = [stacks(plan.method, plan_batch(plan.views, plan.generators, images, sample)) for sample in samples]
        formula = fmean(sum(stack.step_flops for stack in of_sample) for of_sample in found)
        result = titled_table("Work", "", "", "how")
        for position, stack in enumerate(found[0]):
            tokens = fmean(of_sample[position].tokens for of_sample in found)
            result.add_row(f"tokens per step, {stack.name}", f"{tokens * images:,.0f}", f"{tokens:,.0f} x {images:,}")
        recomputed = 0.0
        if trainer.activation_checkpointing:
            recomputed = sum(stack.forward_flops for stack in found[0] if stack.is_trained)
        result.add_row("FLOPs per image", f"{counted / 1e9:,.1f} G", f"counted; mean of {len(samples)} mask samples")
        difference = f"{formula / counted - 1:+.1%}: blocks alone, from tokens, weights and pairs of tokens"
        result.add_row("by formula", f"{formula / 1e9:,.1f} G", difference)
        if recomputed:
            how = "trainer.activation_checkpointing: blocks' forward passes"
            result.add_row("recomputed", f"{recomputed / 1e9:,.1f} G", how)
        executed = counted + recomputed
        result.add_row("FLOPs per step", f"{executed * images / 1e12:,.1f} T", f"x {images:,} images, on all ranks")
        if plan.num_samples is not None:
            num_steps, _ = run_length(trainer, plan.num_samples)
            total = executed * images * num_steps
            at_peak = total / (machine.world_size * machine.device_flops) / 3600
            how = f"{num_steps:,} steps = {total:.3e} FLOPs; {at_peak:,.2f} h at the peak / {machine.utilisation:g}"
            result.add_row("hours", f"{at_peak / machine.utilisation:,.1f}", how)
            device = f"{machine.world_size} x {machine.device_flops / 1e12:g} TFLOP/s at {machine.utilisation:.0%}"
            result.add_row("", "", f"{device}: an assumption (--device-flops, --utilisation), not a measurement")
        return result

    def _verdict(self, layouts: Mapping[str, RankMemory], shards: SimulatedSharding | None) -> Iterator[str]:
        memory = self.machine.memory_bytes
        if memory is None:
            return
        limit = round(_USABLE * memory)
        for name, layout in layouts.items():
            share = f"{_gibi(layout.peak)} GiB of {_gibi(memory)} GiB ({layout.peak / memory:.0%})"
            if layout.peak <= limit:
                yield f"{name} fits: {share}"
            else:
                is_hopeless = sum(layout.rows.values()) + layout.update > limit
                remedy = _LAST_REMEDY[name] if is_hopeless else self._remedy(name, limit, shards)
                yield f"{name} does not fit: {share}, of which {1 - _USABLE:.0%} stay free; {remedy}"

    def _remedy(self, layout: str, limit: int, shards: SimulatedSharding | None) -> str:
        """The first change that makes the run fit: more micro-batches, then activation checkpointing as well."""
        trainer, passes = self.config.trainer, self.config.trainer.gradient_accumulation_steps
        micro_batch_size = self.batch.micro_batch_size
        counts = [passes * n for n in range(1, micro_batch_size + 1) if micro_batch_size % n == 0]
        for checkpointed in sorted({trainer.activation_checkpointing, True}):
            for count in counts:
                changed = replace(trainer, gradient_accumulation_steps=count, activation_checkpointing=checkpointed)
                memory = self._simulate(replace(self.config, trainer=changed))
                is_sharded = layout == "FSDP2"
                rank = sharded(memory, shards) if is_sharded else replicated(memory, self.machine.world_size)
                if rank.peak <= limit:
                    keys = [] if count == passes else [f"trainer.gradient_accumulation_steps={count}"]
                    if checkpointed and not trainer.activation_checkpointing:
                        keys.append("trainer.activation_checkpointing=true")
                        keys += ["trainer.cuda_graphs=false"] if trainer.cuda_graphs else []
                    return f"{' '.join(keys)} brings it to {_gibi(rank.peak)} GiB"
        return _LAST_REMEDY[layout]


def _gibi(num_bytes: float) -> str:
    return f"{num_bytes / _GIBI:,.2f}"
