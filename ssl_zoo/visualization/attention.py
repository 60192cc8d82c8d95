"""Attention maps: how much each patch is attended to, by chosen heads of chosen blocks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.nn.attention_weights import attention_weights
from ssl_zoo.plotting import Column, Figure, Ramp, map_colours, patch_colours
from ssl_zoo.visualization.marks import check_patch, framed
from ssl_zoo.visualization.subject import Subject


def plot_attention(
    subject: Subject,
    *,
    layers: Sequence[int] = (-1,),
    heads: Sequence[int] | None = None,
    patch: tuple[int, int] | None = None,
) -> Figure:
    """Return a figure with the attention to every patch: a column for the mean over heads, and one for each head.

    Weights to class token and registers are left out; a caption under each panel has the sum of the others.

    Args:
        layers: indices of blocks from 0, negative ones counted from the last.
        heads: indices from 0; None shows all.
        patch: row and column of the patch that attends. By default the class token does, or, in an encoder without,
            the mean over all patches.

    Raises:
        ValueError: a block, head or patch that does not exist; the message has the bounds.
    """
    depth, num_heads = len(subject.encoder.blocks), subject.encoder.config.num_heads
    chosen_layers = [_index("--layers", layer, depth, "the encoder has blocks") for layer in layers]
    shown_heads = range(num_heads) if heads is None else heads
    chosen_heads = [_index("--heads", head, num_heads, "its blocks have heads") for head in shown_heads]
    if patch is not None:
        check_patch(patch, subject.grid)
    maps = attention_maps(subject, chosen_layers, patch)
    columns = [Column("image", framed(subject.pixels, patch, subject.grid))]
    for layer, of_layer in zip(chosen_layers, maps, strict=True):
        where = f"block {layer}" if len(chosen_layers) > 1 else ""
        columns.append(_column(f"{where} mean of {num_heads} heads", of_layer.mean(dim=1), subject))
        columns += [_column(f"{where} head {head}", of_layer[:, head], subject) for head in chosen_heads]
    blocks = f"block {chosen_layers[0]}" if len(chosen_layers) == 1 else f"{len(chosen_layers)} blocks"
    return Figure(
        f"Attention: where {_query(subject, patch)} looks, in {blocks} of 0..{depth - 1}",
        columns,
        [Ramp("attention weight of a patch", "0", "the largest of the panel")],
        "In each head of a block every token collects information from all others, with weights whose sum is one. The "
        f"percentages are the largest weight of a patch (equal ones would be {1 / maps[0].shape[-1]:.1%}), and the sum "
        "over all patches where class token or registers take a part.",
    )


@torch.no_grad()
def attention_maps(
    subject: Subject, layers: Sequence[int], patch: tuple[int, int] | None = None
) -> list[Float[Tensor, "B heads N"]]:
    """Return the weights of one query to every patch, per block; arguments as for ``plot_attention``.

    One image at a time is encoded, since the weights of all queries take memory.
    """
    encoder, columns = subject.encoder, subject.grid[1]
    num_prefix = encoder.num_prefix_tokens
    per_image = []
    for view in subject.views.split(1):
        weights = attention_weights(encoder, view, layers)
        if patch is not None:
            rows = [of_layer[:, :, num_prefix + patch[0] * columns + patch[1]] for of_layer in weights]
        elif encoder.cls_token is not None:
            rows = [of_layer[:, :, 0] for of_layer in weights]
        else:
            rows = [of_layer[:, :, num_prefix:].mean(dim=2) for of_layer in weights]
        per_image.append([row[..., num_prefix:].cpu() for row in rows])
    return [torch.cat(of_layer) for of_layer in zip(*per_image, strict=True)]


def _column(title: str, weights: Float[Tensor, "B N"], subject: Subject) -> Column:
    largest = weights.amax(dim=1, keepdim=True)
    colours = map_colours(weights / largest.clamp_min(1e-12))
    captions = [f"at most {value:.1%}" for value in largest[:, 0].tolist()]
    if subject.encoder.num_prefix_tokens:
        sums = weights.sum(dim=1).tolist()
        captions = [f"{text}, in all {total:.0%}" for text, total in zip(captions, sums, strict=True)]
    return Column(title.strip(), patch_colours(colours, subject.grid, subject.rendering.size), captions)


def _query(subject: Subject, patch: tuple[int, int] | None) -> str:
    if patch is not None:
        return f"the framed patch (row {patch[0]}, column {patch[1]})"
    return "the class token" if subject.encoder.cls_token is not None else "the average patch"


def _index(option: str, index: int, count: int, what: str) -> int:
    """Return an index counted from 0."""
    if not -count <= index < count:
        raise ValueError(f"{option} {index}: {what} 0..{count - 1}, or -{count}..-1 counted from the last")
    return index % count
