"""The probe scores an encoder with the chosen evaluators, during a training and on a finished checkpoint alike."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol

import torch

from ssl_zoo.data.batch import Corrupt, ViewSpec
from ssl_zoo.data.corruptions import Corruption, CorruptionsConfig
from ssl_zoo.data.evaluation import EvaluationData, NothingDecoded
from ssl_zoo.data.loader import LoaderConfig
from ssl_zoo.data.sources.base import Source
from ssl_zoo.eval import robustness
from ssl_zoo.eval.base import EVALUATORS, CannotEvaluate, EvaluatedModel, Evaluator, EvaluatorConfig
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.split import EvaluationSplit, labels_of, subset
from ssl_zoo.eval.stream import EncoderInput
from ssl_zoo.eval.streaming import Checkpoints
from ssl_zoo.nn import BackboneConfig, ViT
from ssl_zoo.scores import Score
from ssl_zoo.settings import Section, Settings, setting, with_sections

log = logging.getLogger(__name__)

_LABEL_FREE = "health"


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
    corruptions: CorruptionsConfig = setting(CorruptionsConfig(), "corrupted test images, scored beside the clean ones")

    def evaluator_config(self, name: str) -> EvaluatorConfig:
        """Return the section of an evaluator, or its defaults in a config without sections."""
        return getattr(self, name, None) or EVALUATORS.config_of(name)()


def probe_config_class() -> type[ProbeConfig]:
    """Return ``ProbeConfig`` with a section for each registered evaluator, those of plug-ins included."""
    sections = [Section(name, EVALUATORS.config_of(name), EVALUATORS.summary(name)) for name in EVALUATORS.names()]
    return with_sections(ProbeConfig, EVALUATORS.kind, tuple(sections))


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
        train, test: the two splits of the source; ``test`` may be None if the data has no test image.
        view: its mean and standard deviation normalise the images.
        is_optional: leave out evaluators that the data is no use for, instead of raising an error; where none is left,
            the label-free ``health`` takes their place.
        without_test: why there is no test image.
        loader: how train images are loaded that stream through the encoder.
        autocast, cache, progress, checkpoints: as for ``EvaluatedModel``.

    Attributes:
        left_out: the evaluators that are left out, and what the data lacks for them.
        corrupt: images of both splits that could not be decoded so far.

    Raises:
        ValueError: unknown evaluator or label set, or an evaluator that the data is no use for.
    """

    def __init__(
        self,
        config: ProbedConfig,
        train: Source,
        test: Source | None,
        view: ViewSpec,
        *,
        is_optional: bool = False,
        without_test: str = "",
        device: torch.device | str = "cpu",
        autocast: AbstractContextManager | None = None,
        cache: FeatureCache | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        loader: LoaderConfig | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        probe, seed, image_size = config.probe, config.seed, config.backbone.image_shape
        self._config, self._is_optional, self._checkpoints = probe, is_optional, checkpoints
        self._without_test = f"the data has no test image{f' ({without_test})' if without_test else ''}"
        self.label = probe.label
        self.baseline: dict[str, float] = {}
        train_index = subset(len(train), probe.train_samples, seed, "train")
        test_index = subset(0 if test is None else len(test), probe.test_samples, seed, "test")
        render = partial(EvaluationData, size=image_size, mean=view.mean, std=view.std, batch_size=probe.batch_size)
        train_labels, test_labels = (None if s is None else labels_of(s, probe.label) for s in (train, test))
        self._splits = (
            EvaluationSplit(train, train_index, train_labels, render),
            EvaluationSplit(train if test is None else test, test_index, test_labels, render),
        )
        self.left_out: dict[str, str] = {}
        self.evaluators = self._usable(probe.evaluators)
        if self.left_out and not self.evaluators:
            left_out, self.evaluators = dict(self.left_out), self._usable([_LABEL_FREE])
            self.left_out = left_out
        self.evaluated_model = partial(
            EvaluatedModel,
            train=self._splits[0],
            test=self._splits[1],
            device=device,
            autocast=autocast,
            cache=cache,
            progress=progress,
            encoder_input=EncoderInput(image_size, view.mean, view.std, probe.batch_size, loader or LoaderConfig()),
            checkpoints=checkpoints,
            corrupted=[
                self._splits[1].corrupted(Corruption(name, severity, probe.corruptions.seed))
                for name in probe.corruptions.chosen
                for severity in probe.corruptions.severities
                if self._splits[1].num_images
            ],
        )
        self._shared_protocol = {"image_size": list(image_size), "label": self.label}

    def _usable(self, names: Sequence[str]) -> list[Evaluator]:
        """Build the evaluators that the data has images, labels and classes for; the others go to ``left_out``."""
        usable = []
        for name in names:
            evaluator = EVALUATORS.get(name)(self._config.evaluator_config(name))
            lacks_test = evaluator.needs_test_images and self._splits[1].num_images == 0
            obstacle = self._without_test if lacks_test else evaluator.obstacle(*self._splits)
            if obstacle is None:
                usable.append(evaluator)
            elif not self._is_optional:
                raise ValueError(f"evaluator {name} can't run: {obstacle}, or do without {name}")
            else:
                self.left_out[name] = obstacle
        return usable

    def explanation(self) -> str:
        """Return one line about the evaluators that are left out and why; empty if none is."""
        if not self.left_out:
            return ""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(name)
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
        used = ", ".join(EVALUATORS.name_of(evaluator.config) for evaluator in self.evaluators)
        used = used or "nothing; the collapse alarm and all metrics of the training stay on"
        return f"left out {reasons}. Evaluated by: {used}"

    @property
    def metric_groups(self) -> Mapping[str, str]:
        """The groups of scores that the evaluators declare."""
        return {name: group for evaluator in self.evaluators for name, group in evaluator.metric_groups.items()}

    @property
    def corrupt(self) -> Sequence[Corrupt]:
        return [sample for split in self._splits for sample in split.corrupt]

    def __call__(self, encoder: ViT, *, step: int | None = None) -> Sequence[Score]:
        """Score the encoder as it is; in a process group every rank calls this.

        Args:
            step: number of optimizer steps that the encoder has been trained for. At 0 the scores become the baseline
                of all later calls. The checkpoints of the probe's own trainings are removed at the end. None scores a
                finished network.
        """
        model = self.evaluated_model(encoder)
        scores = [score for evaluator in self.evaluators for score in self._scores(evaluator, model)]
        if step == 0:
            self.baseline = {score.name: score.value for score in scores}
        if step is not None and self._checkpoints is not None:
            self._checkpoints.remove()
        return [self.complete(score) for score in scores]

    def _scores(self, evaluator: Evaluator, model: EvaluatedModel) -> Sequence[Score]:
        """Score with one evaluator; images that can't be decoded may leave an optional one too few."""
        try:
            return robustness.scores(evaluator, model)
        except (CannotEvaluate, NothingDecoded) as error:
            if not self._is_optional:
                raise
            log.warning("evaluation without %s: %s", EVALUATORS.name_of(evaluator.config), error)
            return []

    def complete(self, score: Score) -> Score:
        """Add the baseline and the settings that all evaluators share to an evaluator's score."""
        protocol = {**score.protocol, **self._shared_protocol}
        return replace(score, protocol=protocol, baseline=self.baseline.get(score.name))

    def state_dict(self) -> dict[str, float]:
        """Return the baseline, which a resumed run can't measure again."""
        return dict(self.baseline)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.baseline = dict(state)
