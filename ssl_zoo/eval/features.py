"""Feature extraction with a frozen encoder: one pooled vector per image, in the order of the data."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from enum import Enum
from itertools import chain, repeat
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import layer_norm

from ssl_zoo.data.batch import Corrupt
from ssl_zoo.data.evaluation import NothingDecoded
from ssl_zoo.eval.ranks import gather_equal, rank_and_size
from ssl_zoo.eval.shards import Features, FeatureShard
from ssl_zoo.nn import ViT

__all__ = ["Batches", "Features", "Pooling", "evaluating", "extract", "extract_shard", "feature_dim", "pooled"]


class Batches(Protocol):
    """Batches of images that ranks share, such as ``EvaluationData``.

    Attributes:
        num_images: images of all batches. Those that can't be decoded are left out, and are in ``corrupt`` afterwards.
        labels: of all samples of the source, by sample id.
    """

    num_images: int
    labels: Int[Tensor, "N"] | None
    corrupt: Sequence[Corrupt]

    def __len__(self) -> int:
        """Number of batches."""

    def of_rank(self, rank: int, world_size: int) -> Iterator[tuple[Float[Tensor, "B C H W"], Int[Tensor, "B"]]]:
        """Yield images and sample ids of the batches rank, rank + world_size, ...; a batch may be empty."""


class Pooling(Enum):
    """How the tokens of an image become its feature, for each of the last ``num_layers`` blocks."""

    average = "average"  # mean over the patch tokens
    class_token = "class_token"  # first prefix token
    class_token_and_average = "class_token_and_average"  # class tokens, then the mean over the last block's patches
    tokens = "tokens"  # every patch token, for attentive probes; N times the memory


def extract(
    encoder: ViT,
    data: Batches,
    *,
    pooling: Pooling,
    num_layers: int = 1,
    final_norm: bool = True,
    device: torch.device | str = "cpu",
    autocast: AbstractContextManager | None = None,
) -> Features:
    """Encode every image of ``data``; every rank gets the features of all images. Arguments as for ``extract_shard``.

    While they are gathered, each rank holds its own part twice.
    """
    settings = {"pooling": pooling, "num_layers": num_layers, "final_norm": final_norm}
    return extract_shard(encoder, data, **settings, device=device, autocast=autocast).complete()


@torch.no_grad()  # not inference_mode: buffers that FSDP2 or a compiled block allocates there could never train again
def extract_shard(
    encoder: ViT,
    data: Batches,
    *,
    pooling: Pooling,
    num_layers: int = 1,
    final_norm: bool = True,
    device: torch.device | str = "cpu",
    autocast: AbstractContextManager | None = None,
    progress: Callable[[int], None] | None = None,
) -> FeatureShard:
    """Encode the images of this rank's batches without random numbers and without changing the encoder.

    In a process group every rank must call it: rank i decodes and encodes the batches i, i + world size, ..., to the
    same bits as one process, since no batch is split. A rank without an image in a round encodes a black one and
    discards the result, because the forward pass of a sharded encoder is a collective.

    Args:
        num_layers: number of last blocks whose pooled tokens are concatenated, shallow to deep.
        final_norm: apply the encoder's final norm before pooling, to each of the blocks that are used.
        autocast: precision context of the forward pass; features are always float32.
        progress: called with the number of images that this rank has encoded.

    Raises:
        ValueError: if ``data`` is empty, or if the encoder lacks the token or the depth that ``pooling`` needs.
        NothingDecoded: no rank could decode an image.
    """
    check_pooling(encoder, pooling, num_layers)
    if len(data) == 0:
        raise ValueError("the evaluation data has no images; check data.* and probe.train_samples, probe.test_samples")
    rank, world_size = rank_and_size()
    black = torch.zeros(1, encoder.config.in_channels, *encoder.config.image_shape)
    no_batch = black[:0], torch.empty(0, dtype=torch.int64)
    num_missing = -(-len(data) // world_size) - len(range(rank, len(data), world_size))  # 1 in the last round, or 0
    parts: list[Tensor] = []
    own: list[Tensor] = []  # sample ids of this rank's batches
    num_encoded = 0
    with evaluating(encoder), autocast or nullcontext():
        for images, index in chain(data.of_rank(rank, world_size), repeat(no_batch, num_missing)):
            images = (images if len(index) else black).to(device, non_blocking=True)
            values = pooled(encoder, images, pooling, num_layers, final_norm)
            parts.append(values.float().cpu()[: len(index)])
            own.append(index)
            num_encoded += len(index)
            if progress is not None:
                progress(num_encoded)
    return _shard(data, torch.cat(parts), own, rank, world_size)


def _shard(
    data: Batches, values: Float[Tensor, "m *width"], own: Sequence[Int[Tensor, "_"]], rank: int, world_size: int
) -> FeatureShard:
    """Exchange the sizes and sample ids of all batches, given those of this rank, one for each round."""
    sizes = torch.tensor([len(index) for index in own])
    by_rank = [sizes] if world_size == 1 else gather_equal(sizes)
    in_order = torch.stack(by_rank, dim=1).flatten()[: len(data)]
    if in_order.sum() == 0:
        raise NothingDecoded(data.num_images, data.corrupt)
    shard = FeatureShard(values, None, torch.cat(own), in_order.tolist(), rank, world_size)
    index = shard.gather(shard.index)
    return replace(shard, labels=None if data.labels is None else data.labels[index], index=index)


def pooled(
    encoder: ViT, images: Float[Tensor, "B _ H W"], pooling: Pooling, num_layers: int = 1, final_norm: bool = True
) -> Float[Tensor, "B *width"]:
    """Return the feature of each unmasked image; arguments as for ``extract``."""
    return pool(last_layers(encoder, images, num_layers, final_norm), pooling, encoder.num_prefix_tokens)


def last_layers(
    encoder: ViT, images: Float[Tensor, "B _ H W"], num_layers: int, final_norm: bool
) -> list[Float[Tensor, "B L D"]]:
    """Return all tokens of the last blocks, shallow to deep; arguments as for ``extract``."""
    if num_layers > 1:
        layers = encoder(images, layers=range(-num_layers, 0))
        return [_normed(encoder.norm, layer) for layer in layers] if final_norm else layers
    return [encoder(images)] if final_norm else encoder(images, layers=[-1])


def pool(
    layers: Sequence[Float[Tensor, "B L D"]], pooling: Pooling, num_prefix_tokens: int
) -> Float[Tensor, "B *width"]:
    """Pool the tokens of each block and concatenate the results."""
    patches = [layer[:, num_prefix_tokens:] for layer in layers]
    if pooling is Pooling.tokens:
        return torch.cat(patches, dim=-1)
    if pooling is Pooling.average:
        return torch.cat([tokens.float().mean(dim=1) for tokens in patches], dim=-1)
    parts = [layer[:, 0].float() for layer in layers]
    if pooling is Pooling.class_token_and_average:
        parts.append(patches[-1].float().mean(dim=1))
    return torch.cat(parts, dim=-1)


def feature_dim(encoder: ViT, pooling: Pooling, num_layers: int) -> int:
    """Return the width of a feature, or of a token with ``Pooling.tokens``."""
    return encoder.embed_dim * (num_layers + (pooling is Pooling.class_token_and_average))


def _normed(norm: nn.Module, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """Return ``norm(tokens)``, also where the weights are sharded, as they are outside ``forward``."""
    if isinstance(norm, nn.Identity):
        return tokens  # blocks that normalise their outputs have no final norm
    weight, bias = (p.full_tensor() if isinstance(p, DTensor) else p for p in (norm.weight, norm.bias))
    return layer_norm(tokens, norm.normalized_shape, weight, bias, norm.eps)


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Put the encoder in evaluation mode; on exit each of its modules returns to its previous mode."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_pooling(encoder: ViT, pooling: Pooling, num_layers: int) -> None:
    """Raise ValueError if the encoder lacks the token or the depth that a feature needs."""
    needs_class_token = pooling in (Pooling.class_token, Pooling.class_token_and_average)
    if needs_class_token and encoder.cls_token is None:
        raise ValueError(f"pooling={pooling.value}, but the encoder has no class token; use pooling=average")
    if not 1 <= num_layers <= len(encoder.blocks):
        raise ValueError(f"num_layers={num_layers}, but the encoder has {len(encoder.blocks)} blocks")
