"""What an evaluator is: a protocol that turns an encoder and labelled images into scores."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum

import torch

from ssl_zoo.eval.features import Features, LabelledImages, Pooling, extract
from ssl_zoo.nn import ViT
from ssl_zoo.registry import Registry, setting


@dataclass
class EvaluatorConfig:
    """Base of every evaluator's config: the feature that it looks at."""

    pooling: Pooling = setting(Pooling.average, "tokens to feature: average, class_token, average_last4 or tokens")
    final_norm: bool = setting(True, "apply the encoder's final norm before pooling")


@dataclass(frozen=True)
class Score:
    """One number of one protocol.

    Attributes:
        name: ``evaluator`` or ``evaluator`` and its varied setting, e.g. ``knn20``.
        value: accuracy, the fraction of test images classified correctly.
        protocol: everything that defines the number apart from the weights and the images.
    """

    name: str
    value: float
    protocol: Mapping[str, object] = field(default_factory=dict)

    @property
    def protocol_hash(self) -> str:
        """Equal for numbers that may be compared."""
        return hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()[:12]


class Subject:
    """A frozen encoder with labelled train and test images; equal features are extracted once for all evaluators.

    Evaluators that need more than features take ``encoder`` (and copy it before they train it), ``train``, ``test``.

    Args:
        train, test: iterables that start anew each time, of batches (images, labels, sample ids).
        autocast: a precision context that can be entered again and again, such as ``torch.autocast``.
    """

    def __init__(
        self,
        encoder: ViT,
        train: LabelledImages,
        test: LabelledImages,
        *,
        device: torch.device | str = "cpu",
        autocast: AbstractContextManager | None = None,
    ) -> None:
        self.encoder, self.train, self.test = encoder, train, test
        self.device, self.autocast = torch.device(device), autocast
        self._features: dict[tuple[Pooling, bool], tuple[Features, Features]] = {}

    def features(self, config: EvaluatorConfig) -> tuple[Features, Features]:
        """Train and test features as ``config`` wants them pooled."""
        key = (config.pooling, config.final_norm)
        if key not in self._features:
            settings = {
                "pooling": config.pooling,
                "final_norm": config.final_norm,
                "device": self.device,
                "autocast": self.autocast,
            }
            self._features[key] = (
                extract(self.encoder, self.train, **settings),
                extract(self.encoder, self.test, **settings),
            )
        return self._features[key]


class Evaluator(ABC):
    """One evaluation protocol; the same object serves a running training and a finished checkpoint.

    In a process group every rank calls it and every rank gets the same scores.
    """

    def __init__(self, config: EvaluatorConfig) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, subject: Subject) -> Sequence[Score]:
        """The scores of the encoder; draws nothing from the global random state and changes no weight."""

    def protocol(self, train: Features, test: Features, **varied: object) -> dict[str, object]:
        """The settings that define a score, as plain JSON values; ``varied`` are those that differ between scores."""
        settings = {
            key: value.value if isinstance(value, Enum) else value
            for key, value in dataclasses.asdict(self.config).items()
        }
        name = EVALUATORS.name_of(self.config)
        return {"evaluator": name, **settings, "train": len(train.values), "test": len(test.values), **varied}


EVALUATORS = Registry("evaluator", "evaluators")


def check_classification(evaluator: str, train: Features, test: Features) -> None:
    """Refuse features on which accuracy of a classifier is meaningless.

    Raises:
        ValueError: features are not vectors, of different widths, not finite, without labels, or of one class only.
    """
    for name, features in (("train", train), ("test", test)):
        if features.values.ndim != 2:
            raise ValueError(
                f"{evaluator}: {name} features have shape {tuple(features.values.shape)}, but one vector per image is "
                f"needed; use another pooling than tokens"
            )
        if not torch.isfinite(features.values).all():
            raise ValueError(
                f"{evaluator}: {name} features are not all finite; the weights of the encoder have diverged"
            )
        if features.labels is None or features.labels.shape != features.values.shape[:1] or (features.labels < 0).any():
            raise ValueError(
                f"{evaluator}: some {name} images have no label; use a labelled data source or probe.protocols=[]"
            )
    if train.values.shape[1] != test.values.shape[1]:
        raise ValueError(
            f"{evaluator}: train features have {train.values.shape[1]} dimensions, test features have "
            f"{test.values.shape[1]}; extract both with the same encoder, image size and pooling"
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
