"""Fine-tuning: a copy of the encoder and a linear classifier are trained end to end.

The recipe is MAE's (arXiv 2111.06377, table 9): AdamW, layer-wise lr decay, drop path, mixup and cutmix, label
smoothing, average-pooled patch tokens. Differs from the reference: crops and flips are taken from the image as
evaluators see it, and there is neither RandAugment nor random erasing.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from ssl_zoo.eval.augment import random_crops
from ssl_zoo.eval.base import EVALUATORS, CannotEvaluate, EvaluatedModel, Evaluator, EvaluatorConfig, accuracy
from ssl_zoo.eval.features import Pooling, feature_dim, pooled
from ssl_zoo.nn import ViT
from ssl_zoo.scores import Score
from ssl_zoo.seeding import generator_for, seed_for
from ssl_zoo.settings import setting


@dataclass
class FinetuneConfig(EvaluatorConfig):
    """Fine-tuning of all weights. The defaults are MAE's for ViT-B/16 and 100 epochs."""

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
    clip_grad_norm: float = setting(0.0, "limit of the gradient's norm; 0 = none", at_least=0)
    seed: int = setting(0, "seed of the classifier, order and augmentation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"{self.key('crop_scale')}={self.crop_scale} must be [low, high] with low <= high")
        if self.pooling is Pooling.tokens:
            raise ValueError(f"{self.key('pooling')}=tokens: the classifier needs one vector per image")


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
class Finetune(Evaluator):
    """Fine-tuning of a copy of the encoder with a linear classifier on the train images."""

    config: FinetuneConfig

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        labels = model.train.labels[model.train.index]
        if len(labels.unique()) < 2:
            raise CannotEvaluate("finetune: all train images are of one class; raise probe.train_samples")
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(self.config.seed, "finetune") % 2**32)
            classifier = Classifier(copy.deepcopy(model.encoder), self.config, int(labels.max()) + 1)
            classifier.to(model.device).requires_grad_(True)
            train(classifier, model, self.config)
        predicted, labels = _predict(classifier, model)
        return [Score("finetune", accuracy(predicted, labels), self.protocol(model))]


@torch.enable_grad()
def train(classifier: Classifier, model: EvaluatedModel, config: FinetuneConfig) -> None:
    """Train in place. Drop path and mixup use the global random state, which the caller seeds and restores."""
    set_drop_path(classifier.encoder, config.drop_path)
    classifier.train()
    scale = config.lr * config.batch_size / 256
    optimizer = torch.optim.AdamW(layer_groups(classifier, config, scale), betas=(0.9, 0.999))
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    num_classes = classifier.head.out_features
    kinds = (v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)
    mixes = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
    mix = v2.RandomChoice(mixes) if mixes else None
    generator = generator_for(config.seed, "finetune")
    batches_per_epoch = math.ceil(model.train.num_images / config.batch_size)
    for epoch in range(config.epochs):
        for number, (images, labels) in enumerate(_batches(model, config.batch_size, generator)):
            _set_rates(optimizer, config, epoch + number / batches_per_epoch)
            images = random_crops(images, config.crop_scale, generator)
            images, targets = mix(images, labels) if mix else (images, labels)
            with model.precision():
                logits = classifier(images)
            cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing).backward()
            if config.clip_grad_norm:
                nn.utils.clip_grad_norm_(classifier.parameters(), config.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


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


def set_drop_path(encoder: ViT, rate: float) -> None:
    """Set each block's drop-path rate, which grows linearly to ``rate`` at the last block."""
    depth = len(encoder.blocks)
    for number, block in enumerate(encoder.blocks):
        block_rate = rate * number / max(1, depth - 1)
        block.drop_path1, block.drop_path2 = (DropPath(block_rate) if block_rate else nn.Identity() for _ in range(2))


def _set_rates(optimizer: torch.optim.Optimizer, config: FinetuneConfig, epoch: float) -> None:
    min_lr = 1e-6
    for group in optimizer.param_groups:
        if epoch < config.warmup_epochs:
            group["lr"] = group["peak"] * epoch / config.warmup_epochs
        else:
            progress = (epoch - config.warmup_epochs) / max(1e-9, config.epochs - config.warmup_epochs)
            group["lr"] = min_lr + (group["peak"] - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def _batches(model: EvaluatedModel, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all train images in a new random order, in batches of ``batch_size``."""
    images, labels, count = [], [], 0
    for part, part_labels, _ in model.train.shuffled(generator):
        images.append(part)
        labels.append(part_labels)
        count += len(part)
        while count >= batch_size:
            all_images, all_labels = torch.cat(images), torch.cat(labels)
            yield all_images[:batch_size].to(model.device), all_labels[:batch_size].to(model.device)
            images, labels, count = [all_images[batch_size:]], [all_labels[batch_size:]], count - batch_size
    if count > 1:
        yield torch.cat(images).to(model.device), torch.cat(labels).to(model.device)


@torch.no_grad()
def _predict(classifier: Classifier, model: EvaluatedModel) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    classifier.eval()
    with model.precision():
        parts = [(classifier(images.to(model.device)).argmax(dim=1).cpu(), labels) for images, labels, _ in model.test]
    predicted, expected = map(torch.cat, zip(*parts, strict=True))
    return predicted, expected
