"""A grid of heads on one frozen encoder: which features they get, how they are trained on a stream, which one wins."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.eval.base import EvaluatedModel
from ssl_zoo.eval.cache import weights_hash
from ssl_zoo.eval.features import Pooling, check_pooling, evaluating, feature_dim, last_layers, pool
from ssl_zoo.eval.split import EvaluationSplit
from ssl_zoo.eval.stacked_optim import StackedOptimizer
from ssl_zoo.eval.stream import Augmentation, TrainStream
from ssl_zoo.eval.streaming import accuracies, length_of, train, training_name
from ssl_zoo.eval.subsets import train_validation_rows
from ssl_zoo.eval.trained import ProbeHeadsConfig, Selection
from ssl_zoo.scores import Score
from ssl_zoo.seeding import seed_for


@dataclass(frozen=True)
class FeatureKind:
    """Which feature of an image a head gets."""

    pooling: Pooling
    num_layers: int


Kind = TypeVar("Kind", bound=FeatureKind)


class Rates(NamedTuple):
    """Learning rate and weight decay of a head."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Choice(Generic[Kind]):
    """The chosen head of a grid.

    Attributes:
        value: its accuracy on the test images.
        validation_accuracy: on the held-out train images; None where it wasn't chosen on them.
    """

    kind: Kind
    rates: Rates
    value: float
    validation_accuracy: float | None = None


# Accuracies of all heads on these rows of the train images, or on the test images for None; kinds are the outer loop.
Scorer = Callable[[Int[Tensor, "k"] | None], Sequence[float]]
# Trains a head of each kind with each of the rates on these rows of the train images, all of them for None.
Fit = Callable[[Sequence[Kind], Sequence[Rates], Int[Tensor, "k"] | None], Scorer]


def choose(
    config: ProbeHeadsConfig, kinds: Sequence[Kind], rates: Sequence[Rates], num_images: int, fit: Fit
) -> Choice[Kind]:
    """Train a grid of heads and score the best, which is chosen as ``config.selection`` asks.

    Args:
        num_images: of the train split.
    """
    grid = list(itertools.product(kinds, rates))
    if len(grid) == 1 or config.selection is Selection.test:
        values = fit(kinds, rates, None)(None)
        return Choice(*grid[values.index(max(values))], max(values))
    fitted, held_out = train_validation_rows(num_images, config.validation_fraction, config.seed)
    scorer = fit(kinds, rates, fitted)
    validation = scorer(held_out)
    best = validation.index(max(validation))
    kind, of_kind = grid[best]
    [value] = fit([kind], [of_kind], None)(None) if config.refit else [scorer(None)[best]]
    return Choice(kind, of_kind, value, max(validation))


def score_of(name: str, config: ProbeHeadsConfig, num_heads: int, choice: Choice, protocol: dict[str, object]) -> Score:
    """Return the score of a choice; one that was made on the test images has a name that says so."""
    named = f"{name}_best_on_test" if num_heads > 1 and config.selection is Selection.test else name
    settings = {key: getattr(value, "value", value) for key, value in vars(choice.kind).items()}
    chosen = {**settings, **choice.rates._asdict()}
    details = {"chosen": chosen, "validation_accuracy": choice.validation_accuracy, "num_heads": num_heads}
    return Score(named, choice.value, protocol, details=details)


class Heads(nn.Module):
    """Base of stacked heads: for each kind of feature as many heads as there are rates."""

    def logits(self, features: Sequence[Tensor]) -> Float[Tensor, "heads B classes"]:
        """Compute the logits of all heads, those of the first kind first, as an evaluation does."""
        raise NotImplementedError

    def backward(self, features: Sequence[Tensor], labels: Int[Tensor, "b"], batch_size: int) -> None:
        """Add this rank's share of the gradient of each head's mean loss over the batch of all ranks.

        Args:
            features: of this rank's images, one tensor per kind.
            batch_size: images of all ranks.
        """
        raise NotImplementedError


def check_finite(section: str, features: Sequence[Tensor]) -> None:
    """Raise ValueError if a feature is infinite or not a number."""
    if not all(bool(values.isfinite().all()) for values in features):
        raise ValueError(f"{section}: features are not all finite; the encoder's weights have diverged")


class FrozenEncoder:
    """Computes several kinds of features in one forward pass, which has no gradient and uses no random number."""

    def __init__(self, model: EvaluatedModel, kinds: Sequence[FeatureKind], final_norm: bool) -> None:
        self.encoder, self.model, self.kinds, self.final_norm = model.encoder, model, kinds, final_norm
        self.num_layers = max(kind.num_layers for kind in kinds)
        for kind in kinds:
            check_pooling(self.encoder, kind.pooling, kind.num_layers)

    def dims(self) -> list[int]:
        """Return the width of each kind's features."""
        return [feature_dim(self.encoder, kind.pooling, kind.num_layers) for kind in self.kinds]

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B *width"]]:
        """Return the features of each kind in float32."""
        with evaluating(self.encoder), self.model.precision():
            layers = last_layers(self.encoder, images, self.num_layers, self.final_norm)
            pooled: dict[tuple[Pooling, int], Tensor] = {}
            for kind in self.kinds:
                key = kind.pooling, kind.num_layers
                if key not in pooled:
                    pooled[key] = pool(layers[-kind.num_layers :], kind.pooling, self.encoder.num_prefix_tokens).float()
        return [pooled[kind.pooling, kind.num_layers] for kind in self.kinds]

    def steps(self, stream: TrainStream, start: int, stop: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield this rank's features and labels of each step."""
        parts = stream.parts(start, stop, self.model.device)
        for _ in range(start, stop):
            pieces = []
            for part in itertools.islice(parts, stream.parts_per_step):
                for piece in part.pieces(self.model.encoder_input.batch_size):
                    pieces.append((self(piece.images), piece.labels))
            features, labels = zip(*pieces, strict=True)
            yield [torch.cat(of_kind) for of_kind in zip(*features, strict=True)], torch.cat(labels)


@dataclass(frozen=True)
class StreamedFit(Generic[Kind]):
    """Trains heads on augmented images that stream through the frozen encoder.

    Attributes:
        make: returns heads and their optimizer for kinds, widths of their features and rates.
        factor: of the learning rates as a function of the epoch, which may be fractional.
        batch_size: of a step, over all ranks.
    """

    model: EvaluatedModel
    config: ProbeHeadsConfig
    protocol: dict[str, object]
    make: Callable[[Sequence[Kind], Sequence[int], Sequence[Rates], int], tuple[Heads, StackedOptimizer]]
    factor: Callable[[float], float]
    batch_size: int
    epochs: int

    def __call__(self, kinds: Sequence[Kind], rates: Sequence[Rates], rows: Int[Tensor, "k"] | None) -> Scorer:
        """Train a head of each kind with each of the rates; as ``Fit``."""
        model, config = self.model, self.config
        split = model.train if rows is None else model.train.take(rows)
        batch_size = min(self.batch_size, split.num_images)
        num_steps = length_of(self.epochs, split.num_images, batch_size)
        encoder = FrozenEncoder(model, kinds, config.final_norm)
        heads, optimizer = self.make(kinds, encoder.dims(), rates, batch_size)
        stream = self._stream(split, batch_size)

        def gradients(start: int) -> Iterator[None]:
            for step, (features, labels) in enumerate(encoder.steps(stream, start, num_steps), start):
                if step == start:  # once, as the encoder doesn't change
                    check_finite(config.section, features)
                heads.backward(features, labels, batch_size)
                yield

        def set_rates(step: int) -> None:
            optimizer.factor = self.factor(step * batch_size / split.num_images)

        what = {"kinds": repr(kinds), "rates": repr(rates), "split": split.split_hash, "protocol": self.protocol}
        train(
            heads,
            optimizer,
            gradients,
            num_steps,
            before_update=set_rates,
            checkpoints=model.checkpoints,
            name=training_name({**what, "weights": weights_hash(model.encoder)}) if model.checkpoints else "",
            checkpoint_every=config.checkpoint_every,
        )
        heads.eval()
        num_heads = len(kinds) * len(rates)

        def score(rows: Int[Tensor, "k"] | None) -> Sequence[float]:
            scored = model.test if rows is None else model.train.take(rows)
            return accuracies(lambda images: heads.logits(encoder(images)), scored, num_heads, model.device)

        return score

    def _stream(self, split: EvaluationSplit, batch_size: int) -> TrainStream:
        encoder_input, config = self.model.encoder_input, self.config
        settings = {"seed": seed_for(config.seed, config.section), "batch_size": batch_size}
        return TrainStream(split, encoder_input, Augmentation(config.view), **settings)
