"""Target blocks of rendered scenes with the truth about the object that each shows, which the renderer knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.data.raycast import Scenes, discs
from ssl_zoo.data.sources.scenes import RenderedScenes
from ssl_zoo.data.transforms import equal_boxes, render_equal, sample_params
from ssl_zoo.data.view_params import ViewParams
from ssl_zoo.decoding.blocks import VIEW, Blocks, crops
from ssl_zoo.decoding.decoder import BlockDecoder
from ssl_zoo.masks import MaskGenerator
from ssl_zoo.seeding import generator_for

_MIN_AREA = 0.1  # of a block that its main object covers at least
_GROUP = 32  # scenes that share their masks, so that blocks have partners
_BATCH = 256  # scenes rendered at once; a multiple of _GROUP
_PATCH_RASTER = 8  # points per side of a patch at which the visible area of an object is counted
_RASTER = 16  # points per side at which the area of an object in a block is counted


@dataclass(frozen=True)
class Objects:
    """The main objects of S blocks.

    Attributes:
        position: of the centre from the block's centre, downwards and to the right, as fractions of the block's sides.
        color: albedo, 0..1.
        shape: index into ``SHAPES``.
    """

    position: Float[Tensor, "S 2"]
    color: Float[Tensor, "S 3"]
    shape: Int[Tensor, "S"]

    def __getitem__(self, rows: Tensor) -> "Objects":
        return Objects(self.position[rows], self.color[rows], self.shape[rows])


@dataclass(frozen=True)
class SceneBlocks:
    """Blocks that have a main object.

    Attributes:
        pixels: of the blocks, normalised as the view.
        targets: the mean of the target's features at each block.
        sides: height and width of the blocks in pixels of the view.
        visible: the fraction of the main object, as a disc, that lies in patches of the context.
        places: equal for blocks of equal masks and number in their image.
    """

    blocks: Blocks
    objects: Objects
    pixels: Float[Tensor, "S C P P"]
    targets: Float[Tensor, "S E"]
    sides: Float[Tensor, "S 2"]
    visible: Float[Tensor, "S"]
    places: Int[Tensor, "S"]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, rows: Tensor) -> "SceneBlocks":
        return SceneBlocks(**{name: value[rows] for name, value in vars(self).items()})


def scene_blocks(
    decoder: BlockDecoder,
    source: RenderedScenes,
    spec: ViewSpec,
    generator: MaskGenerator,
    indices: Int[Tensor, "n"],
    seed: int,
) -> SceneBlocks:
    """Render scenes under the view's random crops and return their blocks that have a main object.

    The main object covers most of the block, as a disc, and at least a tenth of it.

    Args:
        seed: of crops and masks.
    """
    # Augmentations of colour would change what is measured.
    config = replace(spec.config, color_jitter=[0.0] * 4, grayscale=0.0, blur=0.0, solarize=0.0)
    spec, found = replace(spec, config=config), []
    for number, part in enumerate(indices.split(_BATCH)):
        params = sample_params(config, len(part), generator_for(seed, "measured views", number))
        images = spec.normalize(render_equal(source.images(part), params, spec))
        masks = generator(-(-len(part) // _GROUP), generator_for(seed, "measured masks", number))
        masks = masks.map(lambda tensor: tensor.repeat_interleave(_GROUP, dim=0)[: len(part)])  # noqa: B023
        batch = Batch({VIEW: images}, {VIEW: masks}, part, normalize={VIEW: spec.normalize})
        found.append(_with_objects(decoder, batch, _discs_in_view(source, part, params, spec), number))
    return _joined(found)


def _joined(parts: Sequence[Any]) -> Any:
    """Join dataclasses of tensors along the blocks."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return type(parts[0])(**{name: _joined([getattr(part, name) for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class _Discs:
    """The objects of scenes as ellipses in the view, in pixels; those beyond a scene's number are not present."""

    scenes: Scenes
    centers: Float[Tensor, "B O 2"]
    radii: Float[Tensor, "B O 2"]
    present: Bool[Tensor, "B O"]


def _discs_in_view(source: RenderedScenes, indices: Int[Tensor, "B"], params: ViewParams, spec: ViewSpec) -> _Discs:
    scenes = source.scenes(indices)
    centers, radii = discs(scenes, source.image_size[0])
    box = equal_boxes(params, source.image_size, spec)[:, None]
    scale = torch.tensor(spec.size) / box[..., 2:]
    rows, columns = ((centers - box[..., :2]) * scale).unbind(-1)
    columns = torch.where(params.flipped[:, None], spec.size[1] - columns, columns)
    present = torch.arange(radii.shape[1]) < scenes.count[:, None]
    return _Discs(scenes, torch.stack([rows, columns], dim=-1), radii[..., None] * scale, present)


@torch.no_grad()
def _with_objects(decoder: BlockDecoder, batch: Batch, found: _Discs, number: int) -> SceneBlocks:
    """Return the blocks of the ``number``-th batch that have a main object."""
    predictor, images, masks = decoder.predictor, batch.views[VIEW], batch.masks[VIEW]
    blocks = predictor(batch)
    row = blocks.images
    patch = torch.tensor([side / cells for side, cells in zip(images.shape[-2:], predictor.grid, strict=True)])
    corner, sides = (part * patch for part in blocks.boxes.float().split(2, dim=1))
    covered = _covered(found.centers[row], found.radii[row], corner, sides)
    area, main = covered.masked_fill(~found.present[row], 0.0).max(dim=1)
    objects = Objects(
        (found.centers[row, main] - corner) / sides - 0.5, found.scenes.color[row, main], found.scenes.shape[row, main]
    )
    targets = predictor.method.target(batch, masks, predictor.method.encoder).float().mean(dim=2)
    num_contexts, num_visible = masks.context.shape[1:]
    context = masks.context[:, :, None].expand(-1, -1, len(blocks) // (len(images) * num_contexts), -1)
    context = context.reshape(-1, num_visible)
    visible = _visible(found.centers[row, main], found.radii[row, main], context, predictor.grid, patch)
    per_image = len(blocks) // batch.num_images
    group = row // _GROUP + number * (_BATCH // _GROUP)
    return SceneBlocks(
        blocks,
        objects,
        crops(images, blocks, predictor.grid, decoder.config.block_size),
        masks.paired(targets).flatten(0, 2),
        sides,
        visible,
        group * per_image + torch.arange(len(blocks)) % per_image,
    )[(area >= _MIN_AREA).nonzero().flatten()]


def _visible(
    centers: Float[Tensor, "S 2"],
    radii: Float[Tensor, "S 2"],
    context: Int[Tensor, "S K"],
    grid: tuple[int, int],
    patch: Float[Tensor, "2"],
) -> Float[Tensor, "S"]:
    """Return the fraction of each ellipse that lies in these patches, counted on a raster of points of the image."""
    steps = (torch.arange(_PATCH_RASTER) + 0.5) / _PATCH_RASTER
    places = [(torch.arange(cells)[:, None] + steps).flatten() * side for cells, side in zip(grid, patch, strict=True)]
    down, right = (((places[axis] - centers[:, axis, None]) / radii[:, axis, None]).square() for axis in (0, 1))
    inside = down[:, :, None] + right[:, None, :] < 1
    inside = inside.unflatten(2, (-1, _PATCH_RASTER)).unflatten(1, (-1, _PATCH_RASTER))
    per_patch = inside.sum(dim=(2, 4)).flatten(1).float()
    return per_patch.gather(1, context).sum(dim=1) / per_patch.sum(dim=1).clamp_min(1.0)


def _covered(
    centers: Float[Tensor, "S O 2"],
    radii: Float[Tensor, "S O 2"],
    corner: Float[Tensor, "S 2"],
    sides: Float[Tensor, "S 2"],
) -> Float[Tensor, "S O"]:
    """Return the fraction of each block that each ellipse covers, counted on a raster of points."""
    steps = (torch.arange(_RASTER) + 0.5) / _RASTER
    rows, columns = (corner[:, axis, None] + sides[:, axis, None] * steps for axis in (0, 1))
    down = ((rows[:, None] - centers[..., 0, None]) / radii[..., 0, None]).square()
    right = ((columns[:, None] - centers[..., 1, None]) / radii[..., 1, None]).square()
    return (down[..., :, None] + right[..., None, :] < 1).float().mean(dim=(2, 3))


def partners(places: Int[Tensor, "S"]) -> tuple[Int[Tensor, "K"], Int[Tensor, "K"]]:
    """Return the blocks whose place another block has as well, and for each of them one such other block."""
    order = places.argsort(stable=True)
    _, counts = places[order].unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    following = torch.arange(len(places)) + 1
    following[ends - 1] = ends - counts
    several = counts.repeat_interleave(counts) > 1
    return order[several], order[following[several]]
