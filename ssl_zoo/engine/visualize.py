"""A method's figures of images, and figures as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.data.transforms import evaluation_view, render_each, sample_params
from ssl_zoo.engine.build import RunConfig, build_generators, build_views
from ssl_zoo.engine.trained import TrainedMethod
from ssl_zoo.plotting import Figure, draw
from ssl_zoo.seeding import generator_for


def draw_all(figures: Mapping[str, Figure], rows: Sequence[str]) -> Mapping[str, UInt8[Tensor, "3 H W"]]:
    """Draw figures with the names of their images."""
    return {name: draw(figure, rows) for name, figure in figures.items()}


def save_images(images: Mapping[str, UInt8[Tensor, "3 H W"]], folder: Path, step: int | None) -> list[Path]:
    """Write ``NAME_step_00001000.png`` for every image, ``NAME.png`` where the step is unknown; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, image in images.items():
        paths.append(folder / (f"{name}.png" if step is None else f"{name}_step_{step:08d}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


@torch.no_grad()
def visualize(
    trained: TrainedMethod, config: RunConfig, images: Sequence[UInt8[Tensor, "C _ _"]], *, seed: int = 0
) -> Mapping[str, Figure]:
    """Return the method's figures of ``images`` of any size, under masks sampled from ``seed``.

    A single view is rendered as for evaluation; several, which would then be equal, as in training.

    Raises:
        ValueError: the method has no figures, or can't predict at another size of images.
    """
    if trained.not_resized:
        raise ValueError(
            f"{type(trained.method).__name__} can't be visualized at another size of images than it was trained on: "
            f"{', '.join(trained.not_resized[:3])} depend on it; leave out backbone.image_size and backbone.image_width"
        )
    specs = build_views(config.views, config.backbone)
    normalize = {spec.name: spec.normalize for spec in specs}
    views = {
        spec.name: normalize[spec.name](_rendered(images, spec, seed, number if len(specs) > 1 else None))
        for number, spec in enumerate(specs)
    }
    masks = {
        name: generator(len(images), generator_for(seed, "visualize", number))
        for number, (name, generator) in enumerate(build_generators(specs, config.masks, config.backbone).items())
    }
    batch = Batch(views, masks, torch.arange(len(images)), normalize=normalize)
    shown = trained.method.eval().visualize(batch)
    if not shown:
        raise ValueError(f"{type(trained.method).__name__} has no visualizations: it does not define Method.visualize")
    return shown


def _rendered(
    images: Sequence[UInt8[Tensor, "C _ _"]], spec: ViewSpec, seed: int, number: int | None
) -> UInt8[Tensor, "B C H W"]:
    """Render one view of each image: the ``number``-th of training, or that of evaluation where it is None."""
    if number is None:
        return torch.stack([evaluation_view(image, spec.size) for image in images])
    params = sample_params(spec.config, len(images), generator_for(seed, "visualize", "view", number))
    return render_each(images, params, spec)
