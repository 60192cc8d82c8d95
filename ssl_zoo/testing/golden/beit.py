"""What golden fixtures of methods on BEiT's encoder have in common: its sizes, mask token and masked batches."""

import torch
from torch import Tensor, nn

from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch
from ssl_zoo.nn import Positions, ViTConfig
from ssl_zoo.testing.golden.fixture import Fixture, FixtureError


def beit_backbone(fixture: Fixture, prefix: str) -> ViTConfig:
    """Return the config of the encoder whose weights are stored under ``prefix``."""
    return ViTConfig(
        **fixture.vit_sizes(),
        positions=Positions.none,
        relative_position_bias=True,
        key_bias=False,
        layer_scale=0.1 if f"{prefix}blocks.0.gamma_1" in fixture.tensors else None,
        class_token=True,
    )


@torch.no_grad()
def load_mask_token(fixture: Fixture, name: str, stored: Tensor | None, mask_token: nn.Parameter) -> None:
    if stored is None or stored.shape != mask_token.shape:
        raise FixtureError(f"{fixture.path}: {name}: needs {list(mask_token.shape)}")
    mask_token.copy_(stored)


def masked_batch(fixture: Fixture, step: int, grid: tuple[int, int]) -> Batch:
    """Return the images of a step with their masked patches."""
    images, mask = fixture.tensor(f"step{step}.images"), fixture.tensor(f"step{step}.mask")
    rows, columns = grid
    size = fixture.count("image_size")
    if images.shape[1:] != (3, size, size) or mask.shape != (len(images), rows, columns) or mask.dtype != torch.bool:
        raise FixtureError(
            f"{fixture.path}: step{step}: images {list(images.shape)} and mask {list(mask.shape)} of {mask.dtype} "
            f"don't fit image_size={size} and a grid of {rows}x{columns} bool"
        )
    unused = torch.zeros(len(images), 1, 1, dtype=torch.int64)  # methods that replace patches read ``masked`` alone
    return Batch({"image": images}, {"image": Masks(unused, unused, masked=mask.flatten(1))})
