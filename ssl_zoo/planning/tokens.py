"""Tokens that pass through a method's transformers, and the FLOPs that follow from their number."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.method import Method
from ssl_zoo.planning.plan import plan_step


@dataclass(frozen=True)
class Stack:
    """A sequence of equal transformer blocks and its input per image.

    The last block of a predictor or decoder, which computes the targets alone, is counted as a full one.

    Attributes:
        name: the module that owns the blocks, within the method.
        weights: elements of a block's weight matrices.
        tokens: tokens per image, over all sequences of the image.
        pairs: pairs of tokens that attend to each other.
        is_trained: whether there is a backward pass.
    """

    name: str
    depth: int
    dim: int
    weights: int
    tokens: float
    pairs: float
    is_trained: bool

    @property
    def forward_flops(self) -> float:
        """FLOPs per image: all tokens times all weights, and two attention matmuls over all pairs of tokens."""
        return self.depth * (2 * self.weights * self.tokens + 4 * self.dim * self.pairs)

    @property
    def step_flops(self) -> float:
        """Forward and backward FLOPs per image; a backward pass differentiates both factors of every matmul."""
        return self.forward_flops * (3 if self.is_trained else 1)


def stacks(method: Method, batch: Batch) -> Sequence[Stack]:
    """Return the stacks of blocks that a batch on the meta device passes through."""
    shapes_of: dict[str, list[tuple[int, ...]]] = {}
    blocks = {
        name.removesuffix(".blocks"): module
        for name, module in method.named_modules()
        if name.endswith(".blocks") and isinstance(module, nn.ModuleList)
    }
    hooks = [
        part[0].register_forward_pre_hook(
            lambda _, inputs, name=name: shapes_of.setdefault(name, []).append(tuple(inputs[0].shape))
        )
        for name, part in blocks.items()
    ]
    with torch.no_grad():
        method(batch, plan_step(method, "meta"))
    for hook in hooks:
        hook.remove()
    return [_stack(name, blocks[name], shapes, batch.num_images) for name, shapes in shapes_of.items()]


def _stack(name: str, blocks: nn.ModuleList, shapes: list[tuple[int, ...]], num_images: int) -> Stack:
    parameters = list(blocks[0].parameters())
    return Stack(
        name,
        len(blocks),
        shapes[0][-1],
        sum(parameter.numel() for parameter in parameters if parameter.ndim > 1),
        sum(sequences * length for sequences, length, _ in shapes) / num_images,
        sum(sequences * length**2 for sequences, length, _ in shapes) / num_images,
        any(parameter.requires_grad for parameter in parameters),
    )
