"""Attentive probe: one learned query attends to all patch tokens of the frozen encoder (CAE, arXiv 2202.03026)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from ssl_zoo.eval.base import EVALUATORS, EvaluatedModel, Evaluator, EvaluatorConfig, accuracy, check_labels
from ssl_zoo.eval.features import Features, Pooling, feature_dim
from ssl_zoo.scores import Score
from ssl_zoo.seeding import generator_for, seed_for
from ssl_zoo.settings import setting


@dataclass
class AttentiveConfig(EvaluatorConfig):
    """Cross-attention probe. Structure: CAE; optimizer: V-JEPA (AdamW, cosine to 0, 20 epochs)."""

    pooling: Pooling = setting(Pooling.tokens, "always tokens: the probe pools them itself")
    num_heads: int = setting(0, "attention heads; 0 = as many as the encoder", at_least=0)
    lr: float = setting(0.001, "learning rate at the start of the cosine schedule", above=0)
    weight_decay: float = setting(0.001, "weight decay of AdamW", at_least=0)
    epochs: int = setting(20, "training epochs", at_least=1)
    batch_size: int = setting(256, "images per step", at_least=1)
    max_gigabytes: float = setting(8.0, "limit of the tokens held in memory", above=0)
    seed: int = setting(0, "seed of initial weights and order")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling is not Pooling.tokens:
            raise ValueError(f"{self.key('pooling')}={self.pooling.value} must be tokens, which the probe pools itself")


class AttentiveHead(nn.Module):
    """Tokens to logits: layer norm, cross-attention of one query, batch norm without affine, linear layer."""

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
        """Compute the logits of images from their tokens after ``standardize``."""
        return self.classes(self.batch_norm(self._attend(tokens, self.query_norm(self.query[0, 0]))))

    def _attend(self, tokens: Float[Tensor, "B N D"], query: Float[Tensor, "D"]) -> Float[Tensor, "B D"]:
        """Compute ``attention(query, norm(tokens), norm(tokens))`` with two matmuls over all tokens.

        A head's attention logits are the dot products of the tokens with its query, multiplied by the transposed key
        weights; the key bias adds the same constant to all. The value layer and the norm's scale and bias are linear,
        so they are applied to the weighted mean of the tokens instead of to each token.
        """
        attention = self.attention
        per_head = (3, attention.num_heads, -1)
        query_weight, key_weight, value_weight = attention.in_proj_weight.unflatten(0, per_head).unbind()
        query_bias, _, value_bias = attention.in_proj_bias.unflatten(0, per_head).unbind()
        queries = (query_weight @ query + query_bias) * attention.head_dim**-0.5
        directions = torch.einsum("hk,hkd->dh", queries, key_weight) * self.norm.weight[:, None]
        weights = (tokens @ directions).softmax(dim=1)
        means = (weights.mT @ tokens) * self.norm.weight + self.norm.bias
        values = torch.einsum("bhd,hkd->bhk", means, value_weight) + value_bias
        return attention.out_proj(values.flatten(1))


def standardize(tokens: Float[Tensor, "n N D"]) -> Float[Tensor, "n N D"]:
    """Apply a layer norm without scale and bias."""
    return layer_norm(tokens, tokens.shape[-1:])


@EVALUATORS.register("attentive", AttentiveConfig)
class Attentive(Evaluator):
    """A learned query attends to all tokens of the frozen encoder; a linear classifier follows."""

    version = 2  # version 1 trained in the encoder's precision
    config: AttentiveConfig

    def __call__(self, model: EvaluatedModel) -> Sequence[Score]:
        config, encoder = self.config, model.encoder
        num_images = model.train.num_images + model.test.num_images
        width = feature_dim(encoder, config.pooling, config.num_layers)
        gigabytes = 4e-9 * num_images * encoder.num_patches * width
        if gigabytes > config.max_gigabytes:
            raise ValueError(
                f"attentive: the tokens of {num_images} images take {gigabytes:.1f} GB; lower probe.train_samples and "
                f"probe.test_samples or raise {config.key('max_gigabytes')}={config.max_gigabytes}"
            )
        train, test = model.features(config)
        check_labels("attentive", train, test)
        num_heads = config.num_heads or encoder.config.num_heads
        predicted = attentive_predictions(train, test, replace(config, num_heads=num_heads), model.device)
        return [Score("attentive", accuracy(predicted, test.labels), self.protocol(model))]


@torch.enable_grad()
def attentive_predictions(
    train: Features, test: Features, config: AttentiveConfig, device: torch.device
) -> Int[Tensor, "n"]:
    """Train a probe on the train images in float32 and predict the class of every test image."""
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
            logits = head(standardize(train.values[rows].to(device)))
            cross_entropy(logits, train.labels[rows].to(device)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    head.eval()
    with torch.no_grad():
        return torch.cat([head(standardize(part.to(device))).argmax(dim=1).cpu() for part in test.values.split(1024)])
