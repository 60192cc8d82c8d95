"""A run on machines that are not here: memory of a rank, traffic, hours, and what to change where it does not fit."""

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
from ssl_zoo.planning.fake_ranks import Sharded, rehearse_sharded
from ssl_zoo.planning.memory_simulation import Rehearsal, rehearse
from ssl_zoo.planning.plan import Plan, count_flops, plan_batch, titled_table
from ssl_zoo.planning.tokens import stacks

_GIBI = 2**30
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
# The rest is for what no plan sees: CUDA's context, buffers of NCCL and cuBLAS, gaps of the allocator, probes.
_USABLE = 0.9
_DRAWS = 4  # of masks, over which operations and tokens are averaged
A100_FLOPS, UTILISATION = 312e12, 0.4  # bf16 without sparsity (NVIDIA's data sheet); a guess to be replaced

_MORE = {  # what is left where smaller micro-batches don't help
    "one rank": "take more ranks and trainer.parallel=fsdp2, or a device of more memory",
    "DDP": "take trainer.parallel=fsdp2, or devices of more memory",
    "FSDP2": "take more ranks, or devices of more memory",
}


@dataclass(frozen=True)
class Machine:
    """What a run is planned for.

    Args:
        world_size: ranks, one device each.
        device_memory: e.g. ``80GB``, ``79GiB``; None asks no question of fit.
        device_flops: the peak per second, in the run's number format.
        utilisation: fraction of the peak that the counted operations reach.

    Raises:
        ValueError: a value out of range, naming its option.
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
    """Bytes of one rank at the two moments when they are most; each holds all rows but the other's."""

    rows: Mapping[str, int]
    backward: Mapping[str, int]
    update: int

    @property
    def peak(self) -> int:
        return sum(self.rows.values()) + max(sum(self.backward.values()), self.update)


def replicated(rehearsal: Rehearsal, world_size: int) -> RankMemory:
    """Under DDP, or on one rank: everything whole, and a second copy of the gradients that DDP reduces in buckets."""
    rows = {
        "trained parameters": rehearsal.trained,
        "averages and fixed tables": rehearsal.fixed,
        "optimizer state": rehearsal.optimizer,
        "images": rehearsal.batch,
        "buckets of gradients": rehearsal.trained if world_size > 1 else 0,
        "gathered blocks": 0,
    }
    return RankMemory(rows, rehearsal.backward, rehearsal.update)


def sharded(rehearsal: Rehearsal, shards: Sharded) -> RankMemory:
    """Under FSDP2: shards of parameters, gradients and optimizer state, activations as before."""
    share = shards.trained / rehearsal.trained
    rows = {
        "trained parameters": shards.trained,
        "averages and fixed tables": shards.fixed,
        "optimizer state": round(rehearsal.optimizer * share),
        "images": rehearsal.batch,
        "buckets of gradients": 0,
        "gathered blocks": shards.working,
    }
    backward = {**rehearsal.backward, GRADIENTS: round(rehearsal.backward[GRADIENTS] * share)}
    return RankMemory(rows, backward, round(rehearsal.update * share))


@dataclass(frozen=True)
class ScalePlan:
    """What a run takes on a machine that need not be here; worked out on fake tensors."""

    config: RunConfig
    machine: Machine

    @property
    def batch(self) -> BatchPlan:
        return self._batch(self.config)

    def print(self, console: Console) -> None:
        """All tables.

        Raises:
            ValueError: the run would refuse ``trainer.cuda_graphs`` on such a machine.
        """
        check_capturable(self.config.trainer, torch.device("cuda"), self.machine.world_size)
        plan = Plan.of(self.config, self.machine.world_size)
        rehearsal = self._rehearse(self.config)
        shards = rehearse_sharded(self.config, self.machine.world_size) if self.machine.world_size > 1 else None
        layouts = {"DDP" if shards else "one rank": replicated(rehearsal, self.machine.world_size)}
        if shards:
            layouts["FSDP2"] = sharded(rehearsal, shards)
        console.print(self._memory(layouts))
        if shards:
            console.print(self._traffic(rehearsal, shards))
        console.print(self._work(plan))
        for line in self._verdict(layouts, shards):
            console.print(line)

    def _batch(self, config: RunConfig) -> BatchPlan:
        return BatchPlan(config.trainer.batch_size, self.machine.world_size, config.trainer.gradient_accumulation_steps)

    def _rehearse(self, config: RunConfig) -> Rehearsal:
        return rehearse(config, self._batch(config).micro_batch_size * config.trainer.gradient_accumulation_steps)

    def _memory(self, layouts: Mapping[str, RankMemory]) -> Table:
        images = self.batch.micro_batch_size
        result = titled_table(f"Memory of a rank in GiB, {images:,} images per micro-batch", "", *layouts)
        names = {ACTIVATIONS: "activations", WEIGHT_COPIES: "bf16 copies of weights", GRADIENTS: "gradients"}
        kinds = {name: [layout.backward[kind] for layout in layouts.values()] for kind, name in names.items()}
        columns = {row: [m.rows[row] for m in layouts.values()] for row in next(iter(layouts.values())).rows}
        for row, values in columns.items():
            if any(values):
                result.add_row(row, *(_gibi(value) for value in values))
        for name, values in kinds.items():
            result.add_row(f"{name}, at the peak of the passes", *(_gibi(value) for value in values))
        updates = (_gibi(layout.update) for layout in layouts.values())
        result.add_row("or, in the update, gradients and temporaries", *updates)
        result.add_row("peak", *(_gibi(layout.peak) for layout in layouts.values()), style="bold")
        return result

    def _traffic(self, rehearsal: Rehearsal, shards: Sharded) -> Table:
        """Bytes that each rank sends in rings, in which (N-1)/N of a buffer passes every rank."""
        passes, ring = (
            self.config.trainer.gradient_accumulation_steps,
            (self.machine.world_size - 1) / self.machine.world_size,
        )
        result = titled_table("Traffic of a rank per step in GiB sent", "", "DDP", "FSDP2", "how")
        once = ring * rehearsal.trained
        gathered, scattered = (passes * ring * part for part in (shards.gathered, shards.scattered))
        factor = "" if passes == 1 else f"{passes} micro-batches x "
        result.add_row("all-reduce of gradients", _gibi(2 * once), "", f"2 x (N-1)/N x {_gibi(rehearsal.trained)}")
        how = f"{factor}(N-1)/N x {_gibi(shards.gathered)}: every block before each of its passes"
        result.add_row("all-gather of parameters", "", _gibi(gathered), how)
        result.add_row("reduce-scatter", "", _gibi(scattered), f"{factor}(N-1)/N x {_gibi(shards.scattered)}")
        result.add_row("sum", _gibi(2 * once), _gibi(gathered + scattered), "", style="bold")
        return result

    def _work(self, plan: Plan) -> Table:
        trainer, machine = self.config.trainer, self.machine
        images = trainer.batch_size
        counted = fmean(
            count_flops(plan.method, plan.views, plan.generators, batch_size=images, draw=draw)["step"]
            for draw in range(_DRAWS)
        )
        seen = [stacks(plan.method, plan_batch(plan.views, plan.generators, images, draw)) for draw in range(_DRAWS)]
        formula = sum(stack.step_flops for draw in seen for stack in draw) / _DRAWS
        result = titled_table("Work", "", "", "how")
        for position, stack in enumerate(seen[0]):
            tokens = fmean(draw[position].tokens for draw in seen)
            result.add_row(f"tokens per step, {stack.name}", f"{tokens * images:,.0f}", f"{tokens:,.0f} x {images:,}")
        again = self._again(plan, seen[0])
        result.add_row("FLOPs per image", f"{counted / 1e9:,.1f} G", f"counted; mean of {_DRAWS} draws of masks")
        difference = f"{formula / counted - 1:+.1%}: blocks alone, from tokens, weights and pairs of tokens"
        result.add_row("by formula", f"{formula / 1e9:,.1f} G", difference)
        if again:
            result.add_row(
                "run twice", f"{again / 1e9:,.1f} G", "trainer.activation_checkpointing: blocks' forward passes"
            )
        executed = counted + again
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

    def _again(self, plan: Plan, seen: list) -> float:
        if not self.config.trainer.activation_checkpointing:
            return 0.0
        return sum(stack.forward_flops for stack in seen if stack.is_trained)

    def _verdict(self, layouts: Mapping[str, RankMemory], shards: Sharded | None) -> Iterator[str]:
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
                remedy = _MORE[name] if is_hopeless else self._remedy(name, limit, shards)
                yield f"{name} does not fit: {share}, of which {1 - _USABLE:.0%} stay free; {remedy}"

    def _remedy(self, layout: str, limit: int, shards: Sharded | None) -> str:
        """The first change that makes it fit: more micro-batches, then activations kept at blocks' inputs alone too."""
        trainer = self.config.trainer
        share = self.batch.micro_batch_size * trainer.gradient_accumulation_steps
        counts = [
            n
            for n in range(trainer.gradient_accumulation_steps, share + 1)
            if share % n == 0 and n % trainer.gradient_accumulation_steps == 0
        ]
        for checkpointed in sorted({trainer.activation_checkpointing, True}):
            for count in counts:
                changed = replace(trainer, gradient_accumulation_steps=count, activation_checkpointing=checkpointed)
                rehearsal = self._rehearse(replace(self.config, trainer=changed))
                is_sharded = layout == "FSDP2"
                memory = sharded(rehearsal, shards) if is_sharded else replicated(rehearsal, self.machine.world_size)
                if memory.peak <= limit:
                    keys = (
                        [f"trainer.gradient_accumulation_steps={count}"]
                        if count != trainer.gradient_accumulation_steps
                        else []
                    )
                    if checkpointed and not trainer.activation_checkpointing:
                        keys.append("trainer.activation_checkpointing=true")
                        keys += ["trainer.cuda_graphs=false"] if trainer.cuda_graphs else []
                    return f"{' '.join(keys)} brings it to {_gibi(memory.peak)} GiB"
        return _MORE[layout]


def _gibi(num_bytes: float) -> str:
    return f"{num_bytes / _GIBI:,.2f}"
