"""Exponential moving averages (EMA) of weights: their config, the copy that holds them, and their update."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.schedules import ScheduleShape, make_schedule
from ssl_zoo.settings import Settings, setting


@dataclass
class EmaConfig(Settings):
    """Momentum of an EMA over a run. Defaults: I-JEPA (arXiv 2301.08243, appendix A.1)."""

    section = "ema"

    momentum: float = setting(0.996, "EMA momentum at the start of the run", at_least=0, at_most=1)
    final_momentum: float = setting(1.0, "EMA momentum at its end", at_least=0, at_most=1)
    schedule: ScheduleShape = setting(ScheduleShape.linear, "how the momentum changes: constant, linear or cosine")
    anneal_fraction: float = setting(
        1.0, "fraction of the run after which the momentum is final; above 1 the run ends before", above=0
    )

    def momentum_at(self, fraction: float) -> float:
        """Return the momentum at a fraction of the run."""
        return make_schedule(self.schedule, self.momentum, self.final_momentum)(
            min(1.0, fraction / self.anneal_fraction)
        )


class EmaCopy(nn.Module):
    """A module with the EMA weights of another one: never trained, always in eval mode, called without gradient."""

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(online).requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> "EmaCopy":
        """Stay in eval mode: a teacher drops no path and no attention while the student trains."""
        return super().train(False)


@dataclass(frozen=True)
class Ema:
    """The EMA of one module's weights, kept in an ``EmaCopy``.

    Holds the places of both modules' tensors, never the tensors: ``fully_shard`` replaces parameters, and an older list
    would leave the EMA weights unchanged without any error.

    Attributes:
        momentum: fraction of the run -> m in ``ema = m * ema + (1 - m) * online``.
    """

    online: nn.Module
    copy: EmaCopy
    momentum: Callable[[float], float]

    @torch.no_grad()
    def update(self, fraction: float) -> float:
        """Move the EMA weights by (1 - m) of the difference, copy integer buffers, and return m."""
        momentum = self.momentum(fraction)
        pairs = [(ema[name], online[name]) for ema, online, name in self._places]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([ema for ema, _ in floating], [online for _, online in floating], 1.0 - momentum)
        for ema, online in pairs:
            if not ema.is_floating_point():
                ema.copy_(online)
        return momentum

    @cached_property
    def _places(self) -> Sequence[tuple[dict[str, Tensor], dict[str, Tensor], str]]:
        """The dictionaries of both modules that hold a tensor, and its name there; walking the modules takes longer."""
        online_modules, places, seen = dict(self.online.named_modules()), [], set()
        for path, module in self.copy.module.named_modules():
            for kind in ("_parameters", "_buffers"):
                ema, online = getattr(module, kind), getattr(online_modules[path], kind)
                for name, tensor in ema.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))  # a tensor with two names is averaged once
                        places.append((ema, online, name))
        return places
