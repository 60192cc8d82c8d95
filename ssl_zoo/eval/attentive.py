"""Attentive probe: one learned query attends to all patch tokens of the frozen encoder (CAE, arXiv 2202.03026)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from ssl_zoo.eval.base import EVALUATORS, Evaluator, EvaluatorConfig, Score, Subject, accuracy, check_labels
from ssl_zoo.eval.features import Features, Pooling, feature_dim
from ssl_zoo.seeding import generator_for, seed_for
from ssl_zoo.settings import setting


@dataclass
class AttentiveConfig(EvaluatorConfig):
    """Cross-attention probe. Structure: CAE; optimizer: V-JEPA (AdamW, cosine to 0, 20 epochs)."""

    pooling: Pooling = setting(Pooling.tokens, "always tokens: the probe pools them itself")
    num_heads: int = setting(0, "attention heads; 0 takes the encoder's")
    lr: float = setting(0.001, "at the start of the cosine")
    weight_decay: float = setting(0.001, "of AdamW")
    epochs: int = setting(20, "passes over the train images")
    batch_size: int = setting(256, "images per step")
    max_gigabytes: float = setting(8.0, "refuse to hold more tokens than that in memory")
    seed: int = setting(0, "of initial weights and order")

    def __post_init__(self) -> None:
        if self.pooling is not Pooling.tokens:
            raise ValueError(f"attentive.pooling={self.pooling.value}: the probe needs tokens")
        for key in ("epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"attentive.{key}={getattr(self, key)}: needs at least 1")
        for key in ("lr", "max_gigabytes"):
            if getattr(self, key) <= 0:
                raise ValueError(f"attentive.{key}={getattr(self, key)} must be positive")


class AttentiveHead(nn.Module):
    """Tokens to class scores: layer norm, one query's cross-attention, batch norm without affine, linear map."""

    def __init__(self, dim: int, num_heads: int, num_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.query_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.batch_norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.classes = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.classes.weight, std=0.01)
        nn.init.zeros_(self.classes.bias)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B classes"]:
        """Scores of images from their tokens, which ``standardized`` has been applied to."""
        return self.classes(self.batch_norm(self._attended(tokens, self.query_norm(self.query[0, 0]))))

    def _attended(self, tokens: Float[Tensor, "B N D"], query: Float[Tensor, "D"]) -> Float[Tensor, "B D"]:
        """``attention(query, norm(tokens), norm(tokens))``, with no other work on all tokens than two products.

        A head's logits are products of the tokens with the transpose of its key map times its query; the keys' bias
        adds the same to all. Values, and scale and offset of the norm, are linear in the tokens, so that their weighted
        mean is that of the tokens, mapped.
        """
        attention = self.attention
        of_query, of_keys, of_values = attention.in_proj_weight.unflatten(0, (3, attention.num_heads, -1)).unbind()
        query_bias, _, value_bias = attention.in_proj_bias.unflatten(0, (3, attention.num_heads, -1)).unbind()
        queries = (of_query @ query + query_bias) * attention.head_dim**-0.5
        directions = torch.einsum("hk,hkd->dh", queries, of_keys) * self.norm.weight[:, None]
        weights = (tokens @ directions).softmax(dim=1)
        means = (weights.mT @ tokens) * self.norm.weight + self.norm.bias
        values = torch.einsum("bhd,hkd->bhk", means, of_values) + value_bias
        return attention.out_proj(values.flatten(1))


def standardized(tokens: Float[Tensor, "n N D"]) -> Float[Tensor, "n N D"]:
    """What a layer norm does before its scale and offset."""
    return layer_norm(tokens, tokens.shape[-1:])


@EVALUATORS.register("attentive", AttentiveConfig)
class Attentive(Evaluator):
    """A learned query that attends to all tokens of the frozen encoder, and a linear classifier behind it."""

    version = 2  # 1 trained in the encoder's number format
    config: AttentiveConfig

    def __call__(self, subject: Subject) -> Sequence[Score]:
        config, encoder = self.config, subject.encoder
        num_images = subject.train.num_images + subject.test.num_images
        width = feature_dim(encoder, config.pooling, config.num_layers)
        needed = 4e-9 * num_images * encoder.num_patches * width
        if needed > config.max_gigabytes:
            raise ValueError(
                f"attentive: the tokens of {num_images} images take {needed:.1f} GB; lower probe.train_samples and "
                f"probe.test_samples or raise probe.attentive.max_gigabytes={config.max_gigabytes}"
            )
        train, test = subject.features(config)
        check_labels("attentive", train, test)
        num_heads = config.num_heads or encoder.config.num_heads
        predicted = attentive_predictions(train, test, replace(config, num_heads=num_heads), subject.device)
        return [Score("attentive", accuracy(predicted, test.labels), self.protocol(subject))]


@torch.enable_grad()
def attentive_predictions(
    train: Features, test: Features, config: AttentiveConfig, device: torch.device
) -> Int[Tensor, "n"]:
    """The predicted class of every test image, of a probe trained on the train images, in float32."""
    num_classes = int(train.labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "attentive"))
        head = AttentiveHead(train.values.shape[-1], config.num_heads, num_classes).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    batch_size = min(config.batch_size, len(train.values))
    num_steps = config.epochs * (len(train.values) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / num_steps)) / 2)
    generator = generator_for(config.seed, "attentive", "order")
    for _ in range(config.epochs):
        order = torch.randperm(len(train.values), generator=generator)
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            scores = head(standardized(train.values[rows].to(device)))
            cross_entropy(scores, train.labels[rows].to(device)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    head.eval()
    with torch.no_grad():
        return torch.cat([head(standardized(part.to(device))).argmax(dim=1).cpu() for part in test.values.split(1024)])
