"""Low-shot classification: logistic regression on few labelled images, repeated for several subsets."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, Evaluator, accuracy, check_classification
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.logistic import LogisticConfig, logistic_predictions, objective_flops, working_bytes
from ssl_zoo.eval.subsets import listed_rows, mean_and_std, stratified_rows
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting


@dataclass
class LowShotConfig(LogisticConfig):
    """Logistic regression on a fraction of the labels (1 % by default, arXiv 2204.07141 and arXiv 2301.08243)."""

    fraction: float = setting(0.01, "fraction of each class's train images, at least one image", above=0, at_most=1)
    images_per_class: int = setting(0, "images of each class instead of a fraction; 0 = fraction", at_least=0)
    num_splits: int = setting(3, "number of random subsets", at_least=1)
    split_seed: int = setting(0, "seed of the first random subset; the others count on")
    split_files: list[str] = setting([], "files of image names, one per subset, instead of random subsets")


@EVALUATORS.register("low_shot", LowShotConfig)
class LowShot(Evaluator):
    """Logistic regression on few labelled images: mean and standard deviation of the accuracy over subsets."""

    config: LowShotConfig

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        train, test = model.shards(self.config)
        check_classification("low_shot", train, test)
        config = self.config
        if config.split_files:
            subsets = [listed_rows(file, train.index, model.train.source.sample_name) for file in config.split_files]
        else:
            seeds = range(config.split_seed, config.split_seed + config.num_splits)
            subsets = [stratified_rows(train.labels, config.fraction, config.images_per_class, seed) for seed in seeds]
        few = [train.at(rows) for rows in subsets]
        values = [accuracy(logistic_predictions(part, test, config, device=model.device), test.labels) for part in few]
        mean, spread = mean_and_std(values)
        protocol = self.protocol(model, labelled=[len(part.values) for part in few])
        return [Score("low_shot", mean, protocol, spread)]

    def cost(self, workload: Workload) -> Cost:
        config, dim = self.config, self.feature_width(workload.encoder)
        few = max(workload.num_classes, round(config.fraction * workload.num_train))
        if config.images_per_class:
            few = config.images_per_class * workload.num_classes
        num_splits = len(config.split_files) or config.num_splits
        held = workload.part_bytes(dim) + 4 * dim * few * num_splits
        held += working_bytes(workload.batch_size, dim, workload.num_classes)
        flops, how = objective_flops(config, few, dim, workload.num_classes)
        how = f"{num_splits} subsets x {how}, on every rank"
        return Cost(max(held, workload.extraction_bytes(dim)), workload.num_images, num_splits * flops, how)
