"""What a method draws of images, as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ssl_zoo.data.batch import Batch
from ssl_zoo.data.transforms import evaluation_view
from ssl_zoo.engine.build import RunConfig, build_generators, build_views
from ssl_zoo.engine.trained import TrainedMethod
from ssl_zoo.seeding import generator_for


def save_pictures(pictures: Mapping[str, Float[Tensor, "3 H W"]], folder: Path, step: int) -> list[Path]:
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
    """The method's pictures of ``images`` of any size, rendered as for evaluation, under masks drawn from ``seed``.

    Raises:
        ValueError: the method draws no pictures.
    """
    specs = build_views(config.method, config.backbone)
    views = [
        spec.config.normalize(torch.stack([evaluation_view(image, spec.size) for image in images]))
        for spec in specs
        for _ in range(spec.count)
    ]
    generators = build_generators(specs, config.masks, config.backbone)
    masks = [
        generator and generator(len(images), generator_for(seed, "pictures", number))
        for number, generator in enumerate(generators)
    ]
    pictures = trained.method.eval().pictures(Batch(tuple(views), tuple(masks), torch.arange(len(images))))
    if not pictures:
        raise ValueError(f"{type(trained.method).__name__} draws no pictures: it does not define Method.pictures")
    return pictures
