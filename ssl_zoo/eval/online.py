"""The probe that runs beside a training and, by the same call, on a finished checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial

import torch

from ssl_zoo.data.loader import EvaluationData
from ssl_zoo.data.sources.base import Source
from ssl_zoo.eval.attentive import AttentiveConfig
from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Score, Subject
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.finetune import FinetuneConfig
from ssl_zoo.eval.health import HealthConfig
from ssl_zoo.eval.knn import KNNConfig
from ssl_zoo.eval.labelled import Labelled, labels_of, subset
from ssl_zoo.eval.linear import LinearConfig
from ssl_zoo.eval.logistic import LogisticConfig
from ssl_zoo.eval.low_shot import LowShotConfig
from ssl_zoo.nn import ViT
from ssl_zoo.settings import setting


@dataclass
class ProbeConfig:
    """Which evaluators look at the method's evaluated network, when, and on which images."""

    every_steps: int = setting(0, "optimizer steps between two probes; 0 = none in between")
    at_start: bool = setting(True, "probe the random-init network before the first step: the baseline of later scores")
    at_end: bool = setting(True, "probe after the last step")
    evaluators: list[str] = setting(["knn"], "names of evaluators; [] = no probe")
    train_samples: int = setting(5000, "images of the train split that the probe learns from, at most; 0 = all")
    test_samples: int = setting(2000, "images of the test split that are scored, at most; 0 = all")
    label: str | None = setting(None, "which of the source's label sets; null = the source's first")
    batch_size: int = setting(256, "images per forward pass of the encoder")
    knn: KNNConfig = setting(KNNConfig(), "settings of the k-nearest-neighbour probe")
    logistic: LogisticConfig = setting(LogisticConfig(), "settings of the logistic-regression probe")
    linear: LinearConfig = setting(LinearConfig(), "settings of the linear probe by gradient descent")
    low_shot: LowShotConfig = setting(LowShotConfig(), "settings of logistic regression on few labels")
    attentive: AttentiveConfig = setting(AttentiveConfig(), "settings of the cross-attention probe")
    finetune: FinetuneConfig = setting(FinetuneConfig(), "settings of fine-tuning")
    health: HealthConfig = setting(HealthConfig(), "settings of the measures without labels")

    def __post_init__(self) -> None:
        for key in ("every_steps", "train_samples", "test_samples"):
            if getattr(self, key) < 0:
                raise ValueError(f"probe.{key}={getattr(self, key)} must be 0 or more")
        if self.batch_size < 1:
            raise ValueError(f"probe.batch_size={self.batch_size} must be at least 1")

    def evaluator_config(self, name: str) -> EvaluatorConfig:
        """The config of an evaluator: the section of its name, or its defaults where there is none."""
        default = EVALUATORS.config_of(name)()
        section = getattr(self, name, None)
        return section if type(section) is type(default) else default


@dataclass(frozen=True)
class ProbeScore(Score):
    """A score beside the same score of the random-init network."""

    baseline: float | None = None  # None when that was not probed


class OnlineProbe:
    """Scores of an encoder on fixed subsets of a labelled source.

    A run, a later evaluation of its checkpoint and every rank use this class and get the same numbers: subsets are a
    function of the seed, images are rendered without augmentation, and nothing is drawn from the global random state.

    Args:
        train, test: the two splits of the probed source.
        image_size: height and width in pixels that the encoder sees.
        mean, std: per channel, the normalisation of the run's views.
        autocast, cache, progress: as for ``Subject``.

    Raises:
        ValueError: unknown evaluator or label set, or a source without the labels that an evaluator needs.
    """

    def __init__(
        self,
        config: ProbeConfig,
        train: Source,
        test: Source,
        *,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        device: torch.device | str = "cpu",
        autocast: AbstractContextManager | None = None,
        num_workers: int = 0,
        cache: FeatureCache | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.evaluators: list[Evaluator] = [
            EVALUATORS.get(name)(config.evaluator_config(name)) for name in config.evaluators
        ]
        self.label = config.label
        self.baseline: dict[str, float] = {}
        needs_labels = any(evaluator.needs_labels for evaluator in self.evaluators)
        train_labels, test_labels = (labels_of(s, config.label) if needs_labels else None for s in (train, test))
        train_index = subset(len(train), config.train_samples, seed, "train")
        test_index = subset(len(test), config.test_samples, seed, "test")
        render = partial(
            EvaluationData, size=image_size, mean=mean, std=std, batch_size=config.batch_size, num_workers=num_workers
        )
        data = Labelled(train, train_index, train_labels, render), Labelled(test, test_index, test_labels, render)
        settings = {"device": device, "autocast": autocast, "cache": cache, "progress": progress}
        self.subject = partial(Subject, train=data[0], test=data[1], **settings)
        self._shared = {"image_size": list(image_size), "label": self.label}

    def __call__(self, encoder: ViT, *, step: int | None = None) -> Sequence[ProbeScore]:
        """The scores of the encoder as it is; in a process group every rank calls this.

        Args:
            step: optimizer steps that the encoder has been trained for. At 0 the scores become the baseline of
                all later calls. None scores a finished network.
        """
        subject = self.subject(encoder)
        scores = [score for evaluator in self.evaluators for score in evaluator(subject)]
        if step == 0:
            self.baseline = {score.name: score.value for score in scores}
        return [self.beside_baseline(score) for score in scores]

    def beside_baseline(self, score: Score) -> ProbeScore:
        """A score of one of the evaluators with all that defines it, and the baseline of the same name."""
        known = {field.name: getattr(score, field.name) for field in fields(Score)}
        known["protocol"] = {**score.protocol, **self._shared}
        return ProbeScore(**known, baseline=self.baseline.get(score.name))

    def state_dict(self) -> dict[str, float]:
        """The baseline, which a resumed run can't measure again."""
        return dict(self.baseline)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.baseline = dict(state)
