"""A benchmark case: a recipe in its own processes, which train the requested steps and then wait."""

import itertools
import multiprocessing
import os
import pickle
import statistics
import timeit
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port

from ssl_zoo.data.batch import Batch
from ssl_zoo.data.loader import TrainingData
from ssl_zoo.engine.build import RunConfig, build_data, build_generators, build_run_method, build_views
from ssl_zoo.engine.distributed import Processes, processes
from ssl_zoo.engine.metrics import peak_memory
from ssl_zoo.engine.precision import PrecisionChoice, run_precision
from ssl_zoo.engine.run_directory import environment
from ssl_zoo.engine.settings import Precision
from ssl_zoo.engine.trainer import Hook, StepResult, Trainer
from ssl_zoo.planning.plan import count_flops
from ssl_zoo.plugins import discover
from ssl_zoo.seeding import generator_for
from ssl_zoo.testing.benchmark.baselines.base import BaselineTraining
from ssl_zoo.testing.benchmark.baselines.catalogue import build_baseline
from ssl_zoo.testing.benchmark.clock import Clock
from ssl_zoo.testing.benchmark.peak import matrix_peak

_FIXED_COST_STEPS = {"cpu": 6, "cuda": 60}  # on a GPU the first of each shape are slower
_DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp32: torch.float32}
_ENDLESS = 10**9  # steps


@dataclass(frozen=True)
class Case:
    """A recipe to be timed.

    Attributes:
        baseline: name of the baseline that trains instead of the recipe's method.
        with_data: whether batches come from the recipe's data; otherwise every step has the same batch of noise.
    """

    name: str
    config: RunConfig
    baseline: str | None = None
    with_data: bool = False
    world_size: int = 1
    plugins: Sequence[str] = ()

    @property
    def work(self) -> tuple[object, ...]:
        """What a baseline takes from a recipe; its column serves all recipes with equal work."""
        config = self.config
        parts = (config.method, config.backbone, config.views, config.masks, config.targets, config.optim)
        return *parts, config.trainer.batch_size, config.trainer.precision


@dataclass(frozen=True)
class Facts:
    """Facts about a case that are known before its first timed step."""

    batch_size: int
    precision: str
    environment: Mapping[str, Any]  # versions, code, machine
    flops_per_image: Mapping[str, float]  # of forward, backward, step; without the optimizer
    masks_seconds: float | None  # sampling the masks of one step on one thread, parallel to the step
    fixed_seconds: float | None  # of a step with one image per micro-batch: the cost that no batch size saves
    encoder_parameters: int | None = None
    differences: Sequence[str] = ()  # of a baseline from its recipe


class CaseRunner:
    """Runs a case in its own processes; ``steps`` trains and returns the duration of each phase."""

    def __init__(self, case: Case) -> None:
        self.case = case
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes, port = [], [], str(get_free_port())
        for rank in range(case.world_size):
            here, there = context.Pipe()
            # Its classes may come from plug-ins, which the process has to load first.
            pickled = pickle.dumps(case)
            process = context.Process(target=_serve, args=(there, case.plugins, pickled, rank, port))
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        self.facts: Facts = self._receive()

    def steps(self, count: int) -> Sequence[Mapping[str, float]]:
        """Train ``count`` steps; return the seconds of every phase of each, and of the "step" as a whole."""
        return self._ask(("steps", count))

    def peak(self) -> float:
        """Measure the speed of this machine's fastest matmul now, in FLOP/s, summed over ranks."""
        return self._ask(("peak", 0)) * self.case.world_size

    def memory(self) -> int | None:
        """Return the peak memory of the first rank in bytes, None where the system reports none."""
        return self._ask(("memory", 0))

    def close(self) -> None:
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # the process has ended already
                pipe.send(("stop", 0))
        for process in self._processes:
            process.join()

    def _ask(self, request: tuple[str, int]) -> Any:
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # a process that failed has left its error in the pipe
                pipe.send(request)
        return self._receive()

    def _receive(self) -> Any:
        replies = []
        for pipe in self._pipes:
            try:
                replies.append(pipe.recv())
            except EOFError:
                raise RuntimeError(f"{self.case.name}: a process of this recipe died; its error is above") from None
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies[0]


def _serve(pipe: Connection, plugins: Sequence[str], pickled: bytes, rank: int, port: str) -> None:
    discover(plugins)
    case: Case = pickle.loads(pickled)
    if case.world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        torch.set_num_threads(max(1, torch.get_num_threads() // case.world_size))
    try:
        with processes(case.config.trainer.device, case.config.trainer.parallel) as ranks:
            (_train if case.baseline is None else _train_baseline)(pipe, case, ranks)
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        pipe.send(error)


def _requested_steps(pipe: Connection, device: torch.device, precision: Precision) -> Iterator[int]:
    """Answer requests until the last one; yield the numbers of steps of those that ask for steps."""
    while True:
        request, count = pipe.recv()
        if request == "stop":
            return
        if request == "steps":
            yield count
        else:
            pipe.send(matrix_peak(device, _DTYPES[precision]) if request == "peak" else peak_memory(device))


class _WholeSteps(Hook):
    """Times every step."""

    name = "whole_steps"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def before_step(self, trainer: Trainer) -> None:
        self.clock.new_step()
        self.clock.start_step()

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        self.clock.stop_step()


class _OnDemand(_WholeSteps):
    """Holds the training loop until the next request asks for steps."""

    name = "on_demand"

    def __init__(self, pipe: Connection, facts: Facts, clock: Clock) -> None:
        super().__init__(clock)
        self.pipe, self.facts = pipe, facts

    def before_train(self, trainer: Trainer) -> None:
        self.pipe.send(self.facts)
        self.requests = _requested_steps(self.pipe, trainer.device, trainer.precision)
        self._wait(trainer)

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        super().after_step(trainer, result)
        self.data_seconds.append(result.data_seconds)
        self.left -= 1
        if self.left == 0:
            phases = self.clock.collect()
            waits = zip(phases, self.data_seconds, strict=True)
            self.pipe.send([{**step, "data wait": wait} for step, wait in waits])
            self._wait(trainer)

    def _wait(self, trainer: Trainer) -> None:
        self.data_seconds: list[float] = []
        self.left = next(self.requests, 0)
        trainer.stop = not self.left


class _SameNoise(TrainingData):
    """Yields the same batch of noise, page-locked where there is a GPU, with new masks in each step."""

    def batch(self, step: int) -> Batch:
        rows = self._rows
        masks = {name: m.map(lambda tensor: tensor[rows]) for name, m in self.masks(step).items()}
        batch = Batch(self.noise, masks)
        return batch.pin_memory() if torch.cuda.is_available() else batch

    @cached_property
    def noise(self) -> Mapping[str, torch.Tensor]:
        generator, count = generator_for("noise"), self._rows.stop - self._rows.start
        noise = {
            view.name: torch.randint(256, (count, view.channels, *view.size), generator=generator, dtype=torch.uint8)
            for view in self.views
        }
        return Batch(noise).pin_memory().views if torch.cuda.is_available() else noise


def _data(config: RunConfig, ranks: Processes, with_data: bool) -> TrainingData:
    if with_data:
        return build_data(config, ranks)
    views = build_views(config.views, config.backbone)
    return _SameNoise(
        range(_ENDLESS),  # in place of a source: only its length is read
        views,
        build_generators(views, config.masks, config.backbone),
        seed=config.seed,
        batch_size=config.trainer.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        config=replace(config.loader, num_workers=0),
    )


def _trainer(config: RunConfig, ranks: Processes, data: TrainingData, **settings: Any) -> Trainer:
    method = build_run_method(config)
    return Trainer(method, data, ranks, optim=config.optim, config=config.trainer, seed=config.seed, **settings)


def _train(pipe: Connection, case: Case, ranks: Processes) -> None:
    config = replace(case.config, trainer=replace(case.config.trainer, num_steps=_ENDLESS))
    choice = run_precision(build_run_method(config, device="meta"), config.trainer, ranks)
    config = replace(config, trainer=replace(config.trainer, precision=choice.precision))
    facts = _facts(config, ranks, choice)
    clock = Clock(ranks.device)
    data = _data(config, ranks, case.with_data)
    trainer = _trainer(config, ranks, data, hooks=[_OnDemand(pipe, facts, clock)], phase=clock)
    clock.watch(trainer.method)
    trainer.train()


def _facts(config: RunConfig, ranks: Processes, choice: PrecisionChoice) -> Facts:
    views = build_views(config.views, config.backbone)
    generators = build_generators(views, config.masks, config.backbone)
    meta = build_run_method(config, device="meta")
    batch_size = config.trainer.batch_size
    trials = itertools.count()
    seconds = timeit.repeat(
        lambda: [g(batch_size, generator_for("benchmark", next(trials))) for g in generators.values()], number=1
    )
    return Facts(
        batch_size,
        choice.precision.value,
        environment(ranks, choice),
        count_flops(meta, views, generators),
        statistics.median(seconds),
        _fixed_cost(config, ranks),
        _num_parameters(meta.encoder),
    )


def _fixed_cost(config: RunConfig, ranks: Processes) -> float:
    """Measure the seconds of a step on one image per rank and micro-batch; the fastest of several counts."""
    smallest = ranks.world_size * config.trainer.gradient_accumulation_steps
    steps = _FIXED_COST_STEPS[ranks.device.type]
    config = replace(config, trainer=replace(config.trainer, batch_size=smallest, num_steps=steps))
    clock = Clock(ranks.device)
    _trainer(config, ranks, _data(config, ranks, with_data=False), hooks=[_WholeSteps(clock)]).train()
    return min(step["step"] for step in clock.collect())


def _train_baseline(pipe: Connection, case: Case, ranks: Processes) -> None:
    config = case.config
    choice = run_precision(build_run_method(config, device="meta"), config.trainer, ranks)
    torch.manual_seed(config.seed)
    baseline = build_baseline(case.baseline, config)
    training = BaselineTraining(baseline, ranks.device, choice.precision)
    pipe.send(
        Facts(
            config.trainer.batch_size,
            choice.precision.value,
            environment(ranks, choice),
            training.flops_per_image(),
            None,
            None,
            _num_parameters(baseline.encoder),
            baseline.differences,
        )
    )
    clock, data, steps = Clock(ranks.device), _data(config, ranks, case.with_data), itertools.count()
    for count in _requested_steps(pipe, ranks.device, choice.precision):
        for _ in range(count):
            # Outside of the step: a training loads batches and samples their masks in parallel to it.
            batch = data.to_device(data.batch(next(steps)), ranks.device)
            with clock.step():
                training.step(batch)
        pipe.send(list(clock.collect()))


def _num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
