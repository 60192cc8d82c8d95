"""The attention weights of an encoder's blocks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.nn.blocks import PostNormBlock, PreNormBlock
from ssl_zoo.nn.vit import ViT


@torch.no_grad()
def attention_weights(
    encoder: ViT, images: Float[Tensor, "B _ H W"], layers: Sequence[int]
) -> list[Float[Tensor, "B heads L L"]]:
    """Return the attention weights [query, key] of blocks for whole images, in float32.

    L = P + N tokens, the P prefix tokens first. Memory: 4 L^2 bytes per image, head and block.

    Args:
        layers: indices of blocks, negative ones counted from the last; the blocks after them don't run.

    Raises:
        ValueError: ``layers`` is empty or contains an index that is out of range.
    """
    depth, found = len(encoder.blocks), {}

    def remember(block: PreNormBlock | PostNormBlock, inputs: tuple[Tensor, Tensor | None]) -> None:
        found[block] = block.attention_weights(*inputs)

    wanted = [encoder.blocks[index] for index in layers if -depth <= index < depth]
    hooks = [block.register_forward_pre_hook(remember) for block in dict.fromkeys(wanted)]
    try:
        encoder(images, layers=layers)  # which refuses other indices
    finally:
        for hook in hooks:
            hook.remove()
    return [found[block] for block in wanted]
