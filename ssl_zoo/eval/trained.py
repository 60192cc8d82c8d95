"""Settings and the path of evaluators that train: cached features or a stream of augmented images, and presets."""

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.eval.base import EVALUATORS, CannotEvaluate, EvaluatedModel, Evaluator, EvaluatorConfig, plain
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.presets import changes_of, check_preset
from ssl_zoo.eval.ranks import is_main_process
from ssl_zoo.eval.subsets import listed_rows
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting

log = logging.getLogger(__name__)


class FeatureSource(Enum):
    """Where a probe's features come from."""

    auto = "auto"  # cached where they fit into max_gigabytes and nothing augments the images
    cached = "cached"  # extracted once and held in memory
    streamed = "streamed"  # encoded again in every epoch; memory does not depend on the number of images


class Selection(Enum):
    """Images on which the best head of a grid is chosen."""

    held_out = "held_out"  # a part of the train images
    test = "test"  # as some papers do; the score is then named ..._best_on_test


@dataclass
class TrainedConfig(EvaluatorConfig):
    """Base of evaluators that train on augmented images.

    Attributes:
        added: settings that earlier versions lacked. They are recorded where they differ from their defaults, so that
            hashes of older protocols stay what they were.
        unrecorded: settings that don't change what is computed, or that other entries of the protocol stand for.
    """

    added: ClassVar[frozenset[str]] = frozenset()
    unrecorded: ClassVar[frozenset[str]] = frozenset(
        {"preset", "features", "max_gigabytes", "checkpoint_every", "split_file"}
    )

    preset: str = setting("", "a paper's protocol, which sets the keys that are not set explicitly; empty = none")
    split_file: str = setting("", "file of the names of the images to train on, e.g. of a 1 % split; empty = all")
    horizontal_flip: float = setting(
        0.0, "probability that a train image is flipped; left and right are exchanged", at_least=0, at_most=1
    )
    crop_scale: list[float] = setting(
        [1.0, 1.0],
        "area of random crops of train images, [low, high]; [1, 1] = the view of evaluations",
        above=0,
        at_most=1,
        length=2,
    )
    interpolation: str = setting("bicubic", "of random crops: bilinear or bicubic", one_of=("bilinear", "bicubic"))
    checkpoint_every: int = setting(
        500, "steps between two checkpoints of a streamed training, where results go to a folder; 0 = none", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"{self.key('crop_scale')}={self.crop_scale} must be [low, high] with low <= high")
        if self.preset:
            check_preset(self.section.removeprefix("probe."), self.preset)

    @property
    def augments(self) -> bool:
        """Return whether train images differ from epoch to epoch."""
        return list(self.crop_scale) != [1.0, 1.0] or self.horizontal_flip > 0

    @property
    def view(self) -> ViewConfig:
        """Return the view of train images."""
        settings = {"crop_scale": list(self.crop_scale), "horizontal_flip": self.horizontal_flip}
        return ViewConfig(**settings, interpolation=self.interpolation)


@dataclass
class ProbeHeadsConfig(TrainedConfig):
    """Base of probes whose heads share one forward pass of the frozen encoder."""

    layer_counts: list[int] = setting([], "values of num_layers to choose from; [] = num_layers alone", at_least=1)
    features: FeatureSource = setting(FeatureSource.auto, "auto, cached or streamed")
    max_gigabytes: float = setting(8.0, "limit of the features held in memory by the cached path", above=0)
    selection: Selection = setting(Selection.held_out, "images on which the best head is chosen: held_out or test")
    validation_fraction: float = setting(0.1, "fraction of train images that settings are chosen on", above=0, below=1)
    refit: bool = setting(True, "train the chosen settings again on all train images, held-out ones included")
    seed: int = setting(0, "seed of initial weights, order, augmentation and held-out images")

    def is_streamed(self, name: str, num_images: int, num_bytes: int) -> bool:
        """Decide where the features come from, and log it.

        Args:
            num_images: train and test images.
            num_bytes: size of their features in memory.

        Raises:
            ValueError: ``features=cached``, and augmentation or the size of the features forbids it.
        """
        size, reason = _size(num_images, num_bytes), self.against_cache(num_images, num_bytes)
        if self.features is FeatureSource.cached and reason:
            key = self.key("features")
            raise ValueError(
                f"{name}: {key}=cached, but {reason}; use {key}=streamed, or change the setting or probe.train_samples"
            )
        streamed = self.features is FeatureSource.streamed or bool(reason)
        if is_main_process():
            limit = f"{self.key('max_gigabytes')}={self.max_gigabytes:g}"
            why = reason or (f"{self.key('features')}=streamed" if streamed else f"{size}, at most {limit}")
            log.info("%s: %s, since %s", name, "streamed through the encoder" if streamed else "cached features", why)
        return streamed

    def against_cache(self, num_images: int, num_bytes: int) -> str:
        """Return why features can't be held in memory; empty where they can."""
        if self.augments:
            changed = "crop_scale" if list(self.crop_scale) != [1.0, 1.0] else "horizontal_flip"
            return f"{self.key(changed)}={getattr(self, changed)} augments the train images"
        if num_bytes > 1e9 * self.max_gigabytes:
            return f"{_size(num_images, num_bytes)}, more than {self.key('max_gigabytes')}={self.max_gigabytes:g}"
        return ""


def _size(num_images: int, num_bytes: int) -> str:
    return f"the features of {num_images} images take {num_bytes / 1e9:.1f} GB"


def cost_of_heads(config: ProbeHeadsConfig, workload: Workload, width: int, num_heads: int) -> Cost:
    """Return the cost of a probe whose heads share forward passes, without the heads' own work.

    Args:
        width: values of an image's features of all kinds.
        num_heads: heads of the grid.
    """
    num_bytes = 4 * width * workload.num_images
    if config.features is not FeatureSource.streamed and not config.against_cache(workload.num_images, num_bytes):
        how = "cached features of all images on every rank; the heads' own work is not counted"
        return Cost(num_bytes + workload.part_bytes(width), workload.num_images, 0, how)
    is_grid, held_out = num_heads > 1 and config.selection is Selection.held_out, config.validation_fraction
    rounds = 1 - held_out + config.refit if is_grid else 1.0
    encoded = config.epochs * rounds * workload.num_train + held_out * is_grid * workload.num_train + workload.num_test
    how = f"streamed: {config.epochs} epochs x {rounds:.1f}; activations and the heads' own work are not counted"
    return Cost(4 * width * workload.batch_size, encoded, 0, how)


class TrainedEvaluator(Evaluator):
    """Base of evaluators that train: their protocol records presets, and settings added later where they differ."""

    config: TrainedConfig

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        if self.config.split_file:
            names = model.train.source.sample_name
            rows = listed_rows(self.config.split_file, model.train.index, names)
            model = model.with_train(model.train.take(rows))
        return self.scores(model)

    @abstractmethod
    def scores(self, model: EvaluatedModel) -> Sequence[Score]:
        """Score the encoder, trained on all train images of ``model``; as ``Evaluator``."""

    def protocol(self, model: EvaluatedModel, **varied: object) -> dict[str, object]:
        config = self.config
        protocol = super().protocol(model)
        defaults = type(config)()
        for name in config.unrecorded | config.added:
            if name in config.unrecorded or getattr(config, name) == getattr(defaults, name):
                protocol.pop(name, None)
        if config.preset:
            values = {key: plain(value) for key, value in dataclasses.asdict(config).items()}
            protocol["preset"] = config.preset
            protocol["preset_changes"] = changes_of(EVALUATORS.name_of(config), config.preset, values)
        return {**protocol, **varied}


def check_split_labels(evaluator: str, model: EvaluatedModel) -> torch.Tensor:
    """Return the labels of the train images, after checks that need no image.

    Raises:
        CannotEvaluate: images without labels, or train images of a single class.
    """
    for name, split in (("train", model.train), ("test", model.test)):
        if split.labels is None or bool((split.labels[split.index] < 0).any()):
            raise CannotEvaluate(
                f"{evaluator}: some {name} images have no label; use labelled data or probe.evaluators=[]"
            )
    labels = model.train.labels[model.train.index]
    if len(labels.unique()) < 2:
        raise CannotEvaluate(f"{evaluator}: all train images are of one class; raise probe.train_samples")
    return labels
