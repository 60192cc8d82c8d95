"""The probe that runs beside a training and, by the same call, on a finished checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.data.loader import EvaluationData
from ssl_zoo.data.sources.base import Source
from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Subject
from ssl_zoo.eval.knn import KNNConfig
from ssl_zoo.eval.logistic import LogisticConfig
from ssl_zoo.nn import ViT
from ssl_zoo.registry import nearest, setting
from ssl_zoo.seeding import generator_for


@dataclass
class ProbeConfig:
    """Which evaluators look at the method's evaluated network, when, and on which images."""

    every_steps: int = setting(0, "optimizer steps between two probes; 0 = none in between")
    at_start: bool = setting(True, "probe the random-init network before the first step: the baseline of later scores")
    at_end: bool = setting(True, "probe after the last step")
    protocols: list[str] = setting(["knn"], "names of evaluators; [] = no probe")
    train_samples: int = setting(5000, "images of the train split that the probe learns from, at most; 0 = all")
    test_samples: int = setting(2000, "images of the test split that are scored, at most; 0 = all")
    label: str | None = setting(None, "which of the source's label sets; null = the source's first")
    batch_size: int = setting(256, "images per forward pass of the encoder")
    knn: KNNConfig = setting(KNNConfig(), "settings of the k-nearest-neighbour probe")
    logistic: LogisticConfig = setting(LogisticConfig(), "settings of the logistic-regression probe")

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
class ProbeScore:
    """A score beside the same score of the random-init network."""

    name: str
    value: float
    baseline: float | None  # None when the run did not probe its start
    protocol: Mapping[str, object]


class OnlineProbe:
    """Scores of an encoder on fixed subsets of a labelled source.

    A run, a later evaluation of its checkpoint and every rank use this class and get the same numbers: subsets are a
    function of the seed, images are rendered without augmentation, and nothing is drawn from the global random state.

    Args:
        train, test: the two splits of the probed source.
        image_size: height and width in pixels that the encoder sees.
        mean, std: per channel, the normalisation of the run's views.
        autocast: a precision context that can be entered again and again.

    Raises:
        ValueError: unknown evaluator or label set, or unlabelled source.
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
    ) -> None:
        self.config, self.device, self.autocast = config, device, autocast
        self.evaluators: list[Evaluator] = [
            EVALUATORS.get(name)(config.evaluator_config(name)) for name in config.protocols
        ]
        self.baseline: dict[str, float] = {}
        # Without a protocol nobody asks for labels, so unlabelled images do.
        train_labels, test_labels = (
            _labels_of(source, config.label) if self.evaluators else torch.empty(0, dtype=torch.int64)
            for source in (train, test)
        )
        train_index = _subset(len(train), config.train_samples, seed, "train")
        test_index = _subset(len(test), config.test_samples, seed, "test")
        render = partial(
            EvaluationData, size=image_size, mean=mean, std=std, batch_size=config.batch_size, num_workers=num_workers
        )
        self._train = _Relabelled(render(train, train_index), train_labels)
        self._test = _Relabelled(render(test, test_index), test_labels)
        self._shared = {"image_size": list(image_size), "label": config.label, "subset_seed": seed}

    def __call__(self, encoder: ViT, *, step: int | None = None) -> Sequence[ProbeScore]:
        """The scores of the encoder as it is; in a process group every rank calls this.

        Args:
            step: optimizer steps that the encoder has been trained for. At 0 the scores become the baseline of
                all later calls. None scores a finished network.
        """
        subject = Subject(encoder, self._train, self._test, device=self.device, autocast=self.autocast)
        scores = [score for evaluator in self.evaluators for score in evaluator(subject)]
        if step == 0:
            self.baseline = {score.name: score.value for score in scores}
        return [ProbeScore(s.name, s.value, self.baseline.get(s.name), {**s.protocol, **self._shared}) for s in scores]

    def state_dict(self) -> dict[str, float]:
        """The baseline, which a resumed run can't measure again."""
        return dict(self.baseline)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.baseline = dict(state)


class _Relabelled:
    """Batches of ``data`` with labels of the chosen set."""

    def __init__(self, data: EvaluationData, labels: Int[Tensor, "n"]) -> None:
        self.data, self.labels = data, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for images, _, index in self.data:
            yield images, self.labels[index], index


def _subset(available: int, wanted: int, seed: int, split: str) -> Int[Tensor, "n"]:
    """Sorted sample ids, the same for equal seeds; all of them when 0 or more than there are were asked for."""
    if wanted in (0, available) or wanted > available:
        return torch.arange(available)
    return torch.randperm(available, generator=generator_for(seed, "probe", split))[:wanted].sort().values


def _labels_of(source: Source, name: str | None) -> Int[Tensor, "n"]:
    known = source.label_sets
    if not known:
        raise ValueError(
            f"the {source.split.value} split of {type(source).__name__} has no labels; set probe.protocols=[]"
        )
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        near = nearest(name, known)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(
            f"probe.label={name!r} is no label set of {type(source).__name__}.{hint} Known: {', '.join(known)}"
        )
    return known[name]
