"""Batches as a pure function of the step, and labelled images for evaluation.

Sample ids, augmentations and masks are drawn for the global batch of all ranks and then cut to the rank's rows, so that
neither the number of ranks nor that of worker processes changes what an image looks like or when it comes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_zoo.data import order
from ssl_zoo.data.batch import Batch, Corrupt, ViewSpec
from ssl_zoo.data.sources.base import CorruptImage, Source
from ssl_zoo.data.transforms import Normalize, draw, evaluation_view, render_each, render_equal
from ssl_zoo.data.workers import Items, in_workers, resolve_workers
from ssl_zoo.masks.base import MaskGenerator, Masks
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import setting


@dataclass
class LoaderConfig:
    """How batches are produced; no key of it changes what is in them."""

    num_workers: int | None = setting(
        None,
        "worker processes per rank; 0 loads in the main process; null: 0 without a GPU, else up to 8, one CPU spared",
    )
    prefetch_per_worker: int = setting(2, "batches that each worker keeps ready")
    pin_memory: bool | None = setting(None, "page-locked batches for faster copies; null: where there is a GPU")
    timeout_s: float = setting(300.0, "seconds after which a batch that does not come is an error; 0 waits for ever")
    max_corrupt_fraction: float = setting(0.01, "part of the samples that may be undecodable before the run stops")

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"loader.num_workers={self.num_workers} must be 0 or more, or null for automatic")
        if self.prefetch_per_worker < 1:
            raise ValueError(f"loader.prefetch_per_worker={self.prefetch_per_worker} must be at least 1")
        if self.timeout_s < 0:
            raise ValueError(f"loader.timeout_s={self.timeout_s} must be 0 or more")
        if not 0 <= self.max_corrupt_fraction <= 1:
            raise ValueError(f"loader.max_corrupt_fraction={self.max_corrupt_fraction} must lie in [0, 1]")


class TrainingData:
    """The batches of a run on one rank: ``batch(step)`` depends on the arguments here and on ``step``, nothing else.

    Args:
        views: what the method asks for; a spec with ``count`` n gives n consecutive views.
        mask_generators: one per flattened view, None for a view without masks.
        batch_size: images of the global batch, over all ranks.

    Raises:
        ValueError: ``batch_size`` can't be divided among the ranks.
    """

    def __init__(
        self,
        source: Source,
        views: Sequence[ViewSpec],
        mask_generators: Sequence[MaskGenerator | None],
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        config: LoaderConfig | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"trainer.batch_size={batch_size} is no multiple of the {world_size} ranks")
        self.source, self.seed, self.batch_size = source, seed, batch_size
        self.views = tuple(view for view in views for _ in range(view.count))
        self.mask_generators = tuple(mask_generators)
        assert len(self.mask_generators) == len(self.views), "one mask generator, or None, per view"
        self.config = config or LoaderConfig()
        per_rank = batch_size // world_size
        self._rows = slice(rank * per_rank, (rank + 1) * per_rank)
        self._normalize = tuple(Normalize(view.config.mean, view.config.std) for view in self.views)

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps that fit into the data, at least one."""
        return max(1, len(self.source) // self.batch_size)

    def indices(self, step: int) -> Int[Tensor, "G"]:
        """Planned sample ids of the global batch."""
        return order.indices(self.seed, step, self.batch_size, len(self.source), self.source.epoch_order)

    def masks(self, step: int) -> tuple[Masks | None, ...]:
        """Masks of the global batch, one entry per view."""
        return tuple(
            None if masks is None else masks(self.batch_size, generator_for(self.seed, "masks", step, view))
            for view, masks in enumerate(self.mask_generators)
        )

    def sample_masks(self) -> Sequence[Masks | None]:
        """Masks of one image per view, of the kind that all batches have; None for a view without."""
        return [None if m is None else m(1, generator_for(self.seed, "sample")) for m in self.mask_generators]

    def fingerprint(self, step: int) -> bytes:
        """Digest of the planned sample ids and the masks of the global batch of a step."""
        return _digest(self.indices(step), self.masks(step))

    def batch(self, step: int) -> Batch:
        """This rank's part of a step on the host: uint8 views, masks, sample ids.

        Raises:
            ValueError: no image could be decoded.
        """
        planned, masks = self.indices(step), self.masks(step)
        rows = self._rows
        index, images, corrupt = self._load(planned[rows])
        rendered = []
        for view, spec in enumerate(self.views):
            draws = draw(spec.config, self.batch_size, generator_for(self.seed, "view", step, view)).rows(rows)
            render = render_equal if isinstance(images, Tensor) else render_each
            rendered.append(render(images, draws, spec))
        return Batch(
            views=tuple(rendered),
            masks=tuple(None if m is None else m.map(lambda tensor: tensor[rows]) for m in masks),
            index=index,
            corrupt=corrupt,
            fingerprint=_digest(planned, masks),
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Host batches of the steps start .. stop-1.

        Raises:
            ValueError: the data can't be used, as ``batch`` raises it.
            LoaderError: a worker process died, or did not answer within ``loader.timeout_s``.
        """
        num_workers = resolve_workers(self.config.num_workers)
        if num_workers == 0:
            yield from map(self.batch, range(start, stop))
            return
        pin_memory = torch.cuda.is_available() if self.config.pin_memory is None else self.config.pin_memory
        yield from in_workers(
            Items(self.batch, range(start, stop)),
            num_workers,
            prefetch_per_worker=self.config.prefetch_per_worker,
            timeout_s=self.config.timeout_s,
            pin_memory=pin_memory,
        )

    def to_device(self, batch: Batch, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on the device, its views as normalised float32; the copy moves bytes, not floats."""
        moved = batch.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        views = tuple(normalize(view) for normalize, view in zip(self._normalize, moved.views, strict=True))
        return Batch(views, moved.masks, moved.index, batch.corrupt, batch.fingerprint)

    def _load(
        self, planned: Int[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B"], UInt8[Tensor, "B 3 H W"] | list[UInt8[Tensor, "3 _ _"]], tuple[Corrupt, ...]]:
        """Sample ids, images, and what had to be replaced."""
        equal = self.source.image_size is not None
        if equal:
            with suppress(CorruptImage):  # which one it is, is found out one by one
                return planned, self.source.images(planned), ()
        used, images, corrupt = [], [], []
        for index in planned.tolist():
            index, image = self._decodable(index, corrupt)
            used.append(index)
            images.append(image)
        return torch.tensor(used), torch.stack(images) if equal else images, tuple(corrupt)

    def _decodable(self, index: int, corrupt: list[Corrupt]) -> tuple[int, UInt8[Tensor, "3 H W"]]:
        """The sample, or the nearest following one that can be decoded: no draw, so the same in every process."""
        num_samples = len(self.source)
        for distance in range(num_samples):
            candidate = (index + distance) % num_samples
            try:
                return candidate, self.source.image(candidate)
            except CorruptImage as error:
                # A substitute that is corrupt too is not counted here, but where it is planned itself.
                if distance == 0:
                    corrupt.append(Corrupt(error.name, error.reason))
                if num_samples > _MAX_SUBSTITUTES and distance == _MAX_SUBSTITUTES:
                    break
        first = corrupt[-1]
        raise ValueError(
            f"none of {distance + 1} images in a row could be decoded; the first: {first.name}: {first.reason}"
        )


_MAX_SUBSTITUTES = 100  # a data set this broken is not worth reading to its end


class EvaluationData:
    """Images without augmentation, in order, with labels; undecodable ones are left out and counted.

    Args:
        indices: sample ids to take, in this order; all when None.
        size: height and width in pixels of the images given out.

    Attributes:
        corrupt: what the last complete pass left out.
    """

    def __init__(
        self,
        source: Source,
        indices: Int[Tensor, "n"] | None = None,
        *,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 256,
        num_workers: int | None = 0,
    ) -> None:
        self.source, self.size, self.batch_size = source, tuple(size), batch_size
        self.indices = torch.arange(len(source)) if indices is None else indices
        self.num_workers = resolve_workers(num_workers)
        self.corrupt: tuple[Corrupt, ...] = ()
        self._normalize = Normalize(mean, std)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Int[Tensor, "B"] | None, Int[Tensor, "B"]]]:
        """Normalised images, labels (None without any) and sample ids.

        Raises:
            ValueError: no image at all could be decoded.
        """
        labels, corrupt, num_images = self.source.labels, [], 0
        for batch in self._host_batches():
            corrupt.extend(batch.corrupt)
            num_images += batch.num_images
            if batch.num_images:
                yield self._normalize(batch.views[0]), None if labels is None else labels[batch.index], batch.index
        self.corrupt = tuple(corrupt)
        if num_images == 0:
            first = f": {corrupt[0].name}: {corrupt[0].reason}" if corrupt else ""
            raise ValueError(f"none of {len(self.indices)} images for evaluation could be decoded{first}")

    def _host_batches(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            return map(self._batch, range(len(self)))
        return in_workers(Items(self._batch, range(len(self))), self.num_workers)

    def _batch(self, number: int) -> Batch:
        index = self.indices[number * self.batch_size : (number + 1) * self.batch_size]
        if self.source.image_size is not None:
            with suppress(CorruptImage):  # which one it is, is found out one by one
                return Batch((evaluation_view(self.source.images(index), self.size),), index=index)
        kept, views, corrupt = [], [torch.empty(0, 3, *self.size, dtype=torch.uint8)], []
        for sample in index.tolist():
            try:
                views.append(evaluation_view(self.source.image(sample), self.size)[None])
                kept.append(sample)
            except CorruptImage as error:
                corrupt.append(Corrupt(error.name, error.reason))
        return Batch((torch.cat(views),), index=torch.tensor(kept, dtype=torch.int64), corrupt=tuple(corrupt))


def _digest(indices: Int[Tensor, "G"], masks: Sequence[Masks | None]) -> bytes:
    digest = hashlib.blake2b(indices.int().numpy().tobytes(), digest_size=16)

    def add(tensor: Tensor) -> Tensor:
        digest.update(
            tensor.to(torch.uint8 if tensor.dtype == torch.bool else torch.int16).contiguous().numpy().tobytes()
        )
        return tensor

    for view in masks:
        if view is not None:
            view.map(add)
    return digest.digest()
