"""Feature extraction with a frozen encoder: one pooled vector per image, in the order of the data."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import layer_norm

from ssl_zoo.nn import ViT

Batches = Iterable[tuple[Tensor, Tensor | None, Tensor]]  # (images, labels, sample ids), e.g. EvaluationData
T = TypeVar("T")
_Part = tuple[int, Tensor, Tensor | None, Tensor]  # batch number, features, labels, sample ids


class Pooling(Enum):
    """How the tokens of an image become its feature, for each of the last ``num_layers`` blocks."""

    average = "average"  # mean over the patch tokens
    class_token = "class_token"  # first prefix token
    class_token_and_average = "class_token_and_average"  # class tokens, then the mean over the last block's patches
    tokens = "tokens"  # every patch token, for attentive probes; N times the memory


@dataclass(frozen=True)
class Features:
    """Features of n images in host memory; row i belongs to the i-th image of the data."""

    values: Float[Tensor, "n *width"]  # (n, D); (n, N, D) for Pooling.tokens
    labels: Int[Tensor, "n"] | None  # None where the data has none
    index: Int[Tensor, "n"]  # sample ids in their source


@torch.no_grad()  # not inference_mode: buffers that FSDP2 or a compiled block allocates there could never train again
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
    """Encode every image of ``data`` without random numbers and without changing the encoder.

    In a process group every rank must call it: rank i encodes the batches i, i + world size, ... All ranks return the
    same, complete features, bit-equal to those of one process, since no batch is split. A rank without a batch of its
    own in the last round encodes another rank's and discards the result, because the forward pass of a sharded encoder
    is a collective. Each rank holds the features twice while they are gathered.

    Args:
        num_layers: number of last blocks whose pooled tokens are concatenated, shallow to deep.
        final_norm: apply the encoder's final norm before pooling, to each of the blocks that are used.
        autocast: precision context of the forward pass; features are always float32.

    Raises:
        ValueError: if ``data`` is empty, or if the encoder lacks the token or the depth that ``pooling`` needs.
    """
    _check(encoder, pooling, num_layers)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)
    parts: list[_Part] = []
    batches = enumerate(data)
    with evaluating(encoder), autocast or nullcontext():
        while round_of_batches := list(islice(batches, world_size)):
            number, (images, labels, index) = round_of_batches[min(rank, len(round_of_batches) - 1)]
            values = pooled(encoder, images.to(device, non_blocking=True), pooling, num_layers, final_norm)
            values = values.float().cpu()
            if rank < len(round_of_batches):
                parts.append((number, values, labels, index))
    parts = sorted((part for of_rank in _gather(parts) for part in of_rank), key=lambda part: part[0])
    if not parts:
        raise ValueError("the evaluation data has no images; check data.* and probe.train_samples, probe.test_samples")
    _, values, labels, index = zip(*parts, strict=True)
    return Features(torch.cat(values), None if labels[0] is None else torch.cat(labels), torch.cat(index))


def pooled(
    encoder: ViT, images: Float[Tensor, "B _ H W"], pooling: Pooling, num_layers: int = 1, final_norm: bool = True
) -> Float[Tensor, "B *width"]:
    """Return the feature of each unmasked image; arguments as for ``extract``."""
    if num_layers > 1:
        layers = encoder(images, layers=range(-num_layers, 0))
        layers = [_normed(encoder.norm, layer) for layer in layers] if final_norm else layers
    else:
        layers = [encoder(images)] if final_norm else encoder(images, layers=[-1])
    patches = [layer[:, encoder.num_prefix_tokens :] for layer in layers]
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


def _check(encoder: ViT, pooling: Pooling, num_layers: int) -> None:
    needs_class_token = pooling in (Pooling.class_token, Pooling.class_token_and_average)
    if needs_class_token and encoder.cls_token is None:
        raise ValueError(f"pooling={pooling.value}, but the encoder has no class token; use pooling=average")
    if not 1 <= num_layers <= len(encoder.blocks):
        raise ValueError(f"num_layers={num_layers}, but the encoder has {len(encoder.blocks)} blocks")


def on_all_ranks(flag: bool) -> bool:
    """Return on every rank whether the flag is true on all ranks."""
    return all(_gather(flag))


def is_main_process() -> bool:
    """Return whether this is the only process or rank 0 of its group."""
    return not _is_distributed() or dist.get_rank() == 0


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather(value: T) -> list[T]:
    """Return the values of all ranks, by rank."""
    if not _is_distributed():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
