"""What an evaluator is: a protocol that turns an encoder and labelled images into scores."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.features import Features, Pooling, extract, feature_dim, is_main_process, on_all_ranks
from ssl_zoo.eval.labelled import Labelled
from ssl_zoo.nn import ViT
from ssl_zoo.registry import Registry
from ssl_zoo.settings import setting


@dataclass
class EvaluatorConfig:
    """Base of every evaluator's config: the feature that it looks at."""

    pooling: Pooling = setting(
        Pooling.average, "tokens to feature: average, class_token, class_token_and_average or tokens"
    )
    num_layers: int = setting(1, "last blocks whose pooled tokens are concatenated")
    final_norm: bool = setting(True, "apply the encoder's final norm before pooling")


@dataclass(frozen=True)
class Score:
    """One number of one protocol.

    Attributes:
        name: ``evaluator`` or ``evaluator`` and its varied setting, e.g. ``knn20``.
        value: accuracy, the fraction of test images classified correctly.
        protocol: everything that defines the number apart from the weights.
        spread: standard deviation over repetitions, None of a single one.
        details: what a person wants to know beside the number, e.g. chosen settings.
        is_fraction: the value is an accuracy, in 0..1; otherwise a quantity of its own scale.
    """

    name: str
    value: float
    protocol: Mapping[str, object] = field(default_factory=dict)
    spread: float | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    is_fraction: bool = True

    @property
    def protocol_hash(self) -> str:
        """Equal for numbers that may be compared."""
        return hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()[:12]


class Subject:
    """A frozen encoder with labelled train and test images; equal features are extracted once for all evaluators.

    Evaluators that need more than features take ``encoder`` (and copy it before they train it), ``train``, ``test``.

    Args:
        autocast: a precision context that can be entered again and again, such as ``torch.autocast``.
        cache: where features are kept from one process to the next; tokens are not, for their size.
        progress: called with a name, images done and images in all while features are extracted.
    """

    def __init__(
        self,
        encoder: ViT,
        train: Labelled,
        test: Labelled,
        *,
        device: torch.device | str = "cpu",
        autocast: AbstractContextManager | None = None,
        cache: FeatureCache | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.encoder, self.train, self.test = encoder, train, test
        self.device, self.autocast = torch.device(device), autocast
        self.cache, self.progress = cache, progress
        self._features: dict[tuple[Pooling, int, bool], tuple[Features, Features]] = {}

    def precision(self) -> AbstractContextManager:
        """The precision of the encoder's forward pass."""
        return self.autocast or nullcontext()

    def features(self, config: EvaluatorConfig) -> tuple[Features, Features]:
        """Train and test features as ``config`` wants them pooled.

        Those of fewer layers are taken out of those of more, where these have been extracted before.
        """
        key = (config.pooling, config.num_layers, config.final_norm)
        if key in self._features:
            return self._features[key]
        for (pooling, num_layers, final_norm), both in self._features.items():
            if num_layers > config.num_layers and (pooling, final_norm) == (config.pooling, config.final_norm):
                width = feature_dim(self.encoder, pooling, config.num_layers)
                return tuple(replace(features, values=features.values[..., -width:]) for features in both)
        self._features[key] = (self._extracted("train", self.train, *key), self._extracted("test", self.test, *key))
        return self._features[key]

    def _extracted(self, split: str, data: Labelled, pooling: Pooling, num_layers: int, final_norm: bool) -> Features:
        path = None
        if self.cache is not None and pooling is not Pooling.tokens:
            settings = {"pooling": pooling.value, "num_layers": num_layers, "final_norm": final_norm}
            path = self.cache.path(self.encoder, data.index, split=split, **settings)
            stored = self.cache.read(path, data.labels)
            if on_all_ranks(stored is not None):
                return stored
        features = extract(
            self.encoder,
            data if self.progress is None else _Watched(data, lambda n: self.progress(split, n, data.num_images)),
            pooling=pooling,
            num_layers=num_layers,
            final_norm=final_norm,
            device=self.device,
            autocast=self.autocast,
        )
        if path is not None and is_main_process():
            self.cache.write(path, features)
        return features


class _Watched:
    """Batches of ``data``; tells how many images have been given out."""

    def __init__(self, data: Labelled, tell: Callable[[int], None]) -> None:
        self.data, self.tell = data, tell

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        count = 0
        for batch in self.data:
            yield batch
            count += len(batch[0])
            self.tell(count)


class Evaluator(ABC):
    """One evaluation protocol; the same object serves a running training and a finished checkpoint.

    In a process group every rank calls it and every rank gets the same scores.
    """

    needs_labels: ClassVar[bool] = True
    version: ClassVar[int] = 1  # raised whenever equal settings begin to give another number

    def __init__(self, config: EvaluatorConfig) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, subject: Subject) -> Sequence[Score]:
        """The scores of the encoder; draws nothing from the global random state and changes no weight."""

    def protocol(self, subject: Subject, **varied: object) -> dict[str, object]:
        """The settings that define a score, as plain JSON values; ``varied`` are those that differ between scores."""
        settings = {key: _plain(value) for key, value in dataclasses.asdict(self.config).items()}
        name = EVALUATORS.name_of(self.config)
        protocol = {"evaluator": name, "version": self.version, **settings}
        for split, data in (("train", subject.train), ("test", subject.test)):
            protocol |= {split: data.num_images, f"{split}_hash": data.split_hash}
        return {**protocol, **varied}


EVALUATORS = Registry("evaluator", "evaluators")


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def check_classification(evaluator: str, train: Features, test: Features) -> None:
    """Refuse features on which accuracy of a classifier is meaningless.

    Raises:
        ValueError: features are not vectors, of different widths, or as told by ``check_labels``.
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


def check_labels(evaluator: str, train: Features, test: Features) -> None:
    """Refuse features without meaningful labels.

    Raises:
        ValueError: features are not finite, without labels, or of one class only.
    """
    for name, features in (("train", train), ("test", test)):
        if not torch.isfinite(features.values).all():
            raise ValueError(
                f"{evaluator}: {name} features are not all finite; the weights of the encoder have diverged"
            )
        if features.labels is None or features.labels.shape != features.values.shape[:1] or (features.labels < 0).any():
            raise ValueError(
                f"{evaluator}: some {name} images have no label; use a labelled data source or probe.evaluators=[]"
            )
    classes = train.labels.unique().tolist()
    if len(classes) < 2:
        raise ValueError(
            f"{evaluator}: the labels of the {len(train.labels)} train images are all of {classes}, two are needed; "
            f"raise probe.train_samples or choose another probe.label"
        )


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of equal entries."""
    return (predictions.cpu() == labels).double().mean().item()
