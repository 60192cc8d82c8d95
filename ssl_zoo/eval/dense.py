"""Linear probes of dense tasks: a linear map of each patch token, upsampled to the pixels of the image.

Protocol: DINOv2 (arXiv 2304.07193, section 7.4) in its simplest form. Tokens of the frozen encoder are standardized and
mapped linearly, and the outputs are upsampled bilinearly. Images are augmented and encoded again in each epoch, and
every learning rate has a head of its own on the same tokens, so that memory depends on the batch and not on the number
of images. Differs from the reference: tokens are standardized by statistics of at most 1,024 train images instead of
batch norm; held-out train images choose the learning rate; images are the central crops that all evaluators see,
unless segmentation slides windows.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.dense import DenseBatch, DenseData
from ssl_zoo.data.maps import MapSet
from ssl_zoo.data.transforms import sample_params
from ssl_zoo.eval.base import EVALUATORS, CannotEvaluate, EvaluatedModel, Evaluator, EvaluatorConfig
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.dense_heads import Heads
from ssl_zoo.eval.features import Pooling, evaluating, feature_dim, pooled
from ssl_zoo.eval.ranks import rows_of_rank, sum_over_ranks
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.eval.subsets import train_validation_rows
from ssl_zoo.machine import float64_device
from ssl_zoo.scores import Score
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting

_STATISTICS_IMAGES = 1024  # whose tokens give the mean and standard deviation of each dimension


@dataclass
class DenseConfig(EvaluatorConfig):
    """Settings of all dense probes. The best learning rate on held-out train images is scored on the test images."""

    pooling: Pooling = setting(Pooling.tokens, "always tokens: each patch is predicted from its own token")
    maps: str = setting("", "which of the source's kinds of maps")
    lrs: list[float] = setting([0.0003, 0.001, 0.003, 0.01, 0.03], "learning rates to choose from", above=0)
    weight_decay: float = setting(0.001, "weight decay of AdamW", at_least=0)
    epochs: int = setting(10, "training epochs; the learning rate falls to 0 on a cosine", at_least=1)
    batch_size: int = setting(16, "images per step, over all ranks", at_least=1)
    crop_scale: list[float] = setting(
        [1.0, 1.0], "area of random crops of train images, [low, high]; [1, 1]: no crop", length=2, above=0, at_most=1
    )
    horizontal_flip: float = setting(0.5, "probability of mirroring a train image", at_least=0, at_most=1)
    validation_fraction: float = setting(
        0.1, "fraction of train images that the learning rate is chosen on", above=0, below=1
    )
    seed: int = setting(0, "seed of initial weights, order, augmentation and held-out images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling is not Pooling.tokens:
            raise ValueError(f"{self.key('pooling')}={self.pooling.value} must be tokens, one for each patch")
        if not self.lrs:
            raise ValueError(f"{self.key('lrs')}=[] must have at least one learning rate")
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"{self.key('crop_scale')}={self.crop_scale} must be [low, high] with low <= high")


@dataclass(frozen=True)
class Measure:
    """A measured value; of those of a task the first one chooses the learning rate."""

    value: float
    is_fraction: bool  # and the larger the better; otherwise an error


class DenseEvaluator(Evaluator):
    """A linear probe on patch tokens; a subclass defines outputs, loss and measures of its task."""

    needs_labels = False
    config: DenseConfig

    def cost(self, workload: Workload) -> Cost:
        encoded = self.config.epochs * workload.num_train + workload.num_test
        width = workload.encoder.num_patches * feature_dim(workload.encoder, Pooling.tokens, self.config.num_layers)
        how = f"{self.config.epochs} epochs; images, maps, activations and the heads' own work are not counted"
        return Cost(4 * width * self.config.batch_size / workload.world_size, encoded, 0, how)

    @abstractmethod
    def num_outputs(self, map_set: MapSet) -> int:
        """Return the number of outputs per patch."""

    @abstractmethod
    def loss(
        self, outputs: Float[Tensor, "B outputs h w"], maps: Shaped[Tensor, "B H W"], map_set: MapSet
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses and their number; unknown pixels add nothing to either."""

    @abstractmethod
    def sums(
        self, outputs: Float[Tensor, "B outputs h w"], maps: Shaped[Tensor, "B H W"], map_set: MapSet
    ) -> Float[Tensor, "*sums"]:
        """Return float64 sums that ``measures`` is a function of; those of parts of the data may be added."""

    @abstractmethod
    def measures(self, sums: Float[Tensor, "*sums"]) -> Mapping[str, Measure]:
        """Return the scores by name."""

    @abstractmethod
    def fits(self, map_set: MapSet) -> bool:
        """Return whether the task can be learned from maps of this kind."""

    def obstacle(self, train: EvaluationSplit, test: EvaluationSplit) -> str | None:
        name, sets = self.config.maps, train.source.map_sets
        if name not in sets or not self.fits(sets[name]):
            fitting = [other for other, kind in sets.items() if self.fits(kind)]
            there = f"set {self.config.key('maps')} to {' or '.join(fitting)}" if fitting else "choose another data="
            return f"the data has no maps {name!r} for it; {there}"
        if train.num_images < 2:
            return "at least two train images are needed; raise probe.train_samples or add images"
        return None

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        [scores] = self.on_tests(model, [model.test])
        return scores

    def on_tests(self, model: EvaluatedModel, tests: Sequence[EvaluationSplit]) -> Sequence[Sequence[Score]]:
        config = self.config
        encoding = Encoding(model, config)
        fitted, held_out = model.train.index, None
        if len(config.lrs) > 1:
            rows = train_validation_rows(model.train.num_images, config.validation_fraction, config.seed)
            fitted, held_out = (model.train.index[part] for part in rows)
        map_set = model.train.source.map_sets[config.maps]
        heads = self._trained(encoding, model, fitted, map_set)
        best, details = 0, {"lr": config.lrs[0]}
        if held_out is not None:
            first = [next(iter(m.values())) for m in self._measured(encoding, heads, model.train, held_out)]
            best = max(range(len(first)), key=lambda head: first[head].value * (1 if first[head].is_fraction else -1))
            details = {"lr": config.lrs[best], "validation": first[best].value}
        chosen = heads.only(best)
        results = []
        for test in tests:
            [measures] = self._measured(encoding, chosen, test, test.index)
            protocol = self.protocol(model.with_test(test))
            results.append(
                [
                    Score(name, measure.value, protocol, details=details, is_fraction=measure.is_fraction)
                    for name, measure in measures.items()
                ]
            )
        return results

    def _trained(self, encoding: "Encoding", model: EvaluatedModel, index: Int[Tensor, "n"], map_set: MapSet) -> Heads:
        """Train one head per learning rate."""
        config = self.config
        rates = {"lrs": config.lrs, "weight_decay": config.weight_decay, "seed": config.seed}
        heads = Heads(*encoding.statistics(model.train, index), self.num_outputs(map_set), **rates)
        num_steps = config.epochs * math.ceil(len(index) / config.batch_size)
        for step, batch in enumerate(encoding.train_batches(model.train, index)):
            tokens = heads.standardized(encoding.tokens(batch.images))
            maps = batch.maps.to(model.device)
            gradients, count = [], None
            for outputs in heads(tokens):
                outputs = outputs.requires_grad_()
                with torch.enable_grad():
                    loss, count = self.loss(outputs, maps, map_set)
                gradients += torch.autograd.grad(loss, outputs)
            heads.step(tokens, gradients, count, factor=0.5 * (1 + math.cos(math.pi * step / num_steps)))
            if model.progress is not None:
                done = min((step + 1) * config.batch_size, config.epochs * len(index))
                model.progress("augmented train", done, config.epochs * len(index))
        return heads

    def _measured(
        self, encoding: "Encoding", heads: Heads, split: EvaluationSplit, index: Int[Tensor, "n"]
    ) -> Sequence[Mapping[str, Measure]]:
        """Return the measures of each head over the images of all ranks."""
        map_set = split.source.map_sets[self.config.maps]
        totals = [0.0] * heads.num_heads
        for of_heads, maps in self.outputs(encoding, heads, split, index):
            for head, outputs in enumerate(of_heads):
                totals[head] = totals[head] + self.sums(outputs, maps.to(encoding.model.device), map_set)
        measured = [self.measures(sums) for sums in sum_over_ranks(*totals)]
        if any(math.isnan(measure.value) for measures in measured for measure in measures.values()):
            name = EVALUATORS.name_of(self.config)
            raise CannotEvaluate(f"{name}: no pixel of {len(index)} {split.source.split.value} images has a label")
        return measured

    def outputs(
        self, encoding: "Encoding", heads: Heads, split: EvaluationSplit, index: Int[Tensor, "n"]
    ) -> Iterator[tuple[Iterable[Float[Tensor, "B outputs h w"]], Shaped[Tensor, "B H W"]]]:
        """Yield the outputs of each head, and the maps, for this rank's images of a split."""
        for batch in encoding.batches(split, index):
            yield heads(heads.standardized(encoding.tokens(batch.images))), batch.maps


class Encoding:
    """Batches of a split and their tokens; in a process group each rank has its share of every batch."""

    def __init__(self, model: EvaluatedModel, config: DenseConfig) -> None:
        self.model, self.config = model, config
        depth = len(model.encoder.blocks)
        if config.num_layers > depth:
            raise ValueError(f"{config.key('num_layers')}={config.num_layers}, but the encoder has {depth} blocks")

    @torch.no_grad()  # not inference_mode, as in features.extract
    def tokens(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        """Return the float32 tokens of the frozen encoder's patches on their grid."""
        config, encoder = self.config, self.model.encoder
        images = images.to(self.model.device, non_blocking=True)
        with evaluating(encoder), self.model.precision():
            tokens = pooled(encoder, images, config.pooling, config.num_layers, config.final_norm).float()
        return tokens.unflatten(1, encoder.config.grid_of(tuple(images.shape[-2:])))

    def batches(self, split: EvaluationSplit, index: Int[Tensor, "n"]) -> DenseData:
        """Return batches of these samples, as evaluators see them."""
        parts = [part[rows_of_rank(len(part))] for part in index.split(self.config.batch_size)]
        return DenseData(split.data(), split.pairs(self.config.maps), parts)

    def train_batches(self, split: EvaluationSplit, index: Int[Tensor, "n"]) -> Iterator[DenseBatch]:
        """Yield the batches of every epoch, in random order and augmented."""
        config, data = self.config, split.data()
        augment = ViewConfig(crop_scale=list(config.crop_scale), horizontal_flip=config.horizontal_flip)
        view = ViewSpec("image", data.size, augment, channels=split.source.channels)
        for epoch in range(config.epochs):
            order = torch.randperm(len(index), generator=generator_for(config.seed, "dense", "order", epoch))
            parts, params = [], []
            for step, rows in enumerate(order.split(config.batch_size)):
                share = rows_of_rank(len(rows))
                generator = generator_for(config.seed, "dense", "augment", epoch, step)
                params.append(sample_params(augment, len(rows), generator).rows(share))
                parts.append(index[rows[share]])
            yield from DenseData(data, split.pairs(config.maps), parts, view=view, params=params)

    def statistics(
        self, split: EvaluationSplit, index: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "D"], Float[Tensor, "D"]]:
        """Return mean and standard deviation of each dimension over the tokens of at most 1,024 random images."""
        device = self.model.device
        width = feature_dim(self.model.encoder, self.config.pooling, self.config.num_layers)
        sums = torch.zeros(2, width, dtype=torch.float64, device=float64_device(device))
        count = sums.new_zeros(1)
        order = torch.randperm(len(index), generator=generator_for(self.config.seed, "dense", "statistics"))
        for batch in self.batches(split, index[order[:_STATISTICS_IMAGES]]):
            tokens = self.tokens(batch.images)[: batch.num_images].flatten(0, 2).to(sums)
            sums += torch.stack([tokens.sum(dim=0), tokens.square().sum(dim=0)])
            count += len(tokens)
        sums, count = sum_over_ranks(sums, count)
        if not torch.isfinite(sums).all():
            raise ValueError("the tokens of the train images are not all finite; the encoder's weights have diverged")
        mean, square = sums / count
        std = (square - mean.square()).clamp(min=0).sqrt()
        return mean.to(device, torch.float32), std.clamp(min=1e-6 * float(std.max()) + 1e-12).to(device, torch.float32)
