"""Batches as a pure function of the step.

Sample ids, augmentations and masks are sampled for the global batch of all ranks and then cut to the rank's rows, so
that neither the number of ranks nor that of worker processes changes what an image looks like or when it comes.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ssl_zoo.data import order
from ssl_zoo.data.batch import Batch, Corrupt, ViewSpec
from ssl_zoo.data.rendering import Recolouring, Rendering
from ssl_zoo.data.samples import all_decoded, announce, decoded
from ssl_zoo.data.sources.base import Source
from ssl_zoo.data.transforms import (
    crop_each,
    plan_equal,
    render,
    render_each,
    render_equal,
    sample_params,
)
from ssl_zoo.data.view_params import ViewParams
from ssl_zoo.data.workers import Items, in_workers, resolve_workers
from ssl_zoo.masks.base import MaskGenerator, Masks
from ssl_zoo.seeding import generator_for
from ssl_zoo.settings import Settings, setting


class AugmentOn(Enum):
    """Where views are computed from decoded images."""

    host = "host"
    device = "device"


@dataclass
class LoaderConfig(Settings):
    """How batches are produced; no key of it changes what is in them, except rounding by ``augment_on`` on a GPU."""

    section = "loader"

    num_workers: int | None = setting(
        None, "worker processes per rank; 0: none; null: 0 without a GPU, else up to 8", at_least=0
    )
    prefetch_per_worker: int = setting(2, "batches that each worker keeps ready", at_least=1)
    pin_memory: bool | None = setting(None, "page-locked batches for faster copies; null: where there is a GPU")
    augment_on: AugmentOn = setting(
        AugmentOn.host, "host; device: colours there, and crops of images of one size: for a GPU that waits for data"
    )
    timeout_s: float = setting(300.0, "seconds after which a missing batch is an error; 0 waits forever", at_least=0)
    max_corrupt_fraction: float | None = setting(
        None,
        "fraction of undecodable samples above which the run stops; null: 0.01, but never for 100 per epoch or fewer",
        at_least=0,
        at_most=1,
    )


class TrainingData:
    """The batches of a run on one rank: ``batch(step)`` depends on the arguments here and on ``step``, nothing else.

    Args:
        views: in the order in which a batch holds them.
        mask_generators: by name of the view, for the views that get masks.
        batch_size: images of the global batch, over all ranks.

    Raises:
        ValueError: ``batch_size`` can't be split among the ranks.
    """

    def __init__(
        self,
        source: Source,
        views: Sequence[ViewSpec],
        mask_generators: Mapping[str, MaskGenerator],
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
        self.views, self.mask_generators = tuple(views), mask_generators
        self.config = config or LoaderConfig()
        per_rank = batch_size // world_size
        self._rows = slice(rank * per_rank, (rank + 1) * per_rank)
        self._normalize = {view.name: view.normalize for view in self.views}
        self._resident: UInt8[Tensor, "n C H W"] | None = None  # all images of a small data set, on the device

    def indices(self, step: int) -> Int[Tensor, "G"]:
        """Return the planned sample ids of the global batch."""
        return order.indices(self.seed, step, self.batch_size, len(self.source), self.source.epoch_order)

    def masks(self, step: int) -> Mapping[str, Masks]:
        """Sample the masks of the global batch, by name of the view."""
        return {
            view.name: self.mask_generators[view.name](self.batch_size, generator_for(self.seed, "masks", step, number))
            for number, view in enumerate(self.views)
            if view.name in self.mask_generators
        }

    def sample_masks(self) -> Mapping[str, Masks]:
        """Sample masks of one image per masked view, of the kind that all batches have."""
        return {name: masks(1, generator_for(self.seed, "sample")) for name, masks in self.mask_generators.items()}

    def fingerprint(self, step: int) -> bytes:
        """Return a digest of the planned sample ids and the masks of the global batch of a step."""
        return _digest(self.indices(step), self.masks(step))

    def batch(self, step: int) -> Batch:
        """Load this rank's part of a step on the host: uint8 views, masks, sample ids.

        Raises:
            ValueError: no image could be decoded.
        """
        planned, masks = self.indices(step), self.masks(step)
        index, images, corrupt = self._load(planned[self._rows])
        rendered = render_equal if isinstance(images, Tensor) else render_each
        views = {spec.name: rendered(images, params, spec) for spec, params in self._sampled(step)}
        return self._batch(planned, masks, views=views, index=index, corrupt=corrupt)

    def unrendered(self, step: int) -> Batch:
        """Load this rank's part of a step as ``batch``, and leave to ``to_device`` what a device can do of its views.

        Raises:
            ValueError: no image could be decoded.
        """
        planned, masks = self.indices(step), self.masks(step)
        is_stored = self.source.stored is not None
        index, images, corrupt = (planned[self._rows], None, ()) if is_stored else self._load(planned[self._rows])
        views, renderings = {}, {}
        for spec, params in self._sampled(step):
            if isinstance(images, list):
                views[spec.name] = crop_each(images, params, spec)
                renderings[spec.name] = Rendering(Recolouring.of(params, spec.channels))
            else:
                renderings[spec.name] = plan_equal(params, self.source.image_size, spec)
        left = {"images": None if views else images, "renderings": renderings}
        return self._batch(planned, masks, views=views, index=index, corrupt=corrupt, **left)

    def _sampled(self, step: int) -> Iterator[tuple[ViewSpec, ViewParams]]:
        """Sample the random decisions of each view for the global batch, and give out those of this rank's rows."""
        params: dict[str, ViewParams] = {}
        for number, spec in enumerate(self.views):
            generator = generator_for(self.seed, "view", step, number)
            repeated = params.get(spec.same_as)
            params[spec.name] = repeated or sample_params(spec.config, self.batch_size, generator).rows(self._rows)
            yield spec, params[spec.name]

    def _batch(self, planned: Int[Tensor, "G"], masks: Mapping[str, Masks], **loaded: Any) -> Batch:
        rows = self._rows
        return Batch(
            masks={name: m.map(lambda tensor: tensor[rows]) for name, m in masks.items()},
            notices=self.source.take_notices(),
            fingerprint=_digest(planned, masks),
            **loaded,
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Host batches of the steps start .. stop-1.

        Raises:
            ValueError: the data can't be used, as ``batch`` raises it.
            LoaderError: a worker process died, or did not answer within ``loader.timeout_s``.
        """
        for batch in self._host_batches(start, stop):
            if self._rows.start == 0:
                announce(self.source, batch.notices)
            yield batch

    def _host_batches(self, start: int, stop: int) -> Iterator[Batch]:
        num_workers = resolve_workers(self.config.num_workers)
        load = self.unrendered if self.config.augment_on is AugmentOn.device else self.batch
        if num_workers == 0:
            yield from map(load, range(start, stop))
            return
        pin_memory = torch.cuda.is_available() if self.config.pin_memory is None else self.config.pin_memory
        yield from in_workers(
            Items(load, range(start, stop)),
            num_workers,
            prefetch_per_worker=self.config.prefetch_per_worker,
            timeout_s=self.config.timeout_s,
            pin_memory=pin_memory,
        )

    def to_device(self, batch: Batch, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on the device, its views as normalised float32; the copy moves bytes, not floats."""
        moved = batch.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        views = self._rendered(moved) if moved.renderings else moved.views
        views = {name: self._normalize[name](view) for name, view in views.items()}
        return replace(moved, views=views, normalize=self._normalize, images=None, renderings={})

    def _rendered(self, batch: Batch) -> Mapping[str, UInt8[Tensor, "B C H W"]]:
        images = batch.images
        if images is None and not batch.views:
            if self._resident is None or self._resident.device != batch.index.device:
                self._resident = self.source.stored.to(batch.index.device)
            images = self._resident[batch.index]
        return {
            spec.name: render(batch.views.get(spec.name, images), batch.renderings[spec.name], spec)
            for spec in self.views
        }

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_resident": None}  # worker processes have no use for a copy on the device

    def _load(
        self, planned: Int[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B"], UInt8[Tensor, "B C H W"] | list[UInt8[Tensor, "C _ _"]], tuple[Corrupt, ...]]:
        """Return sample ids, images, and the samples that had to be replaced."""
        images = all_decoded(self.source, planned)
        if images is not None:
            return planned, images, ()
        used, images, corrupt = [], [], []
        for index in planned.tolist():
            index, image = self._decodable(index, corrupt)
            used.append(index)
            images.append(image)
        is_one_size = self.source.image_size is not None
        return torch.tensor(used), torch.stack(images) if is_one_size else images, tuple(corrupt)

    def _decodable(self, index: int, corrupt: list[Corrupt]) -> tuple[int, UInt8[Tensor, "C H W"]]:
        """Return the sample, or the next one that can be decoded: not a random one, so the same in every process."""
        num_samples = len(self.source)
        for distance in range(min(num_samples, _MAX_SUBSTITUTES + 1)):
            candidate = (index + distance) % num_samples
            image = decoded(self.source, candidate)
            if not isinstance(image, Corrupt):
                return candidate, image
            if distance == 0:  # a corrupt substitute is not counted here, but where it is planned itself
                corrupt.append(image)
        first = corrupt[-1]
        raise ValueError(
            f"none of {distance + 1} images in a row could be decoded; the first: {first.name}: {first.reason}"
        )


_MAX_SUBSTITUTES = 100  # a data set with more corrupt images in a row is refused


def _digest(indices: Int[Tensor, "G"], masks: Mapping[str, Masks]) -> bytes:
    digest = hashlib.blake2b(indices.int().numpy().tobytes(), digest_size=16)

    def add(tensor: Tensor) -> Tensor:
        digest.update(
            tensor.to(torch.uint8 if tensor.dtype == torch.bool else torch.int16).contiguous().numpy().tobytes()
        )
        return tensor

    for of_view in masks.values():
        of_view.map(add)
    return digest.digest()
