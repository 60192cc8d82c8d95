"""The probe scores an encoder with the chosen evaluators, during a training and on a finished checkpoint alike."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol

import torch

from ssl_zoo.data.batch import ViewSpec
from ssl_zoo.data.loader import EvaluationData
from ssl_zoo.data.sources.base import Source
from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, EvaluatorConfig
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.split import EvaluationSplit, labels_of, subset
from ssl_zoo.nn import BackboneConfig, ViT
from ssl_zoo.scores import Score
from ssl_zoo.settings import Settings, setting


@dataclass
class ProbeConfig(Settings):
    """Which evaluators score the encoder, when, and on which images; each evaluator has a section of its name."""

    section: ClassVar[str] = "probe"

    every_steps: int = setting(0, "optimizer steps between two probes; 0 = none in between", at_least=0)
    at_start: bool = setting(True, "probe the random-init network before the first step: the baseline of later scores")
    at_end: bool = setting(True, "probe after the last step")
    evaluators: list[str] = setting(["knn"], "names of evaluators; [] = no probe")
    train_samples: int = setting(5000, "most images of the train split that the probe learns from; 0 = all", at_least=0)
    test_samples: int = setting(2000, "most images of the test split that are scored; 0 = all", at_least=0)
    label: str | None = setting(None, "which of the source's label sets; null = the source's first")
    batch_size: int = setting(256, "images per forward pass of the encoder", at_least=1)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the values; the class, which ``probe_config_class`` makes, has no name to be found by."""
        return _unpickled, (vars(self),)

    def evaluator_config(self, name: str) -> EvaluatorConfig:
        """Return the section of an evaluator, or its defaults in a config without sections."""
        return getattr(self, name, None) or EVALUATORS.config_of(name)()


def _unpickled(values: Mapping[str, object]) -> ProbeConfig:
    config = object.__new__(probe_config_class())
    vars(config).update(values)
    return config


def probe_config_class() -> type[ProbeConfig]:
    """Return ``ProbeConfig`` with a section for each registered evaluator, those of plug-ins included."""
    return _with_sections(tuple((name, EVALUATORS.config_of(name)) for name in EVALUATORS.names()))


@functools.cache
def _with_sections(evaluators: tuple[tuple[str, type[EvaluatorConfig]], ...]) -> type[ProbeConfig]:
    for name, _ in evaluators:
        if not name.isidentifier() or name in dir(ProbeConfig()):
            raise ValueError(f"evaluator {name!r} can't have a section probe.{name}; register it under another name")
    sections = [(name, config, setting(config(), EVALUATORS.summary(name))) for name, config in evaluators]
    return dataclasses.make_dataclass("ProbeConfig", sections, bases=(ProbeConfig,))


class ProbedConfig(Protocol):
    """The parts of a run's configuration that its probe is built from."""

    seed: int
    backbone: BackboneConfig
    probe: ProbeConfig


class Probe:
    """A probe scores encoders on fixed subsets of a labelled source.

    A training, a later evaluation of its checkpoint and every rank build the same probe and get the same numbers:
    subsets are a function of the seed, images are rendered without augmentation, and the global random state is unused.

    Args:
        train, test: the two splits of the source.
        view: its mean and standard deviation normalise the images.
        autocast, cache, progress: as for ``EvaluatedModel``.

    Raises:
        ValueError: unknown evaluator or label set, or a source without the labels that an evaluator needs.
    """

    def __init__(
        self,
        config: ProbedConfig,
        train: Source,
        test: Source,
        view: ViewSpec,
        *,
        device: torch.device | str = "cpu",
        autocast: AbstractContextManager | None = None,
        cache: FeatureCache | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        probe, seed, image_size = config.probe, config.seed, config.backbone.image_shape
        self.evaluators = [EVALUATORS.get(name)(probe.evaluator_config(name)) for name in probe.evaluators]
        self.label = probe.label
        self.baseline: dict[str, float] = {}
        needs_labels = any(evaluator.needs_labels for evaluator in self.evaluators)
        train_labels, test_labels = (labels_of(s, probe.label) if needs_labels else None for s in (train, test))
        train_index = subset(len(train), probe.train_samples, seed, "train")
        test_index = subset(len(test), probe.test_samples, seed, "test")
        render = partial(EvaluationData, size=image_size, mean=view.mean, std=view.std, batch_size=probe.batch_size)
        self.evaluated_model = partial(
            EvaluatedModel,
            train=EvaluationSplit(train, train_index, train_labels, render),
            test=EvaluationSplit(test, test_index, test_labels, render),
            device=device,
            autocast=autocast,
            cache=cache,
            progress=progress,
        )
        self._shared_protocol = {"image_size": list(image_size), "label": self.label}

    def __call__(self, encoder: ViT, *, step: int | None = None) -> Sequence[Score]:
        """Score the encoder as it is; in a process group every rank calls this.

        Args:
            step: number of optimizer steps that the encoder has been trained for. At 0 the scores become the baseline
                of all later calls. None scores a finished network.
        """
        model = self.evaluated_model(encoder)
        scores = [score for evaluator in self.evaluators for score in evaluator(model)]
        if step == 0:
            self.baseline = {score.name: score.value for score in scores}
        return [self.complete(score) for score in scores]

    def complete(self, score: Score) -> Score:
        """Add the baseline and the settings that all evaluators share to an evaluator's score."""
        protocol = {**score.protocol, **self._shared_protocol}
        return replace(score, protocol=protocol, baseline=self.baseline.get(score.name))

    def state_dict(self) -> dict[str, float]:
        """Return the baseline, which a resumed run can't measure again."""
        return dict(self.baseline)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.baseline = dict(state)
