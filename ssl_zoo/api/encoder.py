"""Trained encoders for use: features of images in one call."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_zoo.api.transform import ImageLike, Transform
from ssl_zoo.engine.device import autocast
from ssl_zoo.engine.settings import Precision
from ssl_zoo.eval.features import Pooling, pooled
from ssl_zoo.nn import BackboneConfig, ViT


@dataclass(frozen=True)
class Origin:
    """Where an encoder comes from.

    Attributes:
        path: the checkpoint's folder, or the file of weights.
        method: name of the method that trained it.
        network: ``encoder`` or ``target_encoder``, or what the run evaluates.
        step: optimizer steps of the training; None where that is unknown.
        run: the run directory; None for exports and imports.
        config: configuration of the run as plain values, where it is known.
    """

    path: Path
    method: str
    network: str
    step: int | None
    run: Path | None = None
    config: Mapping[str, Any] | None = None


class Encoder:
    """A frozen encoder with its preprocessing; ``ssl_zoo.load`` makes it.

    Features are float32 tensors on the encoder's device, computed without gradient. ``network`` is the module itself,
    for everything else: fine-tuning, outputs of inner blocks, masks.

    Attributes:
        network: the ``ViT``, in evaluation mode.
        transform: from paths, Pillow images or pixels to normalised tensors.
        pooling: how ``embed`` pools by default: as the run's k-NN evaluator does.
        origin: where the weights come from.
    """

    def __init__(
        self,
        network: ViT,
        transform: Transform,
        origin: Origin,
        *,
        pooling: Pooling = Pooling.average,
        device: torch.device | str = "cpu",
        precision: Precision = Precision.fp32,
    ) -> None:
        self.network, self.transform, self.origin, self.pooling = network.eval().to(device), transform, origin, pooling
        self.device, self.precision = torch.device(device), precision

    @property
    def embed_dim(self) -> int:
        """Width D of a feature."""
        return self.network.embed_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image that ``transform`` renders; N is their product."""
        return self.network.config.grid_of(self.transform.size)

    @property
    def backbone(self) -> BackboneConfig:
        """The backbone's config with the image size of ``transform``."""
        height, width = self.transform.size
        return replace(self.network.config, image_size=height, image_width=None if width == height else width)

    def embed(
        self,
        images: Float[Tensor, "B C H W"] | ImageLike | Sequence[ImageLike],
        *,
        pooling: Pooling | str | None = None,
        num_layers: int = 1,
        final_norm: bool = True,
        batch_size: int = 256,
    ) -> Float[Tensor, "B D"]:
        """Return one feature per image, as the evaluators use them.

        Args:
            images: normalised float tensors as ``transform`` makes them, or anything that it takes.
            pooling: ``average``, ``class_token`` or ``class_token_and_average``; by default ``self.pooling``.
            num_layers: number of last blocks whose pooled tokens are concatenated; D grows accordingly.
            final_norm: apply the encoder's final norm before pooling.
            batch_size: images per forward pass.

        Raises:
            ValueError: images of another kind or number of channels, or a pooling that the encoder can't have.
        """
        chosen = self.pooling if pooling is None else _pooling(pooling)
        self._check(chosen, num_layers)
        parts = (pooled(self.network, part, chosen, num_layers, final_norm) for part in self._parts(images, batch_size))
        return self._collected(parts)

    def patches(
        self,
        images: Float[Tensor, "B C H W"] | ImageLike | Sequence[ImageLike],
        *,
        batch_size: int = 256,
    ) -> Float[Tensor, "B N D"]:
        """Return the patch tokens after the final norm, row-major on ``grid``, without class token and registers.

        Args:
            images, batch_size: as for ``embed``.

        Raises:
            ValueError: as ``embed``.
        """
        return self._collected(self.network.patches(self.network(part)) for part in self._parts(images, batch_size))

    @torch.no_grad()
    def _collected(self, parts: Iterator[Tensor]) -> Tensor:
        with autocast(self.precision, self.device):
            return torch.cat([part.float() for part in parts])

    def _parts(self, images: Any, batch_size: int) -> Iterator[Float[Tensor, "b C H W"]]:
        """Yield normalised batches on the device; files are decoded one batch at a time."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        is_rendered = isinstance(images, Tensor) and images.is_floating_point()
        if is_rendered:
            self._check_rendered(images)
        elif isinstance(images, (str, Path)) or not isinstance(images, (Sequence, Tensor)) or _is_single(images):
            images = [images]
        if not len(images):
            raise ValueError("no images were given; pass at least one")
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            yield (part if is_rendered else self.transform(part)).to(self.device, torch.float32)

    def _check_rendered(self, images: Tensor) -> None:
        channels = self.network.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(
                f"float images of shape {list(images.shape)}; give normalised ones of (batch, {channels}, height, "
                "width), as encoder.transform makes them, or uint8 pixels, Pillow images or paths"
            )

    def _check(self, pooling: Pooling, num_layers: int) -> None:
        if pooling is Pooling.tokens:
            raise ValueError("pooling=tokens: encoder.patches(images) returns the patch tokens")
        if pooling is not Pooling.average and self.network.cls_token is None:
            raise ValueError(f"pooling={pooling.value}: this encoder has no class token; use pooling='average'")
        if not 1 <= num_layers <= len(self.network.blocks):
            raise ValueError(f"num_layers={num_layers} must be 1 to {len(self.network.blocks)}, the encoder's blocks")

    def __repr__(self) -> str:
        config, origin, (height, width) = self.network.config, self.origin, self.transform.size
        step = "" if origin.step is None else f", step {origin.step}"
        return (
            f"Encoder({origin.method} {origin.network} of {origin.path}{step}: width {config.embed_dim}, depth "
            f"{config.depth}, patch {config.patch_size}, {height}x{width} px, {self.device}, {self.precision.value})"
        )


def _is_single(images: Any) -> bool:
    return isinstance(images, Tensor) and images.ndim == 3


def _pooling(value: Pooling | str) -> Pooling:
    try:
        return Pooling(value)
    except ValueError:
        raise ValueError(f"pooling={value!r} must be one of {', '.join(kind.value for kind in Pooling)}") from None
