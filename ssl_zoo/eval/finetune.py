"""Fine-tuning: a copy of the encoder and a linear classifier, trained end to end.

Recipe: MAE (arXiv 2111.06377, table 9): AdamW, layer-wise decay of the learning rate, drop path, mixup and cutmix,
label smoothing, mean of the patch tokens. Of its augmentations there are crops and flips, cut out of the image as
evaluations see it; RandAugment and erasing are not.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from ssl_zoo.eval.augment import random_views
from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Score, Subject, accuracy
from ssl_zoo.eval.features import Pooling, feature_dim, pooled
from ssl_zoo.nn import ViT
from ssl_zoo.seeding import generator_for, seed_for
from ssl_zoo.settings import setting


@dataclass
class FinetuneConfig(EvaluatorConfig):
    """Fine-tuning of all weights. Defaults: MAE's for ViT-B/16, 100 epochs."""

    epochs: int = setting(100, "passes over the train images")
    warmup_epochs: float = setting(5.0, "epochs of linear warm-up")
    batch_size: int = setting(1024, "images per step")
    lr: float = setting(0.0005, "of the classifier, per 256 images of a batch; cosine to 1e-6")
    layer_decay: float = setting(0.65, "factor of the learning rate from each block to the one before it")
    weight_decay: float = setting(0.05, "of AdamW, on matrices")
    drop_path: float = setting(0.1, "rate of the last block, growing linearly from 0")
    label_smoothing: float = setting(0.1, "share of the target spread over all classes")
    mixup: float = setting(0.8, "parameter of the beta distribution; 0 leaves it out")
    cutmix: float = setting(1.0, "parameter of the beta distribution; 0 leaves it out")
    crop_scale: list[float] = setting([0.08, 1.0], "area of the random crops, [low, high]")
    clip_grad_norm: float = setting(0.0, "limit of the gradient's norm; 0 = none")
    seed: int = setting(0, "of the classifier, order and augmentation")

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"finetune.{key}={getattr(self, key)}: needs at least 1")
        for key in ("drop_path", "label_smoothing"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"finetune.{key}={getattr(self, key)} must lie in [0, 1)")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"finetune.layer_decay={self.layer_decay} must lie in (0, 1]")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"finetune.crop_scale={self.crop_scale} must satisfy 0 < low <= high <= 1")
        if self.pooling is Pooling.tokens:
            raise ValueError("finetune.pooling=tokens: the classifier needs one vector per image")


class Classifier(nn.Module):
    """An encoder with a linear map behind its pooled feature."""

    def __init__(self, encoder: ViT, config: FinetuneConfig, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.head = nn.Linear(feature_dim(encoder, config.pooling, config.num_layers), num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        config = self.config
        return self.head(pooled(self.encoder, images, config.pooling, config.num_layers, config.final_norm))


@EVALUATORS.register("finetune", FinetuneConfig)
class Finetune(Evaluator):
    """Accuracy after training a copy of the encoder and a classifier end to end on the train images."""

    config: FinetuneConfig

    def __call__(self, subject: Subject) -> Sequence[Score]:
        labels = subject.train.labels[subject.train.index]
        if len(labels.unique()) < 2:
            raise ValueError("finetune: the train images are all of one class; raise probe.train_samples")
        with _seeded(self.config.seed):
            classifier = Classifier(copy.deepcopy(subject.encoder), self.config, int(labels.max()) + 1)
            classifier.to(subject.device).requires_grad_(True)
            train(classifier, subject, self.config)
        predicted, expected = _predictions(classifier, subject)
        protocol = self.protocol(subject)
        return [Score("finetune", accuracy(predicted, expected), protocol)]


@torch.enable_grad()
def train(classifier: Classifier, subject: Subject, config: FinetuneConfig) -> None:
    """Train in place; draws from the global random state (drop path, mixup), which the caller seeds and restores."""
    set_drop_path(classifier.encoder, config.drop_path)
    classifier.train()
    scale = config.lr * config.batch_size / 256
    optimizer = torch.optim.AdamW(layer_groups(classifier, config, scale), betas=(0.9, 0.999))
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    num_classes = classifier.head.out_features
    mixes = [
        mix(alpha=alpha, num_classes=num_classes)
        for mix, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        if alpha
    ]
    mix = v2.RandomChoice(mixes) if mixes else None
    generator = generator_for(config.seed, "finetune")
    batches_per_epoch = math.ceil(subject.train.num_images / config.batch_size)
    for epoch in range(config.epochs):
        for number, (images, labels) in enumerate(_batches(subject, config.batch_size, generator)):
            _set_rates(optimizer, config, epoch + number / batches_per_epoch)
            images = random_views(images, config.crop_scale, generator)
            images, wanted = mix(images, labels) if mix else (images, labels)
            with subject.precision():
                scores = classifier(images)
            cross_entropy(scores.float(), wanted, label_smoothing=config.label_smoothing).backward()
            if config.clip_grad_norm:
                nn.utils.clip_grad_norm_(classifier.parameters(), config.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def layer_groups(classifier: Classifier, config: FinetuneConfig, lr: float) -> list[dict]:
    """Parameter groups by depth: patch embedding and positions, each block, then the last norm and the classifier."""
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


def set_drop_path(encoder: ViT, rate: float) -> None:
    """Drop each block's branches with a probability that grows linearly to ``rate`` at the last block."""
    depth = len(encoder.blocks)
    for number, block in enumerate(encoder.blocks):
        share = rate * number / max(1, depth - 1)
        block.drop_path1, block.drop_path2 = (DropPath(share) if share else nn.Identity() for _ in range(2))


def _set_rates(optimizer: torch.optim.Optimizer, config: FinetuneConfig, epoch: float) -> None:
    lowest = 1e-6
    for group in optimizer.param_groups:
        if epoch < config.warmup_epochs:
            group["lr"] = group["peak"] * epoch / config.warmup_epochs
        else:
            progress = (epoch - config.warmup_epochs) / max(1e-9, config.epochs - config.warmup_epochs)
            group["lr"] = lowest + (group["peak"] - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


def _batches(subject: Subject, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """All train images in a new order, in batches of ``batch_size``."""
    images, labels, held = [], [], 0
    for part, part_labels, _ in subject.train.shuffled(generator):
        images.append(part)
        labels.append(part_labels)
        held += len(part)
        while held >= batch_size:
            all_images, all_labels = torch.cat(images), torch.cat(labels)
            yield all_images[:batch_size].to(subject.device), all_labels[:batch_size].to(subject.device)
            images, labels, held = [all_images[batch_size:]], [all_labels[batch_size:]], held - batch_size
    if held > 1:
        yield torch.cat(images).to(subject.device), torch.cat(labels).to(subject.device)


@torch.no_grad()
def _predictions(classifier: Classifier, subject: Subject) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    classifier.eval()
    predicted, expected = [], []
    with subject.precision():
        for images, labels, _ in subject.test:
            predicted.append(classifier(images.to(subject.device)).argmax(dim=1).cpu())
            expected.append(labels)
    return torch.cat(predicted), torch.cat(expected)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global random state seeded, and as it was afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "finetune") % 2**32)
        yield
