"""A small ray caster for batches of simple scenes: objects on a ground plane, one light, soft shadows.

Every object is rendered inside a square box of pixels around it, all objects of all images at once, and the boxes are
blended from far to near. Edges are antialiased analytically, by the depth of a ray in the object in units of a pixel.
Lengths are in scene units (an object is about one unit wide); x points right, y up, z into the image; the camera is
``CAMERA_HEIGHT`` above the origin.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

CAMERA_HEIGHT = 4.5
FOCAL = 2.0  # in half images: the field of view is 53 degrees
_PITCH = math.radians(22.0)  # downwards
SPHERE, BOX, CYLINDER, CONE = range(4)
SHAPES = ("sphere", "box", "cylinder", "cone")
_EXTENT = (1.15, 1.35, 1.3, 1.45)  # half width of the box of pixels around each shape, in units of its size
_HALF_HEIGHT = (1.0, 0.74, 0.85, 1.0)  # of each shape, in units of its size
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
        height = torch.tensor(_HALF_HEIGHT)[self.shape] * self.size
        return torch.stack([self.ground[..., 0], height - CAMERA_HEIGHT, self.ground[..., 1]], dim=-1)


def render(scenes: Scenes, image_size: int) -> UInt8[Tensor, "B 3 H W"]:
    """Render square images, bit-identical in every batch.

    Only elementwise arithmetic is used, since the order of sums in a matmul depends on the batch size.
    """
    order = scenes.count.argsort(descending=True)  # then the scenes with an n-th object are the first ones, a slice
    scenes = Scenes(**{name: value[order] for name, value in vars(scenes).items()})
    canvas = _background(scenes, image_size).view(-1)
    centers = scenes.centers()
    present = torch.arange(scenes.shape.shape[1]) < scenes.count[:, None]
    rank = _norm(centers).masked_fill(~present, math.inf).argsort(1).argsort(1)  # 0 = nearest
    forward = centers[..., 2] * math.cos(_PITCH) - centers[..., 1] * math.sin(_PITCH)
    extent = torch.tensor(_EXTENT)[scenes.shape] * scenes.size
    width = FOCAL * image_size * extent / (forward - 0.8 * scenes.size) + 2
    widest = min(image_size, int(width[present].max()) + 1)
    boxes = [int(widest * fraction) for fraction in _BOXES]
    layers = []
    for box, smaller in zip(boxes, [*boxes[1:], 0], strict=True):
        fits = present & (width > smaller) & ((width <= box) | (box == widest))
        for shape, intersect in enumerate(_INTERSECT):
            image, slot = torch.nonzero(fits & (scenes.shape == shape), as_tuple=True)
            if len(image):
                ranks, by_rank = rank[image, slot].sort()
                shaded = _shade(scenes, centers, image[by_rank], slot[by_rank], intersect, image_size, box)
                layers.append((torch.searchsorted(ranks, torch.arange(rank.shape[1] + 1)).tolist(), *shaded))
    channels = torch.arange(0, 3 * image_size**2, image_size**2)[:, None]
    for depth in range(int(scenes.count.max()) - 1, -1, -1):
        for starts, pixels, colors, coverage in layers:
            row = slice(starts[depth], starts[depth + 1])
            if row.start < row.stop:
                where = pixels[row][:, None] + channels
                below = canvas.take(where)
                canvas.put_(where, colors[row].sub_(below).mul_(coverage[row][:, None]).add_(below))
    images = canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8).view(-1, 3, image_size, image_size)
    return torch.empty_like(images).index_copy_(0, order, images)


def _shade(
    scenes: Scenes, centers: Tensor, image: Tensor, slot: Tensor, intersect: Callable, image_size: int, box: int
) -> tuple[Int[Tensor, "n P"], Float[Tensor, "n 3 P"], Float[Tensor, "n P"]]:
    """Shade n objects of one shape: positions of the first channel's pixels on the canvas, colours and coverage."""
    center, size = centers[image, slot], scenes.size[image, slot]
    top, left = _box_corner(center, image_size, box)
    offset = torch.arange(box)
    rows, columns = top[:, None] + offset, left[:, None] + offset
    pixels = (image * 3 * image_size**2)[:, None, None] + rows[:, :, None] * image_size + columns[:, None, :]
    direction = _rays(rows[:, :, None], columns[:, None, :], image_size)
    origin = [-axis[:, None, None] for axis in center.unbind(-1)]  # the camera relative to the object
    pixel = (_norm(center) * (2 / (FOCAL * image_size)))[:, None, None]  # width of a pixel at the object
    normal, coverage = intersect(
        origin, direction, size[:, None, None], scenes.yaw[image, slot][:, :, None, None].unbind(1), pixel
    )
    light = [axis[:, None, None] for axis in scenes.light[image].unbind(-1)]
    facing = _dot(normal, light)
    # Mirror direction of the light against the direction to the camera, which is minus the ray.
    glint = _dot(normal, direction).mul_(facing).mul_(-2).add_(_dot(direction, light)).clamp_(0, 1)
    for _ in range(4):
        glint.mul_(glint)  # to the 16th power
    glint.mul_(scenes.gloss[image, slot][:, None, None])
    diffuse = facing.clamp_(min=0).mul_(0.62).add_(0.42).add_(0.16 * normal[1])
    color = (scenes.color[image, slot] * scenes.light_color[image])[:, :, None]
    colors = (diffuse.flatten(1)[:, None] * color).add_(glint.flatten(1)[:, None])
    return pixels.flatten(1), colors, coverage.flatten(1)


def _sphere(origin, direction, size, yaw, pixel):
    along = _dot(origin, direction)
    inside = size * size - (_dot(origin, origin) - along * along)  # squared half length of the chord
    depth = -along - inside.clamp(min=0).sqrt()
    normal = [(o + depth * d) / size for o, d in zip(origin, direction, strict=True)]
    gap = size - (size * size - inside).clamp(min=0).sqrt()  # of the ray inside the rim
    return normal, (gap / pixel + 0.5).clamp_(0, 1)


def _box(origin, direction, size, yaw, pixel):
    cos, sin = yaw
    half = _HALF_HEIGHT[BOX] * size
    starts = (cos * origin[0] + sin * origin[2], origin[1], cos * origin[2] - sin * origin[0])
    steps = (cos * direction[0] + sin * direction[2], direction[1], cos * direction[2] - sin * direction[0])
    near, far = [], []
    for start, step in zip(starts, steps, strict=True):
        slope = 1 / torch.where(step.abs() < 1e-6, torch.full((), 1e-6), step)
        middle, reach = -start * slope, half * slope.abs()
        near.append(middle - reach)
        far.append(middle + reach)
    enter = torch.maximum(torch.maximum(near[0], near[1]), near[2])
    leave = torch.minimum(torch.minimum(far[0], far[1]), far[2])
    faces = [-step.sign() * (distance == enter) for step, distance in zip(steps, near, strict=True)]
    normal = (cos * faces[0] - sin * faces[2], faces[1], sin * faces[0] + cos * faces[2])
    return normal, ((leave - enter) / (2 * pixel) + 0.5).clamp_(0, 1)


def _cylinder(origin, direction, size, yaw, pixel):
    radius, half = 0.85 * size, _HALF_HEIGHT[CYLINDER] * size
    flat = direction[0] ** 2 + direction[2] ** 2
    along = (origin[0] * direction[0] + origin[2] * direction[2]) / flat
    inside = radius * radius - (origin[0] ** 2 + origin[2] ** 2 - along * along * flat)
    chord = (inside.clamp(min=0) / flat).sqrt()
    top = (half - origin[1]) / direction[1]  # the camera looks down on every object: it enters at the top
    bottom = (-half - origin[1]) / direction[1]
    rising = direction[1] > -1e-3
    top, bottom = top.masked_fill(rising, 1e3), bottom.masked_fill(rising, 1e3)  # a rising ray never enters
    enter, leave = torch.maximum(-along - chord, top), torch.minimum(-along + chord, bottom)
    on_top = (top > -along - chord).float()
    side = (1 - on_top) / radius
    normal = ((origin[0] + enter * direction[0]) * side, on_top, (origin[2] + enter * direction[2]) * side)
    rim = radius - (radius * radius - inside).clamp(min=0).sqrt()
    return normal, torch.minimum(rim / pixel, (leave - enter) / (2 * pixel)).add_(0.5).clamp_(0, 1)


def _cone(origin, direction, size, yaw, pixel):
    """Intersect a cone with its apex up; its base lies on the ground and is never visible."""
    half, slope = _HALF_HEIGHT[CONE] * size, 0.5  # radius per height below the apex
    lean = slope * slope
    above = origin[1] - half  # of the camera over the apex
    flat = direction[0] ** 2 + direction[2] ** 2 - lean * direction[1] ** 2  # positive: rays are flatter than the side
    along = origin[0] * direction[0] + origin[2] * direction[2] - lean * above * direction[1]
    root = along * along - flat * (origin[0] ** 2 + origin[2] ** 2 - lean * above * above)
    depth = (-along - root.clamp(min=0).sqrt()) / flat
    below = -(above + depth * direction[1])  # of the hit under the apex
    radius = torch.maximum(below * slope, pixel)
    scale = 1 / (radius * math.sqrt(1 + lean))
    normal = (
        (origin[0] + depth * direction[0]) * scale,
        torch.full_like(below, slope / math.sqrt(1 + lean)),
        (origin[2] + depth * direction[2]) * scale,
    )
    side = root / (2 * flat * radius * pixel)
    base = (2 * half - below) / pixel
    return normal, torch.minimum(torch.minimum(side, base).add_(0.5), below / pixel).clamp_(0, 1)


_INTERSECT = (_sphere, _box, _cylinder, _cone)


def _rays(rows: Int[Tensor, "..."], columns: Int[Tensor, "..."], image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y, z of the unit vectors from the camera through the centres of pixels."""
    cos, sin = math.cos(_PITCH), math.sin(_PITCH)
    right = (columns + 0.5) * (2 / image_size) - 1
    up = 1 - (rows + 0.5) * (2 / image_size)
    y, z = up * cos - FOCAL * sin, up * sin + FOCAL * cos
    inverse = (right * right + (y * y + z * z)).sqrt().reciprocal_()
    return right * inverse, y * inverse, z * inverse


def _box_corner(center: Float[Tensor, "n 3"], image_size: int, box: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Return top and left of a square of ``box`` pixels around each projected centre, moved inside the image."""
    cos, sin = math.cos(_PITCH), math.sin(_PITCH)
    x, y, z = center.unbind(-1)
    forward = z * cos - y * sin
    column = (FOCAL * x / forward + 1) * image_size / 2
    row = (1 - FOCAL * (y * cos + z * sin) / forward) * image_size / 2
    return tuple((middle - box / 2).round().long().clamp(0, image_size - box) for middle in (row, column))


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


def _dot(a, b) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _norm(vectors: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    x, y, z = vectors.unbind(-1)
    return (x * x + y * y + z * z).sqrt()
