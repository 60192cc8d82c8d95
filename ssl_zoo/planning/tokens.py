"""How many tokens pass through a method's transformers, and the operations that follow from their number."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.method import Method, Progress, Step


@dataclass(frozen=True)
class Stack:
    """Equal blocks one after the other, and what enters them per image.

    The last block of a predictor or decoder, which computes the targets alone, is taken for a whole one.

    Attributes:
        name: of the module that owns the blocks, within the method.
        weights: elements of a block's matrices.
        tokens: per image, over all sequences that the image gives.
        pairs: of tokens that attend to each other.
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
        """Of one image: each matrix element meets each token, and two products of attention each pair of tokens."""
        return self.depth * (2 * self.weights * self.tokens + 4 * self.dim * self.pairs)

    @property
    def step_flops(self) -> float:
        """Forward and backward, where both factors of every product are differentiated."""
        return self.forward_flops * (3 if self.is_trained else 1)


def stacks(method: Method, batch: Batch) -> Sequence[Stack]:
    """The stacks of blocks that a batch on the meta device passes through."""
    seen: dict[str, list[tuple[int, ...]]] = {}
    blocks = {
        name.removesuffix(".blocks"): module
        for name, module in method.named_modules()
        if name.endswith(".blocks") and isinstance(module, nn.ModuleList)
    }
    hooks = [
        part[0].register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(_shape(inputs)))
        for name, part in blocks.items()
    ]
    with torch.no_grad():
        method(batch, Step.of(method, Progress(0, 1, 0), "meta"))
    for hook in hooks:
        hook.remove()
    return [_stack(name, blocks[name], shapes, batch.num_images) for name, shapes in seen.items()]


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


def _shape(inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(inputs[0].shape)
