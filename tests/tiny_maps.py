"""Tiny images with maps: each patch has a class, which colours it, and a depth that grows with the class."""

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from tiny_probes import BACKBONE
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.maps import IGNORED, MapSet
from ssl_zoo.data.sources.base import Source, SourceConfig, Split
from ssl_zoo.data.video import Video
from ssl_zoo.eval import Probe, probe_config_class

COLORS = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200]], dtype=torch.uint8)


class Mosaic(Source):
    """Mosaics of 4 x 4 patches; the last class is ignored in the first row, and has no depth there."""

    image_size = (16, 16)

    def __init__(self, config: SourceConfig, split: Split, num_images: int = 23, corrupt: tuple[int, ...] = ()) -> None:
        super().__init__(config, split)
        self.num_images, self.corrupt = num_images, corrupt

    def __len__(self) -> int:
        return self.num_images

    def classes_of(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(2 * index + (self.split is Split.test))
        return torch.randint(3, (4, 4), generator=generator).repeat_interleave(4, 0).repeat_interleave(4, 1)

    def image(self, index: int) -> Tensor:
        if index in self.corrupt:
            raise CorruptImage(self.sample_name(index), "it is corrupt")
        return COLORS[self.classes_of(index)].permute(2, 0, 1).contiguous()

    def sample_name(self, index: int) -> str:
        return f"mosaic/{self.split.value}/{index}"

    @property
    def label_sets(self) -> Mapping[str, Tensor]:
        return {"parity": torch.arange(len(self)) % 2}

    @property
    def map_sets(self) -> Mapping[str, MapSet]:
        return {"segmentation": MapSet(num_classes=3), "depth": MapSet(max_depth=10.0)}

    @property
    def num_videos(self) -> int:
        return 5

    def video(self, index: int) -> Video:
        """Return five frames of an image that rolls to the right by a patch each; two of its classes are objects."""
        classes = self.classes_of(index)
        frames = [classes.roll(4 * frame, dims=1) for frame in range(5)]
        return Video(f"video {index}", COLORS[torch.stack(frames)].permute(0, 3, 1, 2), torch.stack(frames).byte())

    def image_and_map(self, index: int, name: str) -> tuple[Tensor, Tensor]:
        image, classes = self.image(index), self.classes_of(index)
        is_unknown = (classes == 2) & (torch.arange(16) < 4)[:, None]
        if name == "segmentation":
            return image, classes.masked_fill(is_unknown, IGNORED).to(torch.uint8)
        return image, (2.0 + 3 * classes).masked_fill(is_unknown, 0)


def mosaic_probe(num_train: int = 23, num_test: int = 11, corrupt: tuple[int, ...] = (), **settings) -> Probe:
    """Return a probe of ``tiny_probes.encoder`` on mosaics."""
    probe = probe_config_class()(**{"train_samples": 0, "test_samples": 0, **settings})
    config = SimpleNamespace(seed=0, backbone=BACKBONE, probe=probe)
    train, test = Mosaic(SourceConfig(), Split.train, num_train), Mosaic(SourceConfig(), Split.test, num_test, corrupt)
    return Probe(config, train, test, ViewConfig(mean=[0.5] * 3, std=[0.25] * 3))
