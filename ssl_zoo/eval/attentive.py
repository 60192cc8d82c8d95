"""Attentive probe: one learned query attends to all patch tokens of the frozen encoder (CAE, arXiv 2202.03026)."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.eval.attentive_heads import AttentiveHeads
from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, accuracy, check_labels
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.features import Features, Pooling, feature_dim
from ssl_zoo.eval.heads import FeatureKind, Heads, Rates, Scorer, StreamedFit, choose, score_of
from ssl_zoo.eval.ranks import rank_and_size
from ssl_zoo.eval.stacked_optim import StackedAdamW
from ssl_zoo.eval.stream import rows_in_pairs
from ssl_zoo.eval.streaming import train
from ssl_zoo.eval.subsets import take_rows
from ssl_zoo.eval.trained import ProbeHeadsConfig, TrainedEvaluator, check_split_labels, cost_of_heads
from ssl_zoo.scores import Score
from ssl_zoo.seeding import generator_for, seed_for
from ssl_zoo.settings import setting


@dataclass
class AttentiveConfig(ProbeHeadsConfig):
    """Cross-attention probe. Structure: CAE; optimizer: V-JEPA (AdamW, cosine to 0, 20 epochs)."""

    pooling: Pooling = setting(Pooling.tokens, "always tokens: the probe pools them itself")
    num_heads: int = setting(0, "attention heads; 0 = as many as the encoder", at_least=0)
    lr: float = setting(0.001, "learning rate at the start of the cosine schedule", above=0)
    weight_decay: float = setting(0.001, "weight decay of AdamW", at_least=0)
    lrs: list[float] = setting([], "learning rates to choose from; [] = lr alone", above=0)
    weight_decays: list[float] = setting([], "weight decays to choose from; [] = weight_decay alone", at_least=0)
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up", at_least=0)
    epochs: int = setting(20, "training epochs", at_least=1)
    batch_size: int = setting(256, "images per step", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling is not Pooling.tokens:
            raise ValueError(f"{self.key('pooling')}={self.pooling.value} must be tokens, which the probe pools itself")

    @property
    def kinds(self) -> list[FeatureKind]:
        """Return the kinds of tokens to choose from."""
        return [FeatureKind(Pooling.tokens, depth) for depth in self.layer_counts or [self.num_layers]]

    @property
    def rates(self) -> list[Rates]:
        """Return the learning rates and weight decays to choose from."""
        pairs = itertools.product(self.lrs or [self.lr], self.weight_decays or [self.weight_decay])
        return [Rates(*pair) for pair in pairs]

    def factor(self, epoch: float) -> float:
        """Return what multiplies the learning rates."""
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(1e-9, self.epochs - self.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@EVALUATORS.register("attentive", AttentiveConfig)
class Attentive(TrainedEvaluator):
    """A learned query attends to all tokens of the frozen encoder; a linear classifier follows."""

    version = 3  # version 1 trained in the encoder's precision, version 2 one head alone
    config: AttentiveConfig

    def scores(self, model: EvaluatedModel) -> Sequence[Score]:
        config, encoder, kinds, rates = self.config, model.encoder, self.config.kinds, self.config.rates
        num_images = model.train.num_images + model.test.num_images
        width = sum(feature_dim(encoder, kind.pooling, kind.num_layers) for kind in kinds)
        streamed = config.is_streamed("attentive", num_images, 4 * num_images * encoder.num_patches * width)
        protocol = self.protocol(model, **({"features": "streamed"} if streamed else {}))
        num_classes = int(check_split_labels("attentive", model).max()) + 1
        make = partial(_heads, config, config.num_heads or encoder.config.num_heads, num_classes, model.device)
        if streamed:
            sizes = {"batch_size": config.batch_size, "epochs": config.epochs}
            fit = StreamedFit(model, config, protocol, make, config.factor, **sizes)
            choice = choose(config, kinds, rates, model.train.num_images, fit)
        else:
            cached = CachedFit(model, config, make)
            choice = choose(config, kinds, rates, cached.num_images(kinds), cached)
        return [score_of("attentive", config, len(kinds) * len(rates), choice, protocol)]

    def cost(self, workload: Workload) -> Cost:
        kinds, encoder = self.config.kinds, workload.encoder
        width = encoder.num_patches * sum(feature_dim(encoder, kind.pooling, kind.num_layers) for kind in kinds)
        return cost_of_heads(self.config, workload, width, len(kinds) * len(self.config.rates))


def _heads(
    config: AttentiveConfig,
    num_heads: int,
    num_classes: int,
    device: torch.device,
    kinds: Sequence[FeatureKind],
    dims: Sequence[int],
    rates: Sequence[Rates],
    batch_size: int,
) -> tuple[AttentiveHeads, StackedAdamW]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "attentive"))
        heads = AttentiveHeads(dims, num_heads, num_classes, len(rates)).to(device)
    return heads, StackedAdamW(heads.parameters(), [rate.lr for rate in rates], [rate.weight_decay for rate in rates])


@dataclass(frozen=True)
class CachedFit:
    """Trains heads on tokens that are extracted once and held in memory; as ``Fit``."""

    model: EvaluatedModel
    config: AttentiveConfig
    make: partial

    def num_images(self, kinds: Sequence[FeatureKind]) -> int:
        """Return the number of train images, of which corrupt ones are left out, after checks of all tokens."""
        for kind in kinds:
            check_labels("attentive", *self._features(kind))
        return len(self._features(kinds[0])[0].values)

    def __call__(self, kinds: Sequence[FeatureKind], rates: Sequence[Rates], rows: Int[Tensor, "k"] | None) -> Scorer:
        of_kinds = [self._features(kind) for kind in kinds]
        fitted = [tokens if rows is None else take_rows(tokens, rows) for tokens, _ in of_kinds]
        num_images, device = len(fitted[0].values), self.model.device
        batch_size = min(self.config.batch_size, num_images)
        steps_per_epoch = num_images // batch_size
        dims = [tokens.values.shape[-1] for tokens in fitted]
        heads, optimizer = self.make(kinds, dims, rates, batch_size)

        def set_rates(step: int) -> None:
            optimizer.factor = self.config.factor(step / steps_per_epoch)

        gradients = partial(_gradients, heads, fitted, batch_size, self.config, device)
        train(heads, optimizer, gradients, self.config.epochs * steps_per_epoch, before_update=set_rates)
        heads.eval()

        def score(rows: Int[Tensor, "k"] | None) -> Sequence[float]:
            scored = [test if rows is None else take_rows(train, rows) for train, test in of_kinds]
            values = zip(*(tokens.values.split(1024) for tokens in scored), strict=True)
            predicted = [heads.logits([v.to(device) for v in parts]).argmax(dim=-1).cpu() for parts in values]
            return [accuracy(of_head, scored[0].labels) for of_head in torch.cat(predicted, dim=1)]

        return score

    def _features(self, kind: FeatureKind) -> tuple[Features, Features]:
        return self.model.features(replace(self.config, num_layers=kind.num_layers))


def _gradients(
    heads: Heads,
    tokens: Sequence[Features],
    batch_size: int,
    config: AttentiveConfig,
    device: torch.device,
    start: int,
) -> Iterator[None]:
    """Compute this rank's share of the gradient of each step, in epochs of full batches; as ``Gradients``."""
    generator = generator_for(config.seed, "attentive", "order")
    own = rows_in_pairs(batch_size, *rank_and_size())
    for _ in range(config.epochs):
        order = torch.randperm(len(tokens[0].values), generator=generator)
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            values = [of_kind.values[rows[own]].to(device) for of_kind in tokens]
            heads.backward(values, tokens[0].labels[rows[own]].to(device), batch_size)
            yield
