"""The training loop that the verifiers of runs share, with the settings and schedules of the reference codes."""

import math
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.engine.optim import AdamWConfig, Optimization, Rates, RateSchedules
from ssl_zoo.interop.official import NameMap
from ssl_zoo.method import Batch, Method, MethodConfig, Output, Progress, Step, build_method
from ssl_zoo.nn import ViTConfig, set_fused_attention
from ssl_zoo.targets import TargetConfig
from ssl_zoo.testing.golden.fixture import (
    GLOBAL_GRADIENT_NORM,
    GRADIENT_NORMS,
    LOSSES,
    SCHEDULES,
    Comparison,
    Fixture,
    FixtureError,
    blame,
    outputs,
)

NUMBER = r"([-+.\de]+)"
_ADAMW = rf"AdamW betas \({NUMBER}, {NUMBER}\) eps {NUMBER}"


class Replay(ABC):
    """Repeats a stored run in the engine's order and compares each result as soon as it is there.

    Args:
        schedules: of the reference; None = those of ``optim``.
    """

    def __init__(
        self,
        fixture: Fixture,
        method: Method,
        comparison: Comparison,
        optim: AdamWConfig,
        schedules: Callable[[int], Rates] | None = None,
        *,
        steps_per_epoch: str = "steps_per_epoch",
    ) -> None:
        self.fixture, self.method, self.comparison = fixture, method, comparison
        self.steps_per_epoch = fixture.count(steps_per_epoch)
        self.num_steps = fixture.count("epochs") * self.steps_per_epoch
        ours = RateSchedules(optim, num_steps=self.num_steps, steps_per_epoch=self.steps_per_epoch)
        self.optimization = Optimization(optim, method.param_groups(), schedules or ours)

    @abstractmethod
    def batch(self, number: int) -> Batch:
        """Return the inputs of step ``number``."""

    @abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """Return all gradients under official names."""

    def watched(self) -> Mapping[str, nn.Module]:
        """Name the modules whose outputs in a step ``compare_forward`` gets."""
        return {}

    @abstractmethod
    def compare_forward(self, number: int, batch: Batch, loss: Tensor, seen: Mapping[str, Tensor]) -> None:
        """Compare results of a forward pass."""

    def step_values(self, number: int) -> Mapping[str, float]:
        """Return the reference's values of what the method declares in ``schedules``."""
        return {}

    def momentum(self, number: int) -> float:
        """Return the momentum of all EMAs."""
        return math.nan

    def update_emas(self, number: int, momentum: float) -> None:
        for ema in self.method.emas():
            replace(ema, momentum=lambda _: momentum).update(number / self.num_steps)

    def end_of_step(self, number: int, output: Output) -> Mapping[str, float]:
        """Return further entries of the history."""
        return {}

    def train(self) -> None:
        history: dict[str, list[float]] = defaultdict(list)
        for number in range(self.fixture.count("steps")):
            batch, optimizer = self.batch(number), self.optimization.optimizer
            step = Step.of(
                self.method, Progress(number, self.num_steps, number * batch.num_images, self.steps_per_epoch)
            )
            values = {name: torch.tensor(value) for name, value in self.step_values(number).items()}
            step = replace(step, values={**step.values, **values})
            rates = self.optimization.set_rates(number)
            with outputs(**self.watched()) as seen:
                output = self.method(batch, step)
            self.compare_forward(number, batch, output.loss, seen)
            output.loss.backward()
            self.comparison.add_gradients(f"step{number}.", self.gradients())
            grad_norm = self.optimization.clip()
            for name, gradient in self.gradients().items():
                quantity = f"step{number}.clipped_grad_norm"
                self.comparison.add(f"{quantity}.{name}", gradient.norm(), GRADIENT_NORMS, quantity=quantity)
            self.method.after_backward(step)
            optimizer.step()
            optimizer.zero_grad()
            momentum = self.momentum(number)
            self.update_emas(number, momentum)
            self.method.after_step(step, output.statistics)
            entries = {"loss": output.loss.item(), "loss_float64": output.loss.item(), "grad_norm": grad_norm.item()}
            entries |= {"lr": rates.lr, "wd": rates.weight_decay, "weight_decay": rates.weight_decay}
            entries |= {"momentum": momentum, "ema_decay": momentum, **self.end_of_step(number, output)}
            for key, value in entries.items():
                history[key].append(value)
        for key, series in history.items():
            tolerance = LOSSES if key.startswith("loss") else SCHEDULES
            self.comparison.add_history(key, series, GLOBAL_GRADIENT_NORM if key == "grad_norm" else tolerance)


def reference_method(method: MethodConfig, backbone: ViTConfig, target: TargetConfig | None = None) -> Method:
    """Build a method that computes attention step by step, as the references do; all its weights are replaced later."""
    built = build_method(method, backbone, target, seed=0)
    set_fused_attention(built, False)
    return built


def official_gradients(module: nn.Module, names: NameMap, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + names.official(n): p.grad for n, p in module.named_parameters() if p.grad is not None}


def parsed(fixture: Fixture, key: str, pattern: str, *, default: str) -> Sequence[float]:
    """Return the numbers of a setting that the file gives in words."""
    text = fixture.config.get(key, default)
    match = re.fullmatch(pattern, text) if isinstance(text, str) else None
    if match is None:
        raise FixtureError(f"{fixture.path}: config.{key}={text!r} is unknown; this verifier knows {default!r}")
    return [float(number) for number in match.groups()]


def adamw(fixture: Fixture, key: str = "optimizer", **settings: Any) -> AdamWConfig:
    """Return the optimizer's config, with betas, epsilon and the limit of the gradient norm from the file."""
    *betas, eps = parsed(fixture, key, _ADAMW, default="AdamW betas (0.9, 0.999) eps 1e-8")
    limit = None if fixture.config.get("clip") is None else fixture.number("clip")
    with blame(fixture, "config"):
        return AdamWConfig(betas=betas, eps=eps, clip_grad_norm=limit, **settings)


def reference_rates(fixture: Fixture) -> Callable[[int], Rates]:
    """Return the schedules that the DINO and BEiT codes share.

    The linear warm-up reaches the base rate one step before the cosine starts from it. The weight decay follows a
    cosine over all steps.
    """
    per_epoch = fixture.count("steps_per_epoch")
    total, warmup = fixture.count("epochs") * per_epoch, int(fixture.number("warmup_epochs") * per_epoch)
    base, last = fixture.number("lr"), fixture.number("min_lr")

    def rates(step: int) -> Rates:
        rising = base * step / max(1, warmup - 1)
        lr = rising if step < warmup else cosine(base, last, (step - warmup) / (total - warmup))
        return Rates(lr, cosine(fixture.number("wd"), fixture.number("wd_end"), step / total))

    return rates


def cosine(first: float, last: float, fraction: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * fraction))
