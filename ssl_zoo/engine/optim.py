"""Optimizers, schedules of learning rate and weight decay, and gradient clipping."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ssl_zoo.engine.muon import Muon
from ssl_zoo.engine.sharding import local, sum_over_shards
from ssl_zoo.method import Clip, ParamGroup
from ssl_zoo.registry import Registry
from ssl_zoo.schedules import ScheduleShape, make_schedule, multistep, with_warmup
from ssl_zoo.settings import Settings, setting

OPTIMIZERS = Registry("optimizer", "optim")


@dataclass
class OptimConfig(Settings):
    """Schedules that every optimizer follows. The defaults are neutral: a constant learning rate and weight decay."""

    section = "optim"

    lr: float = setting(1e-3, "peak learning rate; it is not scaled with the batch size", above=0)
    warmup_lr: float = setting(0.0, "learning rate at the start of the warm-up", at_least=0)
    min_lr: float | None = setting(None, "learning rate at the end of the cosine; null keeps it at lr", at_least=0)
    milestones: list[float] = setting([], "epochs at which milestone_factor multiplies lr; [] is a cosine")
    milestone_factor: float = setting(0.1, "what each milestone multiplies the learning rate by", above=0)
    warmup_epochs: float = setting(0.0, "epochs over which the learning rate rises linearly", at_least=0)
    weight_decay: float = setting(0.05, "weight decay at the start of the run", at_least=0)
    final_weight_decay: float | None = setting(None, "weight decay at its end; null keeps it", at_least=0)
    weight_decay_schedule: ScheduleShape = setting(ScheduleShape.cosine, "constant, linear or cosine")
    clip_grad_norm: float | None = setting(None, "limit of the gradient norm; null clips nothing", above=0)
    schedule_stretch: float = setting(
        1.0,
        "length of the schedules of lr and weight decay in runs; 1.25 as MSN: the run ends before they do",
        at_least=1,
    )
    schedule_offset: int = setting(0, "step s reads schedules at s + offset; compat: 1 as I-JEPA and MSN, -1 as SimMIM")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.milestones != sorted({*self.milestones}) or any(m <= self.warmup_epochs for m in self.milestones):
            raise ValueError(
                f"optim.milestones={self.milestones}: needs rising numbers of epochs after "
                f"optim.warmup_epochs={self.warmup_epochs:g}"
            )


@dataclass
class AdamWConfig(OptimConfig):
    """AdamW in torch's fused implementation."""

    betas: list[float] = setting([0.9, 0.999], "decay rates of the two moments", length=2, at_least=0, below=1)
    eps: float = setting(1e-8, "added to the root of the second moment", at_least=0)


@dataclass(frozen=True)
class StateSize:
    """Memory of an optimizer's state, with its derivation in words."""

    num_bytes: int
    explanation: str


class OptimizerFactory(ABC):
    """Builds a torch optimizer from parameter groups; registered optimizers derive from it."""

    def __init__(self, config: OptimConfig) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Build an optimizer over ``groups``, whose ``lr`` and ``weight_decay`` are set before every step."""

    @abstractmethod
    def state_size(self, params: Iterable[nn.Parameter]) -> StateSize:
        """Return the size of the state for ``params``, step counters left out, without building the optimizer."""


@OPTIMIZERS.register("adamw", AdamWConfig)
class AdamW(OptimizerFactory):
    """Builds torch's fused Adam with decoupled weight decay (arXiv 1711.05101)."""

    def __call__(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=tuple(self.config.betas), eps=self.config.eps, fused=True)

    def state_size(self, params: Iterable[nn.Parameter]) -> StateSize:
        count = sum(p.numel() for p in params)
        return StateSize(8 * count, f"2 moments x 4 bytes x {count:,}")


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for weight matrices, AdamW with the same rates for everything else."""

    momentum: float = setting(0.95, "decay of the matrices' momentum", at_least=0, below=1)


@OPTIMIZERS.register("muon", MuonConfig)
class MuonFactory(OptimizerFactory):
    """Builds orthogonalised momentum for weight matrices, AdamW for the rest: fewer steps for the same loss."""

    def __call__(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        return Muon(groups, momentum=config.momentum, betas=tuple(config.betas), eps=config.eps)

    def state_size(self, params: Iterable[nn.Parameter]) -> StateSize:
        counts = [(p.numel(), p.ndim == 2) for p in params]
        matrices = sum(count for count, is_matrix in counts if is_matrix)
        rest = sum(count for count, is_matrix in counts if not is_matrix)
        how = f"4 bytes x (2 moments x {rest:,} + 1 x {matrices:,} in matrices)"
        return StateSize(8 * rest + 4 * matrices, how)


@dataclass(frozen=True)
class Rates:
    """Scheduled values of one step."""

    lr: float
    weight_decay: float


class RateSchedules:
    """Learning rate and weight decay as functions of the step.

    Args:
        num_steps: optimizer steps of the run.
        steps_per_epoch: converts ``optim.warmup_epochs`` and ``optim.milestones``.
    """

    def __init__(self, config: OptimConfig, *, num_steps: int, steps_per_epoch: int) -> None:
        self.offset, self.length = config.schedule_offset, config.schedule_stretch * num_steps
        self.warmup_steps = int(config.warmup_epochs * steps_per_epoch)
        main = make_schedule(ScheduleShape.cosine, config.lr, config.lr if config.min_lr is None else config.min_lr)
        if config.milestones:
            milestones = [int(epochs * steps_per_epoch) - self.warmup_steps for epochs in config.milestones]
            num_main = max(1, int(self.length) - self.warmup_steps)
            main = multistep(config.lr, config.milestone_factor, milestones, num_main)
        self._lr = with_warmup(config.warmup_lr, self.warmup_steps / self.length, main)
        final_decay = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
        self._weight_decay = make_schedule(config.weight_decay_schedule, config.weight_decay, final_decay)

    def __call__(self, step: int) -> Rates:
        """Return the values of step ``step``, counted from 0."""
        fraction = min(1.0, max(0, step + self.offset) / self.length)
        return Rates(self._lr(fraction), self._weight_decay(fraction))


class Optimization:
    """Combines a run's optimizer with its schedules and gradient clipping."""

    def __init__(self, config: OptimConfig, groups: Sequence[ParamGroup], schedules: RateSchedules) -> None:
        self.config, self.groups, self.schedules = config, groups, schedules
        self.optimizer = OPTIMIZERS.build(config)(
            [{"params": list(g.params), "name": g.name, "decay": g.decay, "lr_scale": g.lr_scale} for g in groups]
        )

    def set_rates(self, step: int) -> Rates:
        """Set and return the values of step ``step``."""
        rates = self.schedules(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rates.lr * group["lr_scale"]
            group["weight_decay"] = rates.weight_decay if group["decay"] else 0.0
        return rates

    def clip(self) -> Tensor:
        """Clip gradients as their groups ask; return the norm of all gradients before clipping, on the device."""
        clipped = [(group.clip, p.grad) for group in self.groups for p in group.params if p.grad is not None]
        norms = _norms([gradient for _, gradient in clipped])
        if self.config.clip_grad_norm is not None:
            parts = [(clip, local(gradient), norm) for (clip, gradient), norm in zip(clipped, norms, strict=True)]
            for mode in (Clip.globally, Clip.per_parameter):
                chosen = [(gradient, norm) for clip, gradient, norm in parts if clip is mode]
                if chosen:
                    self._shrink(*zip(*chosen, strict=True), together=mode is Clip.globally)
        return norms.norm()

    def _shrink(self, gradients: Sequence[Tensor], norms: Sequence[Float[Tensor, ""]], *, together: bool) -> None:
        """Scale gradients down until the norm of each, or of all together, is within the limit."""
        each = torch.stack(norms)
        scales = (self.config.clip_grad_norm / ((each.norm() if together else each) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scales if together else list(scales.unbind()))


def _norms(gradients: Sequence[Tensor]) -> Float[Tensor, "P"]:
    """Return the norm of each gradient, summed over ranks where it is sharded."""
    norms = torch.stack(torch._foreach_norm([local(gradient) for gradient in gradients]))
    if not isinstance(gradients[0], DTensor):
        return norms
    return sum_over_shards(norms.square(), gradients[0]).sqrt()


def check_groups(groups: Iterable[ParamGroup], module: nn.Module) -> None:
    """Raise ValueError unless every trainable parameter of ``module`` is in exactly one group."""
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    owners: dict[int, str] = {}
    for group in groups:
        for parameter in group.params:
            if id(parameter) in owners:
                both = f"{owners[id(parameter)]!r} and {group.name!r}"
                raise ValueError(f"param_groups(): {names.get(id(parameter))} is in groups {both}")
            owners[id(parameter)] = group.name
    missing = [name for key, name in names.items() if key not in owners]
    if missing:
        raise ValueError(f"param_groups(): no group holds {', '.join(missing)}")
