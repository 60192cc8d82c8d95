"""A small ray caster for batches of simple scenes: objects on a ground plane, one light, soft shadows.

Every object is rendered inside a square box of pixels around it, all objects of all images at once, and the boxes are
blended from far to near. Edges are antialiased analytically, by the depth of a ray in the object in units of a pixel.
Lengths are in scene units (an object is about one unit wide); x points right, y up, z into the image; the camera is
``CAMERA_HEIGHT`` above the origin. The same rays give each pixel's depth and object.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_zoo.data.shapes import HALF_HEIGHT, INTERSECT, dot

CAMERA_HEIGHT = 4.5
FOCAL = 2.0  # in half images: the field of view is 53 degrees
_PITCH = math.radians(22.0)  # downwards
_EXTENT = (1.15, 1.35, 1.3, 1.45)  # half width of the box of pixels around each shape, in units of its size
_BOXES = (1.0, 0.66, 0.42)  # widths of the boxes around objects, as fractions of the widest


@dataclass(frozen=True)
class Scenes:
    """B scenes of up to O objects; objects beyond ``count`` are ignored."""

    count: Int[Tensor, "B"]
    ground: Float[Tensor, "B O 2"]  # x, z of each object
    size: Float[Tensor, "B O"]
    shape: Int[Tensor, "B O"]
    yaw: Float[Tensor, "B O 2"]  # cosine and sine of the rotation about the vertical
    color: Float[Tensor, "B O 3"]  # albedo, 0..1
    gloss: Float[Tensor, "B O"]  # weight of the highlight
    light: Float[Tensor, "B 3"]  # unit vector towards the light
    light_color: Float[Tensor, "B 3"]
    floor: Float[Tensor, "B 3"]  # colours
    wall: Float[Tensor, "B 3"]
    fields: Float[Tensor, "B fields"]  # strengths of the patterns on the ground

    def centers(self) -> Float[Tensor, "B O 3"]:
        height = torch.tensor(HALF_HEIGHT)[self.shape] * self.size
        return torch.stack([self.ground[..., 0], height - CAMERA_HEIGHT, self.ground[..., 1]], dim=-1)


@dataclass(frozen=True)
class Geometry:
    """What the pixels of B images show; a pixel shows what the ray through its centre meets first."""

    depth: Float[Tensor, "B H W"]  # along the camera's axis as of depth cameras, in scene units; infinite on the wall
    instance: UInt8[Tensor, "B H W"]  # number of the object in its scene, from 1; 0 is the background

    def positions(self) -> Float[Tensor, "B 3 H W"]:
        """Return x, y, z of the surface points relative to the camera; not finite on the wall."""
        rows = torch.arange(self.depth.shape[-1])
        direction = torch.stack(_rays(rows[:, None], rows[None, :], len(rows)))
        return direction * (self.depth / _along_axis(direction))[:, None]

    def objects_per_patch(self, patch_size: int) -> Int[Tensor, "B h w"]:
        """Return the number of objects of which a patch shows at least one pixel."""
        rows = self.instance.unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size)).transpose(2, 3).flatten(3)
        return sum((rows == number).any(dim=3).long() for number in range(1, int(self.instance.max()) + 1))


def discs(scenes: Scenes, image_size: int) -> tuple[Float[Tensor, "B O 2"], Float[Tensor, "B O"]]:
    """Return the objects in the image as discs: row and column of their centres, and about their radii, in pixels."""
    row, column, forward = _projected(scenes.centers(), image_size)
    half_height = torch.tensor(HALF_HEIGHT)[scenes.shape] * scenes.size
    return torch.stack([row, column], dim=-1), FOCAL * image_size / 2 * half_height / forward


def render(scenes: Scenes, image_size: int) -> UInt8[Tensor, "B 3 H W"]:
    """Render square images, bit-identical in every batch.

    Only elementwise arithmetic is used, since the order of sums in a matmul depends on the batch size.
    """
    scenes, order = _by_falling_count(scenes)
    canvas = _background(scenes, image_size)
    for layer, row in _back_to_front(scenes, image_size):
        layer.blend(canvas, row)
    return _in_order(canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8), order)


def render_with_geometry(scenes: Scenes, image_size: int) -> tuple[UInt8[Tensor, "B 3 H W"], Geometry]:
    """Render the images of ``render`` and what the same rays meet."""
    scenes, order = _by_falling_count(scenes)
    canvas = _background(scenes, image_size)
    depth = _background_depth(image_size).repeat(len(scenes.count), 1, 1)
    instance = torch.zeros_like(depth, dtype=torch.uint8)
    for layer, row in _back_to_front(scenes, image_size):
        layer.blend(canvas, row)
        layer.draw(depth, instance, row)
    images = canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    return _in_order(images, order), Geometry(_in_order(depth, order), _in_order(instance, order))


def _by_falling_count(scenes: Scenes) -> tuple[Scenes, Int[Tensor, "B"]]:
    """Sort scenes, so that those with an n-th object are the first ones, a slice."""
    order = scenes.count.argsort(descending=True)
    return Scenes(**{name: value[order] for name, value in vars(scenes).items()}), order


def _in_order(values: Tensor, order: Int[Tensor, "B"]) -> Tensor:
    """Undo the sorting of scenes."""
    return torch.empty_like(values).index_copy_(0, order, values)


@dataclass(frozen=True)
class _Layer:
    """The n objects of one shape whose boxes of P pixels have one size, the nearest of their scenes first.

    Attributes:
        starts: first object of each rank; rank 0 is the nearest object of a scene.
        pixels: of the first channel, on the canvas of all images.
    """

    starts: Sequence[int]
    image: Int[Tensor, "n"]
    number: Int[Tensor, "n"]  # of the object in its scene, from 1
    pixels: Int[Tensor, "n P"]
    colors: Float[Tensor, "n 3 P"]
    coverage: Float[Tensor, "n P"]  # above one half where the ray through the pixel's centre meets the object
    depth: Float[Tensor, "n P"]

    def blend(self, canvas: Float[Tensor, "B 3 H W"], row: slice) -> None:
        """Blend the colours of these objects into the images."""
        size = canvas[0, 0].numel()
        where = self.pixels[row][:, None] + torch.arange(0, 3 * size, size)[:, None]
        below = canvas.take(where)
        canvas.put_(where, self.colors[row].sub_(below).mul_(self.coverage[row][:, None]).add_(below))

    def draw(self, depth: Float[Tensor, "B H W"], instance: UInt8[Tensor, "B H W"], row: slice) -> None:
        """Draw depths and numbers of these objects over what is farther away."""
        is_hit = self.coverage[row] > 0.5
        where = (self.pixels[row] - 2 * depth[0].numel() * self.image[row][:, None])[is_hit]
        depth.put_(where, self.depth[row][is_hit])
        instance.put_(where, self.number[row][:, None].expand_as(is_hit)[is_hit].to(torch.uint8))


def _back_to_front(scenes: Scenes, image_size: int) -> Iterator[tuple[_Layer, slice]]:
    """Yield the objects from far to near, several of different scenes at once."""
    layers = list(_layers(scenes, image_size))
    for depth in range(int(scenes.count.max()) - 1, -1, -1):
        for layer in layers:
            row = slice(layer.starts[depth], layer.starts[depth + 1])
            if row.start < row.stop:
                yield layer, row


def _layers(scenes: Scenes, image_size: int) -> Iterator[_Layer]:
    centers = scenes.centers()
    present = torch.arange(scenes.shape.shape[1]) < scenes.count[:, None]
    rank = _norm(centers).masked_fill(~present, math.inf).argsort(1).argsort(1)  # 0 = nearest
    forward = centers[..., 2] * math.cos(_PITCH) - centers[..., 1] * math.sin(_PITCH)
    extent = torch.tensor(_EXTENT)[scenes.shape] * scenes.size
    width = FOCAL * image_size * extent / (forward - 0.8 * scenes.size) + 2
    widest = min(image_size, int(width[present].max()) + 1)
    boxes = [int(widest * fraction) for fraction in _BOXES]
    for box, smaller in zip(boxes, [*boxes[1:], 0], strict=True):
        fits = present & (width > smaller) & ((width <= box) | (box == widest))
        for shape, intersect in enumerate(INTERSECT):
            image, slot = torch.nonzero(fits & (scenes.shape == shape), as_tuple=True)
            if len(image):
                ranks, by_rank = rank[image, slot].sort()
                starts = torch.searchsorted(ranks, torch.arange(rank.shape[1] + 1)).tolist()
                yield _shade(scenes, centers, starts, image[by_rank], slot[by_rank], intersect, image_size, box)


def _shade(
    scenes: Scenes,
    centers: Tensor,
    starts: Sequence[int],
    image: Tensor,
    slot: Tensor,
    intersect: Callable,
    image_size: int,
    box: int,
) -> _Layer:
    """Shade n objects of one shape."""
    center, size = centers[image, slot], scenes.size[image, slot]
    top, left = _box_corner(center, image_size, box)
    offset = torch.arange(box)
    rows, columns = top[:, None] + offset, left[:, None] + offset
    pixels = (image * 3 * image_size**2)[:, None, None] + rows[:, :, None] * image_size + columns[:, None, :]
    direction = _rays(rows[:, :, None], columns[:, None, :], image_size)
    origin = [-axis[:, None, None] for axis in center.unbind(-1)]  # the camera relative to the object
    pixel = (_norm(center) * (2 / (FOCAL * image_size)))[:, None, None]  # width of a pixel at the object
    normal, coverage, distance = intersect(
        origin, direction, size[:, None, None], scenes.yaw[image, slot][:, :, None, None].unbind(1), pixel
    )
    light = [axis[:, None, None] for axis in scenes.light[image].unbind(-1)]
    facing = dot(normal, light)
    # Mirror direction of the light against the direction to the camera, which is minus the ray.
    glint = dot(normal, direction).mul_(facing).mul_(-2).add_(dot(direction, light)).clamp_(0, 1)
    for _ in range(4):
        glint.mul_(glint)  # to the 16th power
    glint.mul_(scenes.gloss[image, slot][:, None, None])
    diffuse = facing.clamp_(min=0).mul_(0.62).add_(0.42).add_(0.16 * normal[1])
    color = (scenes.color[image, slot] * scenes.light_color[image])[:, :, None]
    colors = (diffuse.flatten(1)[:, None] * color).add_(glint.flatten(1)[:, None])
    depth = distance * _along_axis(direction)
    return _Layer(starts, image, slot + 1, pixels.flatten(1), colors, coverage.flatten(1), depth.flatten(1))


def _rays(rows: Int[Tensor, "..."], columns: Int[Tensor, "..."], image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y, z of the unit vectors from the camera through the centres of pixels."""
    cos, sin = math.cos(_PITCH), math.sin(_PITCH)
    right = (columns + 0.5) * (2 / image_size) - 1
    up = 1 - (rows + 0.5) * (2 / image_size)
    y, z = up * cos - FOCAL * sin, up * sin + FOCAL * cos
    inverse = (right * right + (y * y + z * z)).sqrt().reciprocal_()
    return right * inverse, y * inverse, z * inverse


def _along_axis(direction: Sequence[Tensor]) -> Tensor:
    """Return the cosines of the angles between rays and the camera's axis."""
    return direction[2] * math.cos(_PITCH) - direction[1] * math.sin(_PITCH)


def _box_corner(center: Float[Tensor, "n 3"], image_size: int, box: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Return top and left of a square of ``box`` pixels around each projected centre, moved inside the image."""
    row, column, _ = _projected(center, image_size)
    return tuple((middle - box / 2).round().long().clamp(0, image_size - box) for middle in (row, column))


def _projected(center: Float[Tensor, "*n 3"], image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return row and column in pixels of projected points, and their distances along the camera's axis."""
    cos, sin = math.cos(_PITCH), math.sin(_PITCH)
    x, y, z = center.unbind(-1)
    forward = z * cos - y * sin
    column = (FOCAL * x / forward + 1) * image_size / 2
    row = (1 - FOCAL * (y * cos + z * sin) / forward) * image_size / 2
    return row, column, forward


def _background(scenes: Scenes, image_size: int) -> Float[Tensor, "B 3 H W"]:
    """Render wall and ground with fog, light patterns and shadows; scenes are sorted by falling count."""
    field = _fields(image_size)
    fog = field.fog[:, None]
    floor = scenes.floor[:, :, None, None] * (1 - fog) + scenes.wall[:, :, None, None] * fog
    rows = torch.where(field.is_ground[:, None], floor, scenes.wall[:, :, None, None] * field.gradient[:, None])
    bright = torch.ones(len(scenes.count), image_size, image_size)
    for pattern, strength in zip(field.patterns, scenes.fields.unbind(1), strict=True):
        bright += strength[:, None, None] * pattern
    ground = bright[:, field.horizon :]
    x, z = field.x[field.horizon :], field.z[field.horizon :, None]
    lean = scenes.light[:, 0::2] / scenes.light[:, 1:2]  # how far a shadow falls per unit of height
    for slot in range(int(scenes.count.max())):
        cast = slice(0, int((scenes.count > slot).sum()))
        size = scenes.size[cast, slot]
        at = (scenes.ground[cast, slot] - 0.45 * size[:, None] * lean[cast])[:, :, None, None]
        narrow = (1 / (1.55 * size))[:, None, None]
        dark = ((x - at[:, 0]) * narrow).square_().add_(((z - at[:, 1]) * narrow).square_())
        dark.neg_().add_(1).clamp_(min=0)
        ground[cast] *= dark.mul_(dark.mul(-0.35).sub_(0.35)).add_(1)
    return rows * bright[:, None]


@dataclass(frozen=True)
class _Fields:
    """Geometry of the background per pixel or row of pixels."""

    x: Float[Tensor, "H W"]  # of the ground under a pixel
    z: Float[Tensor, "H"]
    horizon: int  # first row that shows ground
    is_ground: Tensor  # (H,)
    fog: Float[Tensor, "H"]
    gradient: Float[Tensor, "H"]  # brightness of the wall
    patterns: Float[Tensor, "fields H W"]


@lru_cache(maxsize=8)
def _fields(image_size: int) -> _Fields:
    rows = torch.arange(image_size)
    x, y, z = _rays(rows[:, None], rows[None, :], image_size)
    middle = y[:, image_size // 2]
    is_ground = middle < -0.02
    reach = CAMERA_HEIGHT / (-y).clamp(min=0.02)
    x, z = x * reach, (z * reach)[:, image_size // 2]
    fog = (1 - torch.exp(-((z / 16) ** 2))) * is_ground + (~is_ground)
    near = (1 - fog)[:, None]
    waves = [near * torch.sin(1.1 * x + 0.6 * z[:, None]), near * torch.sin(0.5 * x - 1.3 * z[:, None])]
    pools = [torch.exp(-((x - at) ** 2 + (z[:, None] - 7) ** 2) / 12) * is_ground[:, None] for at in (-3.0, 0.0, 3.0)]
    gradient = 1 - 2 * middle.clamp(min=0)
    return _Fields(x, z, int((~is_ground).sum()), is_ground, fog, gradient, torch.stack(waves + pools))


def _background_depth(image_size: int) -> Float[Tensor, "1 H W"]:
    """Return the depth of the ground along the camera's axis; infinite where the wall is."""
    rows = torch.arange(image_size)
    direction = _rays(rows[:, None], rows[None, :], image_size)
    is_ground = _fields(image_size).is_ground[:, None] & (direction[1] < 0)
    return (CAMERA_HEIGHT / -direction[1] * _along_axis(direction)).masked_fill(~is_ground, math.inf)[None]


def _norm(vectors: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    x, y, z = vectors.unbind(-1)
    return (x * x + y * y + z * z).sqrt()
