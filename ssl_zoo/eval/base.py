"""The contract of evaluators: a protocol maps a frozen encoder and labelled images to scores."""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar, TypeVar

import torch

from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.features import Pooling, extract_shard, feature_dim
from ssl_zoo.eval.ranks import on_all_ranks, rank_and_size
from ssl_zoo.eval.shards import Features, FeatureShard
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.eval.stream import EncoderInput
from ssl_zoo.eval.streaming import Checkpoints
from ssl_zoo.nn import ViT
from ssl_zoo.registry import Registry
from ssl_zoo.scores import Score
from ssl_zoo.settings import Settings, setting


@dataclass
class EvaluatorConfig(Settings):
    """Base of every evaluator's config: which features it uses. Registration sets ``section`` to ``probe.<name>``."""

    pooling: Pooling = setting(Pooling.average, "how an image's tokens become its feature")
    num_layers: int = setting(1, "number of last blocks whose pooled tokens are concatenated", at_least=1)
    final_norm: bool = setting(True, "apply the encoder's final norm before pooling")


T = TypeVar("T", Features, FeatureShard)
_Kind = tuple[Pooling, int, bool]  # of features: pooling, number of layers, final norm


class EvaluatedModel:
    """A frozen encoder with labelled train and test images; features are extracted once for all evaluators.

    Evaluators that need more than features use ``encoder`` (which they copy before training it), ``train``, ``test``.

    Args:
        autocast: a reusable precision context, such as ``torch.autocast``.
        cache: keeps features across processes; tokens are not cached because of their size.
        progress: called with a split, the number of images encoded and the total while features are extracted.
        encoder_input: how train images are rendered that stream through the encoder.
        checkpoints: keeps the state of streamed trainings; None where an interrupted one starts again.
        corrupted: corrupted versions of ``test``, which every evaluator scores beside it.
    """

    def __init__(
        self,
        encoder: ViT,
        train: EvaluationSplit,
        test: EvaluationSplit,
        *,
        device: torch.device | str = "cpu",
        autocast: AbstractContextManager | None = None,
        cache: FeatureCache | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        encoder_input: EncoderInput,
        checkpoints: Checkpoints | None = None,
        corrupted: Sequence[EvaluationSplit] = (),
    ) -> None:
        self.encoder, self.train, self.test, self.corrupted = encoder, train, test, corrupted
        self.device, self.autocast = torch.device(device), autocast
        self.cache, self.progress = cache, progress
        self.encoder_input, self.checkpoints = encoder_input, checkpoints
        self._train_shards: dict[_Kind, FeatureShard] = {}
        self._test_shards: dict[_Kind, FeatureShard] = {}
        self._train_complete: dict[_Kind, Features] = {}
        self._test_complete: dict[_Kind, Features] = {}

    def with_test(self, test: EvaluationSplit) -> "EvaluatedModel":
        """Return the same encoder and train images, their features included, with other test images."""
        model = copy.copy(self)
        model.test, model.corrupted, model._test_shards, model._test_complete = test, (), {}, {}
        return model

    def with_train(self, split: EvaluationSplit) -> "EvaluatedModel":
        """Return the same model with other train images."""
        model = copy.copy(self)
        model.train, model._train_shards, model._train_complete = split, {}, {}
        return model

    def precision(self) -> AbstractContextManager:
        """Return the precision context of the encoder's forward pass."""
        return self.autocast or nullcontext()

    def features(self, config: EvaluatorConfig) -> tuple[Features, Features]:
        """Return the train and test features of all images on every rank, pooled as ``config`` asks."""
        kind = (config.pooling, config.num_layers, config.final_norm)
        if (train := self._known(self._train_complete, kind)) is None:
            train = self._train_complete[kind] = self._shard("train", kind).complete()
        return train, self.test_features(config)

    def test_features(self, config: EvaluatorConfig) -> Features:
        """Return the test features alone, for evaluators that learn from no train image."""
        kind = (config.pooling, config.num_layers, config.final_norm)
        if (test := self._known(self._test_complete, kind)) is None:
            test = self._test_complete[kind] = self._shard("test", kind).complete()
        return test

    def shards(self, config: EvaluatorConfig) -> tuple[FeatureShard, FeatureShard]:
        """Return this rank's part of train and test features, pooled as ``config`` asks; one process has all."""
        kind = (config.pooling, config.num_layers, config.final_norm)
        return self._shard("train", kind), self._shard("test", kind)

    def _shard(self, name: str, kind: _Kind) -> FeatureShard:
        is_train = name == "train"
        split, shards = (self.train, self._train_shards) if is_train else (self.test, self._test_shards)
        if (known := self._known(shards, kind)) is None:
            known = shards[kind] = self._extract(name, split, *kind)
        return known

    def _known(self, features: Mapping[_Kind, T], kind: _Kind) -> T | None:
        """Return features that are there, as such or as slices of those of more layers."""
        if kind in features:
            return features[kind]
        for (pooling, num_layers, final_norm), part in features.items():
            if num_layers > kind[1] and (pooling, final_norm) == (kind[0], kind[2]):
                width = feature_dim(self.encoder, pooling, kind[1])
                return replace(part, values=part.values[..., -width:])
        return None

    def _extract(
        self, name: str, split: EvaluationSplit, pooling: Pooling, num_layers: int, final_norm: bool
    ) -> FeatureShard:
        path = None
        if self.cache is not None and pooling is not Pooling.tokens:
            settings = {"pooling": pooling.value, "num_layers": num_layers, "final_norm": final_norm}
            settings |= {} if split.corruption is None else dataclasses.asdict(split.corruption)
            path = self.cache.path(self.encoder, split.index, split=name, **settings)
            cached = self.cache.read(path, split.labels)
            if on_all_ranks(cached is not None):
                return cached
        features = extract_shard(
            self.encoder,
            split,
            pooling=pooling,
            num_layers=num_layers,
            final_norm=final_norm,
            device=self.device,
            autocast=self.autocast,
            progress=self._reporter(name, split.num_images),
        )
        if path is not None:
            self.cache.write(path, features)
        return features

    def _reporter(self, name: str, num_images: int) -> Callable[[int], None] | None:
        """Return what reports the images of all ranks, which advance alike, given the number of this rank's."""
        if self.progress is None:
            return None
        world_size = rank_and_size()[1]
        return lambda count: self.progress(name, min(count * world_size, num_images), num_images)


class CannotEvaluate(ValueError):
    """The data has too few images, labels or classes for an evaluator."""


class Evaluator(ABC):
    """An evaluator implements one protocol, for a running training and for a finished checkpoint alike.

    In a process group every rank calls it and every rank gets the same scores.

    Attributes:
        needs_test_images: False for evaluators that measure the train images where there is no test image.
        metric_groups: groups in which loggers show scores, for those that belong to another than ``probe``.
    """

    needs_labels: ClassVar[bool] = True
    needs_test_images: ClassVar[bool] = True
    metric_groups: ClassVar[Mapping[str, str]] = {}
    version: ClassVar[int] = 1  # incremented whenever equal settings begin to give another number

    def __init__(self, config: EvaluatorConfig) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        """Score the encoder. The call leaves weights and the global random state unchanged."""

    def on_tests(self, model: EvaluatedModel, tests: Sequence[EvaluationSplit]) -> Sequence[Sequence[Score]]:
        """Score the encoder on several test splits; an evaluator whose training is long trains once for all of them."""
        return [self(model if test is model.test else model.with_test(test)) for test in tests]

    def obstacle(self, train: EvaluationSplit, test: EvaluationSplit) -> str | None:
        """Return what the data lacks for this evaluator and how to provide it, as far as labels and counts tell."""
        if not self.needs_labels:
            return None
        if train.labels is None or test.labels is None:
            return "the data has no labels; with data=imagefolder, give each class a subfolder of its own"
        classes = train.labels[train.index].unique().tolist()
        if len(classes) < 2:
            names = train.source.classes
            name = f" {names[classes[0]]!r}" if names and len(train.source.label_sets) == 1 else ""
            remedy = "raise probe.train_samples or add" if train.num_images < len(train.source) else "add"
            return f"all {train.num_images} train images are of one class{name}; {remedy} images of a second class"
        return None

    def cost(self, workload: Workload) -> Cost:
        """Return what the evaluator costs; an evaluator without a model of its own counts its features alone."""
        dim = self.feature_width(workload.encoder)
        how = "all features on every rank; the evaluator's own work is not counted"
        return Cost(4 * dim * workload.num_images + workload.part_bytes(dim), workload.num_images, 0, how)

    def feature_width(self, encoder: ViT) -> int:
        """Return how many values a feature has, over all tokens with ``Pooling.tokens``."""
        num_vectors = encoder.num_patches if self.config.pooling is Pooling.tokens else 1
        return num_vectors * feature_dim(encoder, self.config.pooling, self.config.num_layers)

    def protocol(self, model: EvaluatedModel, **varied: object) -> dict[str, object]:
        """Return the settings that define a score as plain JSON values; ``varied`` are those that differ per score."""
        settings = {key: plain(value) for key, value in dataclasses.asdict(self.config).items()}
        name = EVALUATORS.name_of(self.config)
        protocol = {"evaluator": name, "version": self.version, **settings}
        for split, data in (("train", model.train), ("test", model.test)):
            protocol |= {split: data.num_images, f"{split}_hash": data.split_hash}
        return {**protocol, **varied}


class EvaluatorRegistry(Registry):
    """A registry that gives each config the section of its evaluator, so that messages name the full key."""

    def register(self, name: str, config: type[EvaluatorConfig]) -> Callable[[type], type]:
        config.section = f"probe.{name}"
        return super().register(name, config)


EVALUATORS = EvaluatorRegistry("evaluator", "evaluators")


def plain(value: object) -> object:
    """Return a setting as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def check_classification(evaluator: str, train: Features | FeatureShard, test: Features | FeatureShard) -> None:
    """Refuse features on which a classifier's accuracy is meaningless.

    Raises:
        ValueError: features are not vectors or differ in width, or ``check_labels`` refuses them.
    """
    for name, features in (("train", train), ("test", test)):
        if features.values.ndim != 2:
            raise ValueError(
                f"{evaluator}: {name} features have shape {tuple(features.values.shape)}, but one vector per image is "
                f"needed; use another pooling than tokens"
            )
    if train.values.shape[1] != test.values.shape[1]:
        raise ValueError(
            f"{evaluator}: train features have {train.values.shape[1]} dimensions, test features have "
            f"{test.values.shape[1]}; extract both with the same encoder, image size and pooling"
        )
    check_labels(evaluator, train, test)


def check_labels(evaluator: str, train: Features | FeatureShard, test: Features | FeatureShard) -> None:
    """Refuse features without meaningful labels, on all ranks if one of them holds such a part.

    Raises:
        ValueError: features are not finite, have no labels, or belong to a single class.
    """
    for name, features in (("train", train), ("test", test)):
        if not _is_finite(features):
            raise ValueError(f"{evaluator}: {name} features are not all finite; the encoder's weights have diverged")
        if features.labels is None or features.labels.shape != features.index.shape or (features.labels < 0).any():
            raise CannotEvaluate(
                f"{evaluator}: some {name} images have no label; use labelled data or probe.evaluators=[]"
            )
    classes = train.labels.unique().tolist()
    if len(classes) < 2:
        raise CannotEvaluate(
            f"{evaluator}: all {len(train.labels)} train images have the label {classes[0]}, but two are needed; "
            f"raise probe.train_samples or choose another probe.label"
        )


def _is_finite(features: Features | FeatureShard) -> bool:
    # In blocks: the check of a tensor makes two more of its size.
    is_finite = all(bool(torch.isfinite(part).all()) for part in features.values.split(1024))
    return features.everywhere(is_finite) if isinstance(features, FeatureShard) else is_finite


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the fraction of predictions that equal their label."""
    return (predictions.cpu() == labels).double().mean().item()
