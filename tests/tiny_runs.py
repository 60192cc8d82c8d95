"""Tiny trainings on images of noise: a few milliseconds a step."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from tiny_methods import TINY_BACKBONE, TINY_MASKS, tiny_method, views_of
from torch import Tensor

from ssl_zoo.data.loader import LoaderConfig, TrainingData
from ssl_zoo.data.sources import Source, SourceConfig, Split
from ssl_zoo.engine.alarm import CollapseAlarm
from ssl_zoo.engine.build import build_generators, build_views
from ssl_zoo.engine.distributed import Processes
from ssl_zoo.engine.hooks import Checkpointer
from ssl_zoo.engine.loggers import LOGGERS, LoggedRun, Logger, Tags
from ssl_zoo.engine.metrics import Metrics, Writer
from ssl_zoo.engine.optim import AdamWConfig
from ssl_zoo.engine.settings import TrainerConfig
from ssl_zoo.engine.trainer import Hook, StepResult, Trainer
from ssl_zoo.masks import MASKS
from ssl_zoo.method import Method
from ssl_zoo.seeding import generator_for


class Noise(Source):
    """Images of noise, each a function of its index."""

    image_size = (16, 16)

    def __init__(self, num_samples: int = 40) -> None:
        super().__init__(SourceConfig(), Split.train)
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def image(self, index: int) -> UInt8[Tensor, "3 H W"]:
        values = torch.rand(3, 16, 16, generator=generator_for("noise", index))
        return (values * 255).to(torch.uint8)

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B 3 H W"]:
        return torch.stack([self.image(int(index)) for index in indices])

    def sample_name(self, index: int) -> str:
        return f"noise {index}"


class StopAfter(Hook):
    """Stops a run as a signal would."""

    name = "stop_after"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        trainer.stop = trainer.step == self.step


def tiny_data(
    method: Method,
    ranks: Processes,
    batch_size: int,
    source: Source | None = None,
    masks: str | None = "multiblock",
) -> TrainingData:
    views = build_views(views_of(method), TINY_BACKBONE)
    mask_config = None if masks is None else MASKS.config_of(masks)(**TINY_MASKS.get(masks, {}))
    return TrainingData(
        source or Noise(),
        views,
        build_generators(views, mask_config, TINY_BACKBONE),
        seed=0,
        batch_size=batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        config=LoaderConfig(num_workers=0),
    )


def logger(name: str, run: Path, tags: Tags | None = None, **settings: object) -> Logger:
    """A logger of a run without a configuration."""
    config = LOGGERS.config_of(name)(**settings)
    return LOGGERS.get(name)(config, LoggedRun(run, "seed: 0", {"seed": 0}, "train", tags or Tags()))


ALONE = Processes(0, 1, torch.device("cpu"))


def tiny_trainer(
    run: Path,
    *,
    method: Method | None = None,
    masks: str | None = "multiblock",
    alarm: CollapseAlarm | None = None,
    hooks: Sequence[Hook] = (),
    writers: Sequence[Writer] = (),
    ranks: Processes = ALONE,
    source: Source | None = None,
    optim: AdamWConfig | None = None,
    **settings: object,
) -> Trainer:
    """A trainer with metrics (every step) and checkpoints in ``run``; ``hooks`` stand before the checkpointer."""
    config = TrainerConfig(**{"batch_size": 8, "num_steps": 6, "checkpoint_every": 3, **settings})
    method = method or tiny_method("ijepa")
    writers = [*([logger("jsonl", run)] if ranks.is_main else []), *writers]
    checkpointer = Checkpointer(run, config, {"method": "ijepa", "config": {}})
    return Trainer(
        method,
        tiny_data(method, ranks, config.batch_size, source, masks),
        ranks,
        optim=optim or AdamWConfig(warmup_lr=2e-4, warmup_epochs=0.2),
        config=config,
        seed=0,
        hooks=[Metrics(1, writers, alarm), *([alarm] if alarm else []), *hooks, checkpointer],
    )


def checkpointer_of(trainer: Trainer) -> Checkpointer:
    return trainer.hooks[-1]
