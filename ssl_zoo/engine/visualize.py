"""What a method draws of images, as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.data.transforms import draw as draw_view
from ssl_zoo.data.transforms import evaluation_view, render_each
from ssl_zoo.engine.build import RunConfig, build_generators, build_views
from ssl_zoo.engine.trained import TrainedMethod
from ssl_zoo.seeding import generator_for


def save_images(pictures: Mapping[str, Float[Tensor, "3 H W"]], folder: Path, step: int) -> list[Path]:
    """Write ``NAME_step_00001000.png`` for every picture; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in pictures.items():
        pixels = (picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
        paths.append(folder / f"{name}_step_{step:08d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@torch.no_grad()
def draw(
    trained: TrainedMethod, config: RunConfig, images: Sequence[UInt8[Tensor, "3 _ _"]], *, seed: int = 0
) -> Mapping[str, Float[Tensor, "3 H W"]]:
    """The method's pictures of ``images`` of any size, under masks drawn from ``seed``.

    A single view is rendered as for evaluation; several, which would then be one and the same, as in training.

    Raises:
        ValueError: the method draws no pictures.
    """
    specs = build_views(config.method, config.backbone)
    flat = [spec for spec in specs for _ in range(spec.count)]
    views = [_rendered(images, spec, seed, number if len(flat) > 1 else None) for number, spec in enumerate(flat)]
    generators = build_generators(specs, config.masks, config.backbone)
    masks = [
        generator and generator(len(images), generator_for(seed, "pictures", number))
        for number, generator in enumerate(generators)
    ]
    pictures = trained.method.eval().visualize(Batch(tuple(views), tuple(masks), torch.arange(len(images))))
    if not pictures:
        raise ValueError(f"{type(trained.method).__name__} draws no pictures: it does not define Method.visualize")
    return pictures


def _rendered(
    images: Sequence[UInt8[Tensor, "3 _ _"]], spec: ViewSpec, seed: int, number: int | None
) -> Float[Tensor, "B 3 H W"]:
    """One view of each image: the ``number``-th of training, or that of evaluation where it is None."""
    if number is None:
        return spec.config.normalize(torch.stack([evaluation_view(image, spec.size) for image in images]))
    draws = draw_view(spec.config, len(images), generator_for(seed, "pictures", "view", number))
    return spec.config.normalize(render_each(images, draws, spec))
