"""Feature extraction with a frozen encoder: one pooled vector per image, in the order of the data."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import layer_norm

from ssl_zoo.eval.ranks import rank_and_size
from ssl_zoo.eval.shards import Features, FeatureShard
from ssl_zoo.nn import ViT

__all__ = ["Batches", "Features", "Pooling", "evaluating", "extract", "extract_shard", "feature_dim", "pooled"]

Batches = Iterable[tuple[Tensor, Tensor | None, Tensor]]  # (images, labels, sample ids), e.g. EvaluationData


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
) -> FeatureShard:
    """Encode the images of this rank's batches without random numbers and without changing the encoder.

    In a process group every rank must call it: rank i encodes the batches i, i + world size, ..., to the same bits as
    one process, since no batch is split. A rank without a batch of its own in the last round encodes another rank's and
    discards the result, because the forward pass of a sharded encoder is a collective.

    Args:
        num_layers: number of last blocks whose pooled tokens are concatenated, shallow to deep.
        final_norm: apply the encoder's final norm before pooling, to each of the blocks that are used.
        autocast: precision context of the forward pass; features are always float32.

    Raises:
        ValueError: if ``data`` is empty, or if the encoder lacks the token or the depth that ``pooling`` needs.
    """
    check_pooling(encoder, pooling, num_layers)
    rank, world_size = rank_and_size()
    parts: list[Tensor] = []
    of_images: list[tuple[Tensor | None, Tensor]] = []  # labels and sample ids of every batch, on every rank
    batches = iter(data)
    with evaluating(encoder), autocast or nullcontext():
        while round_of_batches := list(islice(batches, world_size)):
            of_images += [(labels, index) for _, labels, index in round_of_batches]
            images, _, _ = round_of_batches[min(rank, len(round_of_batches) - 1)]
            values = pooled(encoder, images.to(device, non_blocking=True), pooling, num_layers, final_norm)
            values = values.float().cpu()
            parts.append(values if rank < len(round_of_batches) else values[:0])
    if not parts:
        raise ValueError("the evaluation data has no images; check data.* and probe.train_samples, probe.test_samples")
    labels, index = zip(*of_images, strict=True)
    all_labels = None if labels[0] is None else torch.cat(labels)
    return FeatureShard(torch.cat(parts), all_labels, torch.cat(index), [len(i) for i in index], rank, world_size)


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
