"""Low-shot classification: logistic regression on few labelled images, over several subsets."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_zoo.eval.base import EVALUATORS, Evaluator, Score, Subject, accuracy, check_classification
from ssl_zoo.eval.logistic import LogisticConfig, logistic_predictions
from ssl_zoo.eval.splits import mean_and_spread, per_class, published, rows_of
from ssl_zoo.settings import setting


@dataclass
class LowShotConfig(LogisticConfig):
    """Logistic regression on a fraction of the labels (1 % by default, arXiv 2204.07141 and arXiv 2301.08243)."""

    fraction: float = setting(0.01, "of each class's train images, at least one")
    images_per_class: int = setting(0, "so many images of each class; 0 takes fraction")
    num_splits: int = setting(3, "random subsets, drawn from split_seed")
    split_seed: int = setting(0, "of the random subsets")
    split_files: list[str] = setting([], "lists of image names, one file per subset, instead of random subsets")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"low_shot.fraction={self.fraction} must lie in (0, 1]")
        if self.images_per_class < 0 or self.num_splits < 1:
            raise ValueError(
                f"low_shot.images_per_class={self.images_per_class} must be 0 or more and "
                f"low_shot.num_splits={self.num_splits} 1 or more"
            )


@EVALUATORS.register("low_shot", LowShotConfig)
class LowShot(Evaluator):
    """Logistic regression on few labelled images: mean and standard deviation over subsets."""

    config: LowShotConfig

    def __call__(self, subject: Subject) -> Sequence[Score]:
        train, test = subject.features(self.config)
        check_classification("low_shot", train, test)
        config = self.config
        if config.split_files:
            subsets = [published(file, train.index, subject.train.source.sample_name) for file in config.split_files]
        else:
            seeds = range(config.split_seed, config.split_seed + config.num_splits)
            subsets = [per_class(train.labels, config.fraction, config.images_per_class, seed) for seed in seeds]
        few = [rows_of(train, rows) for rows in subsets]
        values = [
            accuracy(logistic_predictions(part, test, config, device=subject.device), test.labels) for part in few
        ]
        mean, spread = mean_and_spread(values)
        protocol = self.protocol(subject, labelled=[len(part.values) for part in few])
        return [Score("low_shot", mean, protocol, spread)]
