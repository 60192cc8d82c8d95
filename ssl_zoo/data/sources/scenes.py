"""Images of simple objects, rendered on demand: a data set for machines without data.

The scenes resemble CLEVR (Johnson et al., arXiv 1612.06890), whose counts and distances are common probes of
representations beyond classes (VTAB, arXiv 1910.04867).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from ssl_zoo.data.maps import MapSet
from ssl_zoo.data.raycast import Geometry, Scenes, render, render_with_geometry
from ssl_zoo.data.shapes import SHAPES
from ssl_zoo.data.sources.base import SOURCES, Source, SourceConfig, Split, grey
from ssl_zoo.data.video import Video
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting

MAX_OBJECTS = 10
MAX_DEPTH = 15.0  # scene units; no object is farther
PIXEL_CLASSES = ("wall", "ground", *SHAPES)
DISTANCE_EDGES = (5.25, 5.9, 6.65, 7.65, 8.9)  # scene units; about a sixth of the scenes in each bin
_NEAREST, _FARTHEST = 4.4, 12.0  # z of objects
_NUM_GLOBAL, _NUM_PER_OBJECT = 21, 9  # uniform numbers that describe a scene and each of its objects
_NUM_FRAMES, _FASTEST = 16, 0.12  # of a video; scene units per frame along each axis
_CHUNK = 256  # scenes rendered at once; with fewer the overhead of calls dominates, more gain little
_COLORS = torch.tensor(
    [
        [0.80, 0.16, 0.14],
        [0.16, 0.35, 0.80],
        [0.14, 0.60, 0.20],
        [0.92, 0.78, 0.15],
        [0.55, 0.20, 0.65],
        [0.15, 0.65, 0.68],
        [0.90, 0.45, 0.10],
        [0.55, 0.55, 0.57],
    ]
)


@dataclass
class ScenesConfig(SourceConfig):
    image_size: int = setting(64, "height and width of the images in pixels", at_least=16)
    num_train: int = setting(50_000, "images of the train split", at_least=1)
    num_test: int = setting(5_000, "images of the test split", at_least=1)
    seed: int = setting(0, "another seed gives other images; independent of the run's seed")


@SOURCES.register("scenes", ScenesConfig)
class RenderedScenes(Source):
    """Built-in: 1 to 10 shaded objects on a ground plane; label sets distance, count, shape; maps; videos.

    An image is a function of (seed, split, index). ``distance`` is the bin of the nearest object's depth, ``count``
    the number of objects minus one, ``shape`` the most frequent shape; larger silhouettes break ties. The maps are cast
    by the rays of the image: ``depth`` up to ``MAX_DEPTH``, which leaves out the wall, and ``segmentation`` into
    ``PIXEL_CLASSES``.
    """

    channel_counts = (1, 3)
    num_classes = len(DISTANCE_EDGES) + 1

    def __init__(self, config: ScenesConfig, split: Split, channels: int = 3) -> None:
        super().__init__(config, split, channels)
        self.image_size = (config.image_size, config.image_size)
        self._num_images = config.num_train if split is Split.train else config.num_test
        generator = generator_for(config.seed, "scenes", split.value)
        # 444 bytes per image are stored instead of the image (12 kB at 64 pixels).
        self._uniform = torch.rand(self._num_images, _NUM_GLOBAL + _NUM_PER_OBJECT * MAX_OBJECTS, generator=generator)
        self._uniform.share_memory_()
        self._label_sets: dict[str, Tensor] | None = None

    @classmethod
    def expected_size(cls, config: ScenesConfig) -> int:
        return config.num_train

    def __len__(self) -> int:
        return self._num_images

    def scenes(self, indices: Int[Tensor, "B"]) -> Scenes:
        """Return the scenes that the images show."""
        return _describe(self._uniform[indices])

    def image(self, index: int) -> UInt8[Tensor, "C H W"]:
        return self.images(torch.tensor([index]))[0]

    def images(self, indices: Int[Tensor, "B"]) -> UInt8[Tensor, "B C H W"]:
        images = torch.cat([render(self.scenes(chunk), self.image_size[0]) for chunk in indices.split(_CHUNK)])
        return images if self.channels == 3 else grey(images)

    @property
    def map_sets(self) -> Mapping[str, MapSet]:
        return {
            "depth": MapSet(max_depth=MAX_DEPTH),
            "segmentation": MapSet(num_classes=len(PIXEL_CLASSES), classes=PIXEL_CLASSES),
        }

    def geometry(self, indices: Int[Tensor, "B"]) -> Geometry:
        """Return depth, objects and positions at each pixel of the images."""
        return render_with_geometry(self.scenes(indices), self.image_size[0])[1]

    def image_and_map(self, index: int, name: str) -> tuple[UInt8[Tensor, "C H W"], Shaped[Tensor, "H W"]]:
        images, maps = self.images_and_maps(torch.tensor([index]), name)
        return images[0], maps[0]

    def images_and_maps(
        self, indices: Int[Tensor, "B"], name: str
    ) -> tuple[UInt8[Tensor, "B C H W"], Shaped[Tensor, "B H W"]]:
        scenes = self.scenes(indices)
        images, geometry = render_with_geometry(scenes, self.image_size[0])
        maps = _known(geometry.depth) if name == "depth" else _classes(geometry, scenes)
        return images if self.channels == 3 else grey(images), maps

    @property
    def num_videos(self) -> int:
        return len(self)

    def video(self, index: int) -> Video:
        """Return 16 frames: the objects of an image move over the ground, each straight on at its own speed."""
        generator = generator_for(self.config.seed, "scenes", "video", self.split.value, index)
        speed = _FASTEST * (2 * torch.rand(1, MAX_OBJECTS, 2, generator=generator) - 1)  # scene units per frame
        first = self.scenes(torch.tensor([index]))
        frames = Scenes(**{name: value.repeat_interleave(_NUM_FRAMES, 0) for name, value in vars(first).items()})
        ground = frames.ground + torch.arange(_NUM_FRAMES)[:, None, None] * speed
        ground[..., 1].clamp_(min=_NEAREST, max=_FARTHEST)
        images, geometry = render_with_geometry(replace(frames, ground=ground), self.image_size[0])
        images = images if self.channels == 3 else grey(images)
        return Video(f"video {self.split.value}/{index}", images, geometry.instance)

    def sample_name(self, index: int) -> str:
        return f"scene {self.split.value}/{index}"

    @property
    def label_sets(self) -> Mapping[str, Int[Tensor, "n"]]:
        if self._label_sets is None:
            parts = [_labels(self.scenes(chunk)) for chunk in torch.arange(len(self)).split(4096)]
            self._label_sets = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self._label_sets


def _known(depth: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    return depth.masked_fill(depth > MAX_DEPTH, 0)


def _classes(geometry: Geometry, scenes: Scenes) -> UInt8[Tensor, "B H W"]:
    """Return the number of each pixel's class among ``PIXEL_CLASSES``."""
    shape = scenes.shape.gather(1, (geometry.instance.flatten(1).long() - 1).clamp_(min=0)).view_as(geometry.instance)
    background = geometry.depth.isfinite().to(torch.uint8)
    return torch.where(geometry.instance > 0, (shape + 2).to(torch.uint8), background)


def _describe(uniform: Float[Tensor, "B numbers"]) -> Scenes:
    """Build scenes from numbers in [0, 1)."""
    scene, each = uniform[:, :_NUM_GLOBAL], uniform[:, _NUM_GLOBAL:].view(len(uniform), MAX_OBJECTS, _NUM_PER_OBJECT)
    count = (scene[:, 0] * MAX_OBJECTS).long() + 1
    size = 0.55 + 0.35 * each[..., 2]
    nearest = _NEAREST + 4.5 * scene[:, 1:2] ** 2
    z = nearest + (_FARTHEST - nearest) * each[..., 1]
    ground = _spread(torch.stack([(2 * each[..., 0] - 1) * _half_width(z), z], dim=-1), size, count, nearest)
    favourite = (scene[:, 2:3] * len(SHAPES)).long().expand(-1, MAX_OBJECTS)
    shape = torch.where(each[..., 3] < 0.45, favourite, (each[..., 4] * len(SHAPES)).long())
    # The palette is jittered, so that colour alone does not identify an object.
    color = _COLORS[(each[..., 5] * len(_COLORS)).long()] * (0.75 + 0.5 * each[..., 6:7])
    light = torch.stack([2 * scene[:, 3] - 1, 0.9 + 0.9 * scene[:, 4], 0.9 * scene[:, 5] - 0.8], dim=-1)
    warmth = 0.12 * (scene[:, 6] - 0.5)
    brightness = 0.8 + 0.4 * scene[:, 7:8]
    turn = each[..., 7]  # tangent of half the angle: 0 to 90 degrees without a cosine, whose last bit may vary
    tints = 0.5 + 0.2 * (scene[:, 8:14] - 0.5)
    values = (0.55 + 0.9 * scene[:, 14:16]) * brightness
    waves, pools = 0.12 * (scene[:, 16:18] - 0.5), 0.3 * scene[:, 18:21]
    return Scenes(
        count=count,
        ground=ground,
        size=size,
        shape=shape,
        yaw=torch.stack([(1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)], dim=-1),
        color=color.clamp(0.05, 0.95),
        gloss=torch.where(each[..., 8] < 0.5, 0.08, 0.65),
        light=light / (light[:, 0:1] ** 2 + light[:, 1:2] ** 2 + light[:, 2:3] ** 2).sqrt(),
        light_color=brightness + torch.stack([warmth, torch.zeros_like(warmth), -warmth], dim=1),
        floor=tints[:, :3] * values[:, :1],
        wall=tints[:, 3:] * values[:, 1:],
        fields=torch.cat([waves, pools], dim=1),
    )


def _half_width(z: Tensor) -> Tensor:
    return 0.45 * z - 0.1  # of the visible ground at depth z, less a margin


def _spread(
    ground: Float[Tensor, "B O 2"], size: Float[Tensor, "B O"], count: Int[Tensor, "B"], nearest: Float[Tensor, "B 1"]
) -> Float[Tensor, "B O 2"]:
    """Push overlapping objects apart; a little overlap may remain in crowded scenes."""
    present = torch.arange(MAX_OBJECTS) < count[:, None]
    apart = (size[:, :, None] + size[:, None, :]) * (present[:, :, None] & present[:, None, :])
    x, z = ground.unbind(-1)
    for _ in range(8):
        dx, dz = x[:, :, None] - x[:, None, :], z[:, :, None] - z[:, None, :]
        distance = (dx * dx + dz * dz).sqrt().clamp_(min=1e-3)
        push = (apart - distance).clamp_(min=0).div_(distance).mul_(0.5)
        z = torch.minimum((z + (push * dz).sum(2)).maximum(nearest), torch.full((), _FARTHEST))
        bound = _half_width(z)
        x = torch.minimum(torch.maximum(x + (push * dx).sum(2), -bound), bound)
    return torch.stack([x, z], dim=-1)


def _labels(scenes: Scenes) -> dict[str, Int[Tensor, "B"]]:
    present = torch.arange(MAX_OBJECTS) < scenes.count[:, None]
    z = scenes.ground[..., 1]
    depth = z.masked_fill(~present, math.inf).amin(1)
    silhouette = (scenes.size / z) ** 2  # below 0.04; ten of them stay below one
    votes = torch.nn.functional.one_hot(scenes.shape, len(SHAPES)) * present[..., None] * (1 + silhouette[..., None])
    return {
        "distance": torch.bucketize(depth, torch.tensor(DISTANCE_EDGES)),
        "count": scenes.count - 1,
        "shape": votes.sum(1).argmax(1),
    }
