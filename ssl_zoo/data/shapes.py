"""Intersections of rays with the shapes of rendered scenes, antialiased.

Each function takes the camera's position relative to the shape's centre, unit directions of rays, the shape's size,
cosine and sine of its rotation about the vertical, and the width of a pixel at the shape. It returns the surface's
normal, the coverage of the pixel, above one half where the ray through its centre meets the shape, and the distance
from the camera to the surface.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SHAPES = ("sphere", "box", "cylinder", "cone")
SPHERE, BOX, CYLINDER, CONE = range(4)
HALF_HEIGHT = (1.0, 0.74, 0.85, 1.0)  # of each shape, in units of its size


def _sphere(origin, direction, size, yaw, pixel):
    along = dot(origin, direction)
    inside = size * size - (dot(origin, origin) - along * along)  # squared half length of the chord
    depth = -along - inside.clamp(min=0).sqrt()
    normal = [(o + depth * d) / size for o, d in zip(origin, direction, strict=True)]
    gap = size - (size * size - inside).clamp(min=0).sqrt()  # of the ray inside the rim
    return normal, (gap / pixel + 0.5).clamp_(0, 1), depth


def _box(origin, direction, size, yaw, pixel):
    cos, sin = yaw
    half = HALF_HEIGHT[BOX] * size
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
    return normal, ((leave - enter) / (2 * pixel) + 0.5).clamp_(0, 1), enter


def _cylinder(origin, direction, size, yaw, pixel):
    radius, half = 0.85 * size, HALF_HEIGHT[CYLINDER] * size
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
    return normal, torch.minimum(rim / pixel, (leave - enter) / (2 * pixel)).add_(0.5).clamp_(0, 1), enter


def _cone(origin, direction, size, yaw, pixel):
    """Intersect a cone with its apex up; its base lies on the ground and is never visible."""
    half, slope = HALF_HEIGHT[CONE] * size, 0.5  # radius per height below the apex
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
    return normal, torch.minimum(torch.minimum(side, base).add_(0.5), below / pixel).clamp_(0, 1), depth


INTERSECT = (_sphere, _box, _cylinder, _cone)  # by shape


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the scalar products of vectors, given by their three coordinates."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
