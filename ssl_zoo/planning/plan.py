"""The plan of a run, computed without data, accelerator or weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_zoo.data.batch import Batch
from ssl_zoo.data.sources import SOURCES, check_channels
from ssl_zoo.engine.alarm import limits_of
from ssl_zoo.engine.build import RunConfig, build_generators, build_run_method, build_views
from ssl_zoo.engine.optim import OPTIMIZERS, OptimConfig, RateSchedules
from ssl_zoo.engine.settings import TrainerConfig
from ssl_zoo.engine.trainer import BatchPlan, run_length
from ssl_zoo.masks import MaskGenerator, Masks
from ssl_zoo.method import Method, Progress, Step, ViewSpec
from ssl_zoo.nn import set_fused_attention
from ssl_zoo.seeding import generator_for

_PLAN_IMAGES = 2  # enough for every shape; counts are divided by it
_GIBI = 2**30
NUM_MASK_SAMPLES = 4  # over which FLOPs and tokens are averaged


@dataclass(frozen=True)
class Plan:
    """Cost, batch, masks and schedules of a run before it starts.

    Args:
        method: built on the meta device.
        generators: by name of the view.
        num_samples: training images; None where only the opened data source knows.
    """

    method: Method
    views: Sequence[ViewSpec]
    generators: Mapping[str, MaskGenerator]
    optim: OptimConfig
    trainer: TrainerConfig
    world_size: int
    num_samples: int | None

    @classmethod
    def of(cls, config: RunConfig, world_size: int = 1) -> "Plan":
        """Build the plan of a configured run.

        Raises:
            ValueError: parts that don't go together.
        """
        check_channels(config.data, config.backbone.in_channels)
        views = build_views(config.views, config.backbone)
        method = build_run_method(config, device="meta")
        generators = build_generators(views, config.masks, config.backbone)
        masks = {name: generator(1, generator_for("plan")) for name, generator in generators.items()}
        method.check_inputs({view.name: view for view in views}, masks)
        limits_of(method.collapse_limits(), config.monitor.alarm)
        return cls(
            method,
            views,
            generators,
            config.optim,
            config.trainer,
            world_size,
            SOURCES.get(SOURCES.name_of(config.data)).expected_size(config.data),
        )

    @cached_property
    def step_flops(self) -> float:
        """FLOPs per image of forward and backward pass, averaged over samples of masks; counted on first access."""
        count, samples = self.trainer.batch_size, range(NUM_MASK_SAMPLES)
        counts = [count_flops(self.method, self.views, self.generators, batch_size=count, sample=s) for s in samples]
        return fmean(counted["step"] for counted in counts)

    @property
    def length(self) -> tuple[int, int] | None:
        """Steps of the run and, if the number of samples is known, of an epoch; None if neither is known."""
        if self.num_samples is None and self.trainer.num_steps is None:
            return None
        return run_length(self.trainer, self.num_samples or self.trainer.batch_size)

    def print(self, console: Console) -> None:
        """Print all tables, which takes seconds."""
        for table in (self._networks(), self._cost(), self._batch(), self._masks(), self._schedules()):
            if table is not None:
                console.print(table)

    def _networks(self) -> Table:
        table = titled_table("Networks", "part", "parameters", "trainable")
        for name, part in [*self.method.named_children(), ("total", self.method)]:
            total, trainable = count_parameters(part)
            table.add_row(name, f"{total:,}", f"{trainable:,}")
        return table

    def _cost(self) -> Table:
        flops = count_flops(self.method, self.views, self.generators)
        total, trainable = count_parameters(self.method)
        table = titled_table("Cost", "", "", "how")
        for name, count in flops.items():
            table.add_row(f"FLOPs per image, {name}", f"{count / 1e9:,.2f} G", "counted on the meta device")
        table.add_row("weights", f"{4 * total / _GIBI:.2f} GiB", f"4 bytes x {total:,}, EMA weights included")
        table.add_row("gradients", f"{4 * trainable / _GIBI:.2f} GiB", f"4 bytes x {trainable:,}")
        state = OPTIMIZERS.build(self.optim).state_size(p for p in self.method.parameters() if p.requires_grad)
        table.add_row("optimizer state", f"{state.num_bytes / _GIBI:.2f} GiB", state.explanation)
        return table

    def _batch(self) -> Table:
        batch = BatchPlan(self.trainer.batch_size, self.world_size, self.trainer.gradient_accumulation_steps)
        table = titled_table("Batch and length", "", "", "how")
        how = f"{batch.batch_size} / ({batch.world_size} ranks x {batch.gradient_accumulation_steps} micro-batches)"
        table.add_row("images per micro-batch", f"{batch.micro_batch_size:,}", how)
        if self.num_samples is None:
            table.add_row("training images", "unknown", "known when this data source is opened")
        else:
            num_steps, per_epoch = run_length(self.trainer, self.num_samples)
            table.add_row("steps per epoch", f"{per_epoch:,}", f"{self.num_samples:,} // {batch.batch_size}")
            how = "trainer.num_steps" if self.trainer.num_steps else f"{self.trainer.epochs:g} epochs x {per_epoch:,}"
            table.add_row("steps", f"{num_steps:,}", how)
            table.add_row("images", f"{num_steps * batch.batch_size:,}", f"{num_steps:,} x {batch.batch_size}")
        return table

    def _masks(self) -> Table | None:
        if not self.generators:
            return None
        table = titled_table("Masks", "view", "grid", "context patches", "target blocks x patches", "visible")
        for view, generator in self.generators.items():
            samples = [generator(64, generator_for("plan", i)) for i in range(8)]
            context, targets = _patches(samples)
            table.add_row(
                view,
                f"{generator.grid[0]}x{generator.grid[1]}",
                _range(context),
                f"{samples[0].targets.shape[1]} x {_range(targets)}",
                f"{sum(context) / len(context) / generator.num_patches:.1%} of the patches",
            )
        return table

    def _schedules(self) -> Table | None:
        if self.length is None:
            return None
        num_steps, per_epoch = self.length
        schedules = RateSchedules(self.optim, num_steps=num_steps, steps_per_epoch=per_epoch)
        table = titled_table("Schedules", "step", "epoch", "lr", "weight decay", "EMA momentum")
        for step in sorted({0, schedules.warmup_steps, *(int(f * (num_steps - 1)) for f in (0.25, 0.5, 0.75, 1.0))}):
            if step < num_steps:
                rates = schedules(step)
                momenta = [f"{ema.momentum(step / num_steps):.6f}" for ema in self.method.emas()]
                values = (f"{rates.lr:.3e}", f"{rates.weight_decay:.4f}", ", ".join(momenta))
                table.add_row(f"{step:,}", f"{step / per_epoch:.2f}", *values)
        return table


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Count all parameters of a module, and the trainable ones."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def count_flops(
    method: Method,
    views: Sequence[ViewSpec],
    generators: Mapping[str, MaskGenerator],
    *,
    batch_size: int = _PLAN_IMAGES,
    sample: int = 0,
) -> Mapping[str, float]:
    """Count the FLOPs per image of a step on the meta device; a multiply-add is two.

    Attention runs as plain matmuls here, since a fused kernel would hide its operations.

    Args:
        batch_size: images whose masks are sampled together; where all take the smallest context of their batch, a
            larger batch has fewer visible patches.
        sample: number of the sample of masks, since block sizes differ from step to step.
    """
    set_fused_attention(method, False)
    with FlopCounterMode(display=False) as forward:
        loss = method(plan_batch(views, generators, batch_size, sample), plan_step(method, "meta")).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    method.zero_grad(set_to_none=True)
    counts = {"forward": forward.get_total_flops(), "backward": backward.get_total_flops()}
    counts["step"] = counts["forward"] + counts["backward"]
    return {name: count / _PLAN_IMAGES for name, count in counts.items()}


def plan_batch(
    views: Sequence[ViewSpec],
    generators: Mapping[str, MaskGenerator],
    batch_size: int = _PLAN_IMAGES,
    sample: int = 0,
    *,
    num_images: int = _PLAN_IMAGES,
    device: torch.device | str = "meta",
) -> Batch:
    """Build a batch of a step's shapes, of its first ``num_images`` images, which are black."""
    images = {view.name: torch.zeros(num_images, view.channels, *view.size, device=device) for view in views}
    count = max(batch_size, num_images)
    masks = {
        name: generator(count, generator_for("plan", sample)).map(lambda t: t[:num_images].to(device))
        for name, generator in generators.items()
    }
    return Batch(images, masks)


def plan_step(method: Method, device: torch.device | str) -> Step:
    """Return the step that a plan passes through a method."""
    return Step.of(method, Progress(step=0, num_steps=1, samples=0), device)


def _patches(samples: Sequence[Masks]) -> tuple[list[int], list[int]]:
    """Count the patches of contexts and target blocks: per sample of masks, or per image where images differ."""
    if all(masks.targets.shape[-1] for masks in samples):
        return [m.context.shape[-1] for m in samples], [m.targets.shape[-1] for m in samples]
    masked = torch.cat([masks.masked for masks in samples])
    return (~masked).sum(1).tolist(), masked.sum(1).tolist()


def _range(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}..{max(counts)}"


def titled_table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", header_style="bold")
