"""Exported folders read back by ``transformers``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.interop.huggingface_folder import DINOV2, MAE, Choice
from ssl_zoo.nn import NarrowViT, ViT


def load(folder: Path, choice: Choice) -> nn.Module:
    """Load an exported model with ``transformers``, from the folder alone.

    Raises:
        ValueError: ``transformers`` misses a tensor or does not know one.
    """
    import transformers

    options = {} if choice in (DINOV2, MAE) else {"add_pooling_layer": False}
    with _without_progress_bars(transformers):
        model, report = getattr(transformers, choice.architecture).from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **options
        )
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        raise ValueError(f"transformers {transformers.__version__} reads {choice.architecture} with {wrong}")
    return model.eval()


@contextmanager
def _without_progress_bars(transformers: Any) -> Iterator[None]:
    was_enabled = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers.logging.enable_progress_bar()


def mae_tokens(model: nn.Module, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
    """Return class token and all patch tokens in raster order; by default the model samples an order."""
    ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
    num_patches = model.vit.embeddings.patch_embeddings.num_patches
    order = torch.arange(num_patches).float().expand(len(images), -1)
    tokens = model.vit(images, noise=order).last_hidden_state
    model.config.mask_ratio = ratio
    return tokens


def check_reconstruction(
    model: nn.Module, encoder: ViT, decoder: NarrowViT, images: Float[Tensor, "B C H W"], tolerance: float
) -> None:
    """Compare the predicted pixels of masked patches for one mask.

    Raises:
        ValueError: they differ.
    """
    noise = torch.rand(len(images), encoder.num_patches, generator=torch.Generator().manual_seed(0))
    num_visible = int(encoder.num_patches * (1 - model.config.mask_ratio))
    order = noise.argsort(dim=1)
    context, targets = order[:, None, :num_visible], order[:, None, num_visible:]
    ours = decoder(encoder(images, keep=context), context, targets[:, None])[:, 0, 0]
    theirs = model(images, noise=noise).logits
    theirs = theirs.gather(1, targets[:, 0, :, None].expand(-1, -1, theirs.shape[-1]))
    difference = ((ours - theirs).abs().max() / ours.abs().max()).item()
    if not difference <= tolerance:
        raise ValueError(
            f"the reconstruction of {type(model).__name__} differs by {difference:.1e} of the largest value"
        )
