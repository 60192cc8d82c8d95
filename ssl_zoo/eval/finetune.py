"""Fine-tuning: a copy of the encoder and a linear classifier are trained end to end, on all ranks.

The recipe is MAE's (arXiv 2111.06377, table 9): AdamW, layer-wise lr decay, drop path, mixup and cutmix, label
smoothing, average-pooled patch tokens. RandAugment and random erasing, which need RGB or grey images, are off by
default; the presets of ``presets.py`` turn them on.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssl_zoo.eval.augment import POLICY
from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel
from ssl_zoo.eval.cache import weights_hash
from ssl_zoo.eval.cost import Cost, Workload
from ssl_zoo.eval.drop_path import Decisions, set_drop_path
from ssl_zoo.eval.features import Pooling, feature_dim, pooled
from ssl_zoo.eval.mix import Mix
from ssl_zoo.eval.ranks import rank_and_size
from ssl_zoo.eval.stream import Augmentation, TrainStream
from ssl_zoo.eval.streaming import accuracies, length_of, train, training_name
from ssl_zoo.eval.trained import TrainedConfig, TrainedEvaluator, check_split_labels
from ssl_zoo.nn import ViT
from ssl_zoo.scores import Score
from ssl_zoo.seeding import seed_for
from ssl_zoo.settings import setting


@dataclass
class FinetuneConfig(TrainedConfig):
    """Fine-tuning of all weights. The defaults are MAE's for ViT-B/16 and 100 epochs, without RandAugment."""

    epochs: int = setting(100, "training epochs", at_least=1)
    warmup_epochs: float = setting(5.0, "epochs of linear warm-up", at_least=0)
    batch_size: int = setting(1024, "images per step", at_least=1)
    lr: float = setting(0.0005, "learning rate of the classifier for a batch of 256 images; cosine to 1e-6")
    layer_decay: float = setting(0.65, "learning-rate factor from a block to the previous one", above=0, at_most=1)
    weight_decay: float = setting(0.05, "weight decay of AdamW, on matrices", at_least=0)
    drop_path: float = setting(0.1, "drop-path rate of the last block, growing linearly from 0", at_least=0, below=1)
    label_smoothing: float = setting(0.1, "fraction of the target spread over all classes", at_least=0, below=1)
    mixup: float = setting(0.8, "parameter of mixup's beta distribution; 0 = no mixup", at_least=0)
    cutmix: float = setting(1.0, "parameter of cutmix's beta distribution; 0 = no cutmix", at_least=0)
    crop_scale: list[float] = setting([0.08, 1.0], "relative area of crops, [low, high]", above=0, at_most=1, length=2)
    horizontal_flip: float = setting(0.5, "probability that a train image is flipped", at_least=0, at_most=1)
    rand_augment: str = setting("", "RandAugment in timm's notation, e.g. rand-m9-mstd0.5-inc1; empty = none")
    random_erasing: float = setting(0.0, "probability that a box of an image becomes noise", at_least=0, at_most=1)
    clip_grad_norm: float = setting(0.0, "limit of the gradient's norm; 0 = none", at_least=0)
    seed: int = setting(0, "seed of the classifier, order and augmentation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling is Pooling.tokens:
            raise ValueError(f"{self.key('pooling')}=tokens: the classifier needs one vector per image")
        if self.rand_augment and not POLICY.fullmatch(self.rand_augment):
            raise ValueError(
                f"{self.key('rand_augment')}={self.rand_augment} is no policy of RandAugment; write it like "
                "rand-m9-mstd0.5-inc1: magnitude 9 with a deviation of 0.5, severity that grows with the magnitude"
            )


class Classifier(nn.Module):
    """An encoder with a linear classifier on its pooled feature."""

    def __init__(self, encoder: ViT, config: FinetuneConfig, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.head = nn.Linear(feature_dim(encoder, config.pooling, config.num_layers), num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B classes"]:
        config = self.config
        return self.head(pooled(self.encoder, images, config.pooling, config.num_layers, config.final_norm))


@EVALUATORS.register("finetune", FinetuneConfig)
class Finetune(TrainedEvaluator):
    """Fine-tuning of a copy of the encoder with a linear classifier on the train images."""

    version = 2  # version 1 cropped images as evaluators see them, and sampled drop path and mixup per rank
    config: FinetuneConfig

    def scores(self, model: EvaluatedModel) -> Sequence[Score]:
        config, num_classes = self.config, int(check_split_labels("finetune", model).max()) + 1
        channels = model.train.source.channels
        if config.rand_augment and channels not in (1, 3):
            key = config.key("rand_augment")
            raise ValueError(f"{key}={config.rand_augment} needs images of 1 or 3 channels, not {channels}; set {key}=")
        protocol = self.protocol(model)
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(config.seed, "finetune") % 2**32)
            classifier = Classifier(copy.deepcopy(model.encoder), config, num_classes)
            classifier.to(model.device).requires_grad_(True)
            finetune(classifier, model, config, protocol)
        classifier.eval()

        def logits(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "1 B classes"]:
            with model.precision():
                return classifier(images)[None]

        [value] = accuracies(logits, model.test, 1, model.device)
        return [Score("finetune", value, protocol)]

    def cost(self, workload: Workload) -> Cost:
        num_parameters = sum(parameter.numel() for parameter in workload.encoder.parameters())
        encoded = 3 * self.config.epochs * workload.num_train + workload.num_test
        how = "weights, gradients, moments; activations are not counted; a backward pass counts as two forward passes"
        return Cost(16 * num_parameters, encoded, 0, how)


@torch.enable_grad()
def finetune(
    classifier: Classifier, model: EvaluatedModel, config: FinetuneConfig, protocol: dict[str, object]
) -> None:
    """Train in place. Dropout uses the global random state, which the caller restores."""
    decisions = set_drop_path(classifier.encoder, config.drop_path)
    classifier.train()
    num_images, seed = model.train.num_images, seed_for(config.seed, "finetune")
    batch_size = min(config.batch_size, num_images)
    num_steps = length_of(config.epochs, num_images, batch_size)
    optimizer = torch.optim.AdamW(layer_groups(classifier, config, config.lr * batch_size / 256), betas=(0.9, 0.999))
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]

    def before_update(step: int) -> None:
        _set_rates(optimizer, config, step * batch_size / num_images)
        if config.clip_grad_norm:
            nn.utils.clip_grad_norm_(classifier.parameters(), config.clip_grad_norm)

    augmentation = Augmentation(config.view, config.rand_augment, config.random_erasing)
    sizes = {"seed": seed, "batch_size": batch_size}
    stream = TrainStream(model.train, model.encoder_input, augmentation, **sizes)
    train(
        classifier,
        optimizer,
        _gradients(classifier, model, config, stream, decisions, num_steps),
        num_steps,
        before_update=before_update,
        checkpoints=model.checkpoints,
        name=training_name({"weights": weights_hash(model.encoder), **protocol}) if model.checkpoints else "",
        checkpoint_every=config.checkpoint_every,
    )


def _gradients(
    classifier: Classifier,
    model: EvaluatedModel,
    config: FinetuneConfig,
    stream: TrainStream,
    decisions: Decisions,
    num_steps: int,
) -> Callable[[int], Iterator[None]]:
    """Return a function that computes this rank's share of the gradient of each step; as ``Gradients``."""
    mix = Mix(config.mixup, config.cutmix, classifier.head.out_features, stream.seed)
    piece_size = max(2, model.encoder_input.batch_size // 2 * 2)  # in whole pairs, which are mixed

    def gradients(start: int) -> Iterator[None]:
        parts = stream.parts(start, num_steps, model.device)
        for step in range(start, num_steps):
            torch.manual_seed(seed_for(stream.seed, "forward", step, rank_and_size()[0]))
            kept = decisions.sample(stream.seed, step, stream.step_batch_size).to(model.device)
            for part in itertools.islice(parts, stream.parts_per_step):
                for piece in part.pieces(piece_size):
                    images, targets = mix(piece.images, piece.labels, step)
                    decisions.use(kept[:, piece.rows.start : piece.rows.stop])
                    with model.precision():
                        logits = classifier(images)
                    smoothing = {"label_smoothing": config.label_smoothing, "reduction": "sum"}
                    (cross_entropy(logits.float(), targets, **smoothing) / stream.step_batch_size).backward()
            yield

    return gradients


def layer_groups(classifier: Classifier, config: FinetuneConfig, lr: float) -> list[dict]:
    """Group parameters by depth: patch embedding and positions, each block, then the last norm and the classifier."""
    depth = len(classifier.encoder.blocks)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("encoder.")
        if inner.startswith("blocks."):
            layer = int(inner.split(".")[1]) + 1
        else:
            layer = depth + 1 if inner.startswith(("norm", "head")) else 0
        groups.setdefault((layer, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * config.layer_decay ** (depth + 1 - layer),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (layer, decays), parameters in groups.items()
    ]


def _set_rates(optimizer: torch.optim.Optimizer, config: FinetuneConfig, epoch: float) -> None:
    min_lr = 1e-6
    for group in optimizer.param_groups:
        if epoch < config.warmup_epochs:
            group["lr"] = group["peak"] * epoch / config.warmup_epochs
        else:
            progress = (epoch - config.warmup_epochs) / max(1e-9, config.epochs - config.warmup_epochs)
            group["lr"] = min_lr + (group["peak"] - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
