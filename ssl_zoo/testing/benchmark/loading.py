"""Data loading on one core, compared with torchvision's ImageFolder on the same files."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import torch
from rich.table import Table
from torchvision.datasets import ImageFolder
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToTensor,
)
from torchvision.transforms import functional as TF

from ssl_zoo.data.batch import Batch, ViewSpec
from ssl_zoo.data.loader import TrainingData
from ssl_zoo.data.resample import resize_crop
from ssl_zoo.data.sources import Source, Split, build_source
from ssl_zoo.data.transforms import crop_boxes, is_whole_image, render_each, sample_params
from ssl_zoo.engine.build import RunConfig, build_views
from ssl_zoo.engine.device import prepare_device
from ssl_zoo.seeding import generator_for

_BATCH = 32  # images augmented together


@dataclass(frozen=True)
class Loading:
    """CPU milliseconds per image of one implementation, medians over rounds."""

    name: str
    decode: float  # read and decode
    augment: float  # crop, resize, flip, normalise

    @property
    def images_per_second(self) -> float:
        return 1e3 / (self.decode + self.augment)


@dataclass(frozen=True)
class PixelDifference:
    """Difference of pixels between views with equal crop boxes, in 8-bit steps."""

    mean: float
    largest: int
    above_one: float  # fraction of the values that differ by more than one step


@dataclass(frozen=True)
class LoadingResult:
    """Speed of both implementations, and the difference of their pixels."""

    num_images: int
    torchvision: Loading
    own: Loading
    difference: PixelDifference

    def plain(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        ways = {way.name: {**vars(way), "images_per_second": way.images_per_second} for way in self._ways}
        return {"num_images": self.num_images, "ways": ways, "difference": vars(self.difference)}

    @property
    def _ways(self) -> Sequence[Loading]:
        return self.torchvision, self.own

    def table(self) -> Table:
        """Build a table with one column per implementation; ratios are to torchvision."""
        table = Table("", *(way.name for way in self._ways), title="Loading, one core", title_justify="left")
        first = self.torchvision.images_per_second
        rows: Mapping[str, Callable[[Loading], str]] = {
            "images/s": lambda way: f"{way.images_per_second:,.0f}",
            "relative to the first": lambda way: f"{way.images_per_second / first:.2f}x",
            "ms per image": lambda way: f"{way.decode + way.augment:.2f}",
            "  read and decode": lambda way: f"{way.decode:.2f}",
            "  crop, resize, flip, normalise": lambda way: f"{way.augment:.2f}",
        }
        for title, cell in rows.items():
            table.add_row(title, *map(cell, self._ways))
        difference = self.difference
        text = f"{difference.mean:.3f} on average, {difference.largest} at most, {difference.above_one:.2%} above 1"
        table.add_row("8-bit steps from torchvision's pixels", "", text)
        return table


def compare_loading(config: RunConfig, *, num_images: int, rounds: int) -> LoadingResult:
    """Measure the CPU time of loading the first images of a recipe's data, in turns, on one thread, for its first view.

    Raises:
        ValueError: the data has no image files, or the view has more than a random resized crop and a flip, which is
            all that the torchvision pipeline has.
    """
    prepare_device(torch.device("cpu"))  # as the trainer does, for both implementations
    spec = build_views(config.views, config.backbone)[0]
    _check(spec)
    source = build_source(config.data, Split.train, spec.channels)
    data = TrainingData(source, [spec], {}, seed=config.seed, batch_size=_BATCH)
    count = min(num_images, len(source)) // _BATCH * _BATCH
    if count == 0:
        raise ValueError(f"the data has {len(source)} images, --images is {num_images}; at least {_BATCH} are needed")
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        files = _image_folder(source, count, Path(folder))
        transform = _torchvision_view(spec)
        times: list[tuple[float, ...]] = []
        for _ in range(rounds):
            theirs = _timed(count, lambda i: files[i][0], lambda images: torch.stack([*map(transform, images)]))
            ours = _timed(count, source.image, partial(_augment, data, generator_for("loading")))
            times.append((*theirs, *ours))
        medians = [1e3 * median(column) / count for column in zip(*times, strict=True)]
        difference = _pixel_difference(files, source, spec, count)
    return LoadingResult(
        count, Loading("torchvision, Pillow", *medians[:2]), Loading("ssl_zoo", *medians[2:]), difference
    )


def _check(spec: ViewSpec) -> None:
    view = spec.config
    if spec.channels != 3:
        raise ValueError(f"--loading compares RGB images, and backbone.in_channels={spec.channels}: leave it at 3")
    others = {"color_jitter": max(view.color_jitter), "grayscale": view.grayscale, "blur": view.blur}
    others["solarize"] = view.solarize
    used = [name for name, value in others.items() if value]
    if used or is_whole_image(view):
        what = f"it uses {', '.join(used)}" if used else "it takes no random crop"
        raise ValueError(f"--loading compares views of a random resized crop and a flip; of this recipe's view {what}")


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _image_folder(source: Source, count: int, folder: Path) -> ImageFolder:
    """Write the first images of a source as files of one class."""
    (folder / "images").mkdir()
    for index in range(count):
        content = source.encoded(index)
        if content is None:
            raise ValueError("--loading: this data has no image files to decode; take data=imagefolder data.path=...")
        (folder / "images" / f"{index:06d}.jpg").write_bytes(content)
    return ImageFolder(str(folder))


def _torchvision_view(spec: ViewSpec) -> Compose:
    view, scale, ratio = spec.config, tuple(spec.config.crop_scale), tuple(spec.config.crop_aspect)
    crop = RandomResizedCrop(spec.size, scale, ratio, InterpolationMode(view.interpolation))
    return Compose([crop, RandomHorizontalFlip(view.horizontal_flip), ToTensor(), Normalize(spec.mean, spec.std)])


def _timed(count: int, decode: Callable[[int], Any], augment: Callable[[Sequence[Any]], object]) -> tuple[float, float]:
    """Return the CPU seconds of decoding images and of augmenting them in batches."""
    decoding = augmenting = 0.0
    for start in range(0, count, _BATCH):
        began = time.process_time()
        images = [decode(index) for index in range(start, start + _BATCH)]
        decoded = time.process_time()
        augment(images)
        decoding, augmenting = decoding + decoded - began, augmenting + time.process_time() - decoded
    return decoding, augmenting


def _augment(data: TrainingData, generator: torch.Generator, images: Sequence[torch.Tensor]) -> None:
    """Do the calls of ``TrainingData.batch`` and ``to_device`` on decoded images."""
    [spec] = data.views
    view = render_each(images, sample_params(spec.config, _BATCH, generator), spec)
    data.to_device(Batch({spec.name: view}), "cpu")


def _pixel_difference(files: ImageFolder, source: Source, spec: ViewSpec, count: int) -> PixelDifference:
    params, differences = sample_params(spec.config, count, generator_for("loading", "boxes")), []
    sizes = torch.tensor([source.image(index).shape[1:] for index in range(count)])
    boxes = crop_boxes(params, *sizes.unbind(1), spec.config).tolist()
    mode = InterpolationMode(spec.config.interpolation)
    for index, box in enumerate(boxes):
        theirs = numpy.asarray(TF.resized_crop(files[index][0], *box, spec.size, mode)).astype(int)
        ours = resize_crop(source.image(index), tuple(box), spec.size, spec.config.interpolation)
        differences.append(numpy.abs(theirs - ours.permute(1, 2, 0).numpy()).ravel())
    steps = numpy.concatenate(differences)
    return PixelDifference(float(steps.mean()), int(steps.max()), float((steps > 1).mean()))
