"""The training loop: one optimizer step after another, and nothing else."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from ssl_zoo.data.batch import Batch
from ssl_zoo.data.loader import TrainingData
from ssl_zoo.data.workers import explained
from ssl_zoo.engine.device import autocast, prepare_device, prepare_method
from ssl_zoo.engine.distributed import Processes
from ssl_zoo.engine.graphs import StepGraphs, check_capturable
from ssl_zoo.engine.optim import OptimConfig, Optimization, Rates, RateSchedules, check_groups
from ssl_zoo.engine.precision import run_precision
from ssl_zoo.engine.prefetch import on_device
from ssl_zoo.engine.settings import Parallel, Precision, TrainerConfig
from ssl_zoo.engine.sharding import all_ranks, shard
from ssl_zoo.method import Method, Output, Progress, Step
from ssl_zoo.seeding import seed_for


@dataclass(frozen=True)
class BatchPlan:
    """The split of one optimizer step's images into micro-batches."""

    batch_size: int
    world_size: int
    gradient_accumulation_steps: int

    def __post_init__(self) -> None:
        parts = self.world_size * self.gradient_accumulation_steps
        if self.batch_size % parts:
            low = self.batch_size // parts * parts
            near = ", ".join(str(n) for n in (low, low + parts) if n)
            raise ValueError(
                f"trainer.batch_size={self.batch_size} is no multiple of {self.world_size} ranks x "
                f"trainer.gradient_accumulation_steps={self.gradient_accumulation_steps} = {parts}; nearest: {near}"
            )

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // (self.world_size * self.gradient_accumulation_steps)


def run_length(config: TrainerConfig, num_samples: int) -> tuple[int, int]:
    """Return the optimizer steps of the run and of one epoch.

    An epoch has as many full batches as the data holds, as in the reference schedules; the order of samples itself is
    one endless stream in which every epoch holds each sample once.
    """
    steps_per_epoch = max(1, num_samples // config.batch_size)
    return config.num_steps or math.ceil(config.epochs * steps_per_epoch), steps_per_epoch


@dataclass(frozen=True)
class StepResult:
    """A completed step as hooks read it; tensors stay on the device until somebody logs them.

    Attributes:
        batch: of this rank, on the device.
        output: of this rank: losses whose means over ranks are the step's, means of metrics over micro-batches.
        momentum: of the first EMA, None without any.
        data_seconds: time that the step waited for its batch.
    """

    progress: Progress
    batch: Batch
    output: Output
    rates: Rates
    momentum: float | None
    grad_norm: Tensor
    data_seconds: float


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient of a step is infinite or not a number; ``step`` counts from 0."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or a gradient of step {step + 1} is not finite")
        self.step = step


class Hook:
    """Observes a run.

    Attributes:
        name: unique key of the hook's state in checkpoints.
        follows: names of hooks that must stand before this one, where the run has them.
    """

    name: ClassVar[str] = ""
    follows: ClassVar[Sequence[str]] = ()

    def before_train(self, trainer: "Trainer") -> None: ...

    def before_step(self, trainer: "Trainer") -> None: ...

    def after_step(self, trainer: "Trainer", result: StepResult) -> None: ...

    def after_train(self, trainer: "Trainer") -> None: ...

    def on_exception(self, trainer: "Trainer", error: BaseException) -> None: ...

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def check_order(hooks: Sequence[Hook]) -> None:
    """Raise ValueError where a hook stands before one that it must follow, or two have the same name."""
    places = {hook.name: place for place, hook in enumerate(hooks)}
    if len(places) < len(hooks):
        raise ValueError(f"hooks {[hook.name for hook in hooks]}: every hook needs a name of its own")
    for hook in hooks:
        for other in hook.follows:
            if places.get(other, -1) > places[hook.name]:
                raise ValueError(f"hook {hook.name!r} must come after {other!r}")


class Trainer:
    """Runs a method over its data for a number of optimizer steps.

    Args:
        method: on the CPU; moved to the device of ``processes``.
        hooks: called in this order at every point.
        precision: of matmuls; None resolves ``config.precision`` on this machine.
        phase: opens a named phase of a step: forward, backward (together where a CUDA graph is replayed), clip,
            optimizer, ema. By default phases are named in the traces of torch's profiler.

    Attributes:
        step: optimizer steps completed.
        stop: set by a hook to end after the current step.

    Raises:
        ValueError: settings, hooks, views or masks that don't go together.
    """

    def __init__(
        self,
        method: Method,
        data: TrainingData,
        processes: Processes,
        *,
        optim: OptimConfig,
        config: TrainerConfig,
        seed: int,
        hooks: Sequence[Hook] = (),
        precision: Precision | None = None,
        phase: Callable[[str], AbstractContextManager[object]] = record_function,
    ) -> None:
        check_order(hooks)
        self.data, self.processes, self.config, self.seed, self.hooks = data, processes, config, seed, hooks
        self.phase = phase
        self.device = processes.device
        self.plan = BatchPlan(config.batch_size, processes.world_size, config.gradient_accumulation_steps)
        self.num_steps, self.steps_per_epoch = run_length(config, len(data.source))
        self.precision = precision or run_precision(method, config, processes).precision
        check_capturable(config, self.device, processes.world_size)
        check_accumulation(method, config)
        prepare_device(self.device)
        self.method = prepare_method(method, config, self.device)
        if config.parallel is Parallel.fsdp2:
            # Before anything holds its parameters, which this replaces.
            shard(self.method, config, all_ranks(self.device))
        groups = self.method.param_groups()
        check_groups(groups, self.method)
        schedules = RateSchedules(optim, num_steps=self.num_steps, steps_per_epoch=self.steps_per_epoch)
        self.optimization = Optimization(optim, groups, schedules)
        self.emas = self.method.emas()
        self.method.check_inputs({view.name: view for view in data.views}, data.sample_masks())
        self.wrapped: nn.Module = self.method
        if config.parallel is Parallel.ddp and processes.world_size > 1:
            self.wrapped = DistributedDataParallel(self.method)
        eager = self._forward_backward
        self.compute = StepGraphs(eager, self.method, phase) if config.cuda_graphs else eager
        self._modes = [(module, module.training) for module in self.method.train().modules()]
        self.step = 0
        self.stop = False
        self._first_bad_step = torch.full((), -1, device=self.device)

    def train(self) -> None:
        """Run the remaining steps, with every hook's ``after_train`` or ``on_exception`` at the end."""
        try:
            self._each("before_train")
            self._settle_buckets()
            batches = on_device(self.data, self.data.batches(self.step, self.num_steps), self.device)
            while not self.is_done and not self.stop:
                self._each("before_step")
                result = self._run_step(self.progress, batches)
                self.step += 1
                self._each("after_step", result)
            self._each("after_train")
        except BaseException as error:
            self._each("on_exception", error)
            if explanation := explained(error):
                raise explanation from error
            raise

    @property
    def progress(self) -> Progress:
        """Progress at the beginning of the next step."""
        return Progress(self.step, self.num_steps, self.step * self.plan.batch_size, self.steps_per_epoch)

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def is_done(self) -> bool:
        return self.step >= self.num_steps

    def _run_step(self, progress: Progress, batches: Iterator[Batch]) -> StepResult:
        start = time.perf_counter()
        batch = next(batches)
        data_seconds = time.perf_counter() - start
        step, optimizer = Step.of(self.method, progress, self.device, self.processes.world), self.optimization.optimizer
        rates = self.optimization.set_rates(self.step)
        self._train_mode()
        # Drop-path samples from torch's global generator; seeding it here makes its numbers a function of the step.
        torch.manual_seed(seed_for(self.seed, "forward", self.step, self.processes.rank))
        output = self.compute(batch, step)
        self.method.after_backward(step)
        with self.phase("clip"):
            grad_norm = self.optimization.clip()
            self._check_finite(output.loss, grad_norm)
        with self.phase("optimizer"), autocast(self.precision, self.device):  # Muon has matmuls
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with self.phase("ema"):
            momenta = [ema.update(progress.fraction) for ema in self.emas]
        self.method.after_step(step, {name: self.processes.mean(s) for name, s in output.statistics.items()})
        momentum = momenta[0] if momenta else None
        return StepResult(progress, batch, output, rates, momentum, grad_norm, data_seconds)

    def _train_mode(self) -> None:
        """Call ``method.train()``, which takes a millisecond or two, only where a hook has changed a module's mode."""
        if any(module.training is not mode for module, mode in self._modes):
            self.method.train()

    def _forward_backward(self, batch: Batch, step: Step) -> Output:
        parts = batch.micro_batches(self.config.gradient_accumulation_steps)
        outputs = []
        for part, share in zip(parts, self._shares(parts), strict=True):
            last = part is parts[-1]
            # Sharded gradients are reduced after each micro-batch, since otherwise every rank would hold all of them.
            with nullcontext() if last or self.wrapped is self.method else self.wrapped.no_sync():
                with self.phase("forward"), autocast(self.precision, self.device):
                    output = self.wrapped(part, step)
                loss = output.loss * share
                with self.phase("backward"):
                    loss.backward()
            losses = {name: term.detach() * share for name, term in output.losses.items()}
            outputs.append(Output(losses, output.metrics, output.statistics))
        if len(outputs) == 1:
            return outputs[0]
        losses = {k: torch.stack([o.losses[k] for o in outputs]).sum() for k in outputs[0].losses}
        metrics = {k: torch.stack([o.metrics[k] for o in outputs]).mean() for k in outputs[0].metrics}
        statistics = {k: torch.stack([o.statistics[k] for o in outputs]).mean(0) for k in outputs[0].statistics}
        return Output(losses, metrics, statistics)

    def _settle_buckets(self) -> None:
        """Run one backward pass without a step, after which DDP keeps its buckets.

        DDP forms its buckets again after its first pass, and from three ranks on the order of sums depends on the place
        in a bucket: without this the first step of a resumed run would not be bit-equal to that of an uninterrupted
        one.
        """
        if self.wrapped is self.method or self.processes.world_size < 3 or self.is_done:
            return
        batch = self.data.to_device(self.data.batch(self.step), self.device)
        step = Step.of(self.method, self.progress, self.device, self.processes.world)
        self.method.train()
        with autocast(self.precision, self.device):
            output = self.wrapped(batch.micro_batches(self.config.gradient_accumulation_steps)[-1], step)
        output.loss.backward()
        self.optimization.optimizer.zero_grad(set_to_none=True)

    def _shares(self, parts: Sequence[Batch]) -> Sequence[float | Tensor]:
        """Return factors of the micro-batches' losses, so that their sum, averaged over ranks, is the step's loss."""
        weights = [self.method.loss_weight(part) for part in parts]
        if weights[0] is None:
            return [1 / len(parts)] * len(parts)
        weights = torch.stack(weights)
        return (weights / self.processes.mean(weights.sum())).unbind()

    def _check_finite(self, loss: Tensor, grad_norm: Tensor) -> None:
        # The mark stays once set, and the fused optimizer skips its update while it is: the weights remain those that
        # met the bad batch, and on a GPU the host may look later without stopping the stream at every step.
        bad = ~(loss + grad_norm).isfinite() & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad, self.step, self._first_bad_step)
        if self.device.type != "cuda":  # also on MPS, whose fused optimizer knows no found_inf
            self.raise_if_not_finite()
        else:
            self.optimization.optimizer.found_inf = (self._first_bad_step >= 0).float()

    def raise_if_not_finite(self) -> None:
        """Raise NonFiniteLoss if any step so far had a loss or gradient that is not finite; syncs the device."""
        step = int(self._first_bad_step.item())
        if step >= 0:
            raise NonFiniteLoss(step)

    def _each(self, point: str, *arguments: object) -> None:
        for hook in self.hooks:
            getattr(hook, point)(self, *arguments)


def check_accumulation(method: Method, config: TrainerConfig) -> None:
    """Refuse to accumulate gradients for a loss that couples the images of a step."""
    coupling = [part for part in (method, method.regularizer) if part is not None and part.couples_images]
    if coupling and config.gradient_accumulation_steps > 1:
        raise ValueError(
            f"trainer.gradient_accumulation_steps={config.gradient_accumulation_steps}: the loss of "
            f"{type(coupling[0]).__name__} couples all images of a step and would change with their split into "
            "micro-batches; set it to 1 and use more ranks or trainer.activation_checkpointing=true instead"
        )
