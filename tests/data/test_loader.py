"""Batches are a pure function of the step: ranks, workers and interruptions change nothing."""

import multiprocessing
import os
import pickle
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from no_host_sync import NoHostSync
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import get_worker_info

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.loader import AugmentOn, LoaderConfig, TrainingData
from ssl_zoo.data.sources.base import Source, SourceConfig, Split
from ssl_zoo.data.workers import LoaderError
from ssl_zoo.masks.multiblock import MultiblockConfig, MultiblockGenerator

NUM_SAMPLES = 21
VIEW = ViewConfig(crop_scale=[0.3, 1.0], horizontal_flip=0.5, grayscale=0.3)
VIEWS = [
    ViewSpec("global_0", (16, 16), VIEW),
    ViewSpec("global_1", (16, 16), VIEW),
    ViewSpec("local_0", (8, 8), VIEW, masked=False),
]


@dataclass
class NoiseConfig(SourceConfig):
    corrupt: str = ""  # comma-separated indices
    equal_sizes: bool = True


class Noise(Source):
    """Images of noise, some of which can't be decoded."""

    def __init__(self, config=None):
        super().__init__(config or NoiseConfig(), Split.train)
        self.image_size = (20, 20) if self.config.equal_sizes else None
        self.corrupt = {int(index) for index in self.config.corrupt.split(",") if index}

    def __len__(self):
        return NUM_SAMPLES

    def image(self, index):
        if index in self.corrupt:
            raise CorruptImage(self.sample_name(index), "broken")
        size = (20, 20) if self.config.equal_sizes else (20 + index % 3, 20)
        return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))

    def sample_name(self, index):
        return f"noise/{index}"

    @property
    def label_sets(self):
        return {"parity": torch.arange(NUM_SAMPLES) % 2}


class Deadly(Noise):
    def image(self, index):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(index)


class Frozen(Noise):
    def image(self, index):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().image(index)


def _data(source=None, *, rank=0, world_size=1, seed=0, **config):
    masks = MultiblockGenerator(MultiblockConfig(min_patches=4), (8, 8))
    return TrainingData(
        source or Noise(),
        VIEWS,
        {"global_0": masks, "global_1": masks},
        seed=seed,
        batch_size=8,
        rank=rank,
        world_size=world_size,
        config=LoaderConfig(**{"num_workers": 0, **config}),
    )


def _assert_equal(one, other):
    assert one.fingerprint == other.fingerprint and one.corrupt == other.corrupt
    assert torch.equal(one.index, other.index)
    assert list(one.views) == list(other.views) and list(one.masks) == list(other.masks)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize("equal_sizes", [True, False])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_give_the_same_batches_as_the_main_process(num_workers, equal_sizes):
    source = Noise(NoiseConfig(equal_sizes=equal_sizes, corrupt="" if equal_sizes else "4"))
    alone, helped = _data(source), _data(source, num_workers=num_workers)
    batches = list(helped.batches(2, 7))
    assert len(batches) == 5
    for step, batch in enumerate(batches, start=2):
        _assert_equal(batch, alone.batch(step))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_hold_the_batch_of_one_process(world_size):
    full = _data().batch(5)
    parts = [_data(rank=rank, world_size=world_size).batch(5) for rank in range(world_size)]
    assert torch.equal(full.index, torch.cat([part.index for part in parts]))
    for view, images in full.views.items():
        assert torch.equal(images, torch.cat([part.views[view] for part in parts]))
    for view in ("global_0", "global_1"):
        assert torch.equal(full.masks[view].context, torch.cat([part.masks[view].context for part in parts]))
        assert torch.equal(full.masks[view].targets, torch.cat([part.masks[view].targets for part in parts]))
    assert {part.fingerprint for part in parts} == {full.fingerprint}


def test_a_resumed_stream_continues_as_the_uninterrupted_one():
    full = list(_data().batches(0, 6))
    resumed = list(_data().batches(4, 6))
    for one, other in zip(full[4:], resumed, strict=True):
        _assert_equal(one, other)


def test_views_masks_and_steps_have_random_numbers_of_their_own():
    data = _data()
    first, second = data.batch(0), data.batch(1)
    assert not torch.equal(first.views["global_0"], first.views["global_1"])
    assert not torch.equal(first.masks["global_0"].context, first.masks["global_1"].context)
    assert not torch.equal(first.masks["global_0"].context, second.masks["global_0"].context)
    assert first.fingerprint != second.fingerprint


def test_the_seed_changes_order_views_and_masks():
    one, other = _data(seed=0).batch(0), _data(seed=1).batch(0)
    assert not torch.equal(one.index, other.index)
    assert not torch.equal(one.masks["global_0"].context, other.masks["global_0"].context)


def test_the_fingerprint_can_be_had_without_loading_images():
    data = _data()
    assert data.fingerprint(3) == data.batch(3).fingerprint


def test_the_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = list(_data(num_workers=1).batches(0, 2))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    _assert_equal(one[1], _data().batch(1))


def test_a_corrupt_sample_is_replaced_by_the_next_and_reported():
    data = _data(Noise(NoiseConfig(equal_sizes=False, corrupt="4,5")))
    batches = list(data.batches(0, 3))
    planned = torch.cat([data.indices(step) for step in range(3)])
    used = torch.cat([batch.index for batch in batches])
    assert torch.equal(used, torch.where((planned == 4) | (planned == 5), 6, planned))
    assert {sample.name for batch in batches for sample in batch.corrupt} == {"noise/4", "noise/5"}


def test_a_sample_in_a_row_of_corrupt_ones_counts_once():
    data = _data(Noise(NoiseConfig(equal_sizes=False, corrupt=",".join(map(str, range(5, 15))))))
    planned = torch.cat([data.indices(step) for step in range(3)])
    reported = [sample.name for step in range(3) for sample in data.batch(step).corrupt]
    assert reported == [f"noise/{index}" for index in planned.tolist() if 5 <= index < 15]


def test_only_corrupt_samples_are_one_clear_error_from_any_process():
    source = Noise(NoiseConfig(equal_sizes=False, corrupt=",".join(map(str, range(NUM_SAMPLES)))))
    for num_workers in (0, 1):
        with pytest.raises(
            ValueError, match=r"none of 21 images in a row could be decoded; the first: noise/\d+: broken"
        ):
            next(_data(source, num_workers=num_workers).batches(0, 1))


def test_a_killed_worker_is_an_error_and_not_a_hang():
    with pytest.raises(LoaderError, match="worker process died"):
        list(_data(Deadly(NoiseConfig(equal_sizes=False)), num_workers=1, timeout_s=60.0).batches(0, 3))


def test_a_worker_that_hangs_is_an_error_and_does_not_outlive_it():
    before = set(multiprocessing.active_children())
    with pytest.raises(LoaderError, match=r"within loader\.timeout_s=1\. "):
        list(_data(Frozen(NoiseConfig(equal_sizes=False)), num_workers=1, timeout_s=1.0).batches(0, 3))
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "--shm-size"),
        ("unable to open shared memory object </torch_1>: Too many open files (24)", "ulimit -n"),
    ],
)
def test_a_worker_without_shared_memory_or_open_files_is_an_error_with_the_remedy(cause, remedy, monkeypatch):
    def refuse(tensor):
        raise RuntimeError(cause)

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(LoaderError, match=f"can't pass on its batch .*{remedy}"):
        next(iter(_data(num_workers=1).batches(0, 2)))


def test_batches_arrive_normalised_on_the_device():
    data = _data()
    host = data.batch(0)
    batch = data.to_device(host, "cpu")
    assert [view.dtype for view in batch.views.values()] == [torch.float32] * 3
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.views[0].mean, data.views[0].std))
    expected = (host.views["global_0"].float() / 255 - mean) / std
    torch.testing.assert_close(batch.views["global_0"], expected)
    assert batch.fingerprint == host.fingerprint
    torch.testing.assert_close(batch.pixels("local_0"), host.views["local_0"].float() / 255)


class Stored(Noise):
    """Images that are in memory from the start."""

    @property
    def stored(self):
        return torch.stack([self.image(index) for index in range(len(self))])


COLOURFUL = ViewConfig(
    crop_scale=[0.3, 1.0], horizontal_flip=0.5, color_jitter=[0.4] * 4, grayscale=0.2, blur=0.5, solarize=0.3
)
SOURCES = [
    Noise(),
    Stored(),
    Noise(NoiseConfig(equal_sizes=False)),
    Noise(NoiseConfig(corrupt="3,4")),
    Noise(NoiseConfig(corrupt="3,4", equal_sizes=False)),
]


def _colourful(source, augment_on, **config):
    views = [replace(view, config=COLOURFUL) for view in VIEWS]
    views[1] = replace(views[1], same_as="global_0", size=(12, 12))
    loader = LoaderConfig(num_workers=0, augment_on=augment_on, **config)
    return TrainingData(source, views, {}, seed=0, batch_size=8, rank=1, world_size=2, config=loader)


@pytest.mark.parametrize("source", SOURCES)
def test_views_rendered_after_the_transfer_equal_those_of_the_host(source):
    on_host, on_device = (_colourful(source, where) for where in AugmentOn)
    for expected, left in zip(on_host.batches(0, 6), on_device.batches(0, 6), strict=True):
        assert (left.images is None) == (source.stored is not None or source.image_size is None)
        rendered, expected = on_device.to_device(left, "cpu"), on_host.to_device(expected, "cpu")
        assert all(torch.equal(rendered.views[name], view) for name, view in expected.views.items())
        assert torch.equal(rendered.index, expected.index) and rendered.corrupt == expected.corrupt
        again = on_device.to_device(left, "cpu")
        assert all(torch.equal(again.views[name], view) for name, view in expected.views.items())


def test_workers_leave_rendering_to_the_device():
    data = _colourful(Stored(), AugmentOn.device)
    [expected] = data.batches(2, 3)
    data.to_device(expected, "cpu")  # keeps all images on the device, which is no matter of workers
    data.config.num_workers = 1
    [batch] = data.batches(2, 3)
    assert all(torch.equal(*pair) for pair in zip(batch.tensors(), expected.tensors(), strict=True))


@pytest.mark.parametrize("source", SOURCES[:3])
def test_rendering_on_a_gpu_never_waits_for_it(source):
    data = _colourful(source, AugmentOn.device)
    batch = data.unrendered(0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = batch.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda:0"))
        data._rendered(fake)  # copies images that are in memory once
        with NoHostSync():
            views = data._rendered(fake)
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        spec.name: (4, 3, *spec.size) for spec in data.views
    }


def test_a_batch_is_cut_after_rendering():
    with pytest.raises(ValueError, match="to_device"):
        _colourful(Noise(), AugmentOn.device).unrendered(0).rows(slice(0, 2))


def test_a_view_can_repeat_the_crop_of_another_at_a_size_of_its_own():
    image = ViewSpec("image", (16, 16), VIEW)
    twin, other = ViewSpec("twin", (16, 16), VIEW, same_as="image"), ViewSpec("other", (16, 16), VIEW)
    small = ViewSpec("small", (8, 8), VIEW, same_as="image")
    batch = TrainingData(Noise(), [image, twin, other, small], {}, seed=0, batch_size=8).batch(3)
    assert torch.equal(batch.views["image"], batch.views["twin"])
    assert not torch.equal(batch.views["image"], batch.views["other"])
    halved = torch.nn.functional.avg_pool2d(batch.views["image"].float(), 2)
    same, another = ((view.float() - halved).abs().mean() for view in (batch.views["small"], halved.roll(1, 0)))
    assert same < 0.5 * another


def test_a_batch_that_ranks_cannot_share_names_the_key():
    with pytest.raises(ValueError, match=r"trainer.batch_size=8 .* 3 ranks"):
        _data(world_size=3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_goes_through_the_samples_in_order_and_leaves_out_corrupt_ones(num_workers):
    source = Noise(NoiseConfig(equal_sizes=False, corrupt="4"))
    indices = torch.tensor([2, 9, 4, 3, 20])
    data = EvaluationData(
        source, indices, size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, batch_size=2, num_workers=num_workers
    )
    images, labels, index = (torch.cat(parts) for parts in zip(*data, strict=True))
    assert index.tolist() == [2, 9, 3, 20] and labels.tolist() == [0, 1, 1, 0]
    assert images.shape == (4, 3, 16, 16) and images.abs().max() <= 1 + 1e-6
    assert [sample.name for sample in data.corrupt] == ["noise/4"]


def test_sources_travel_to_processes_that_do_not_share_memory():
    source = pickle.loads(pickle.dumps(Noise()))
    assert torch.equal(source.image(3), Noise().image(3))
    error = pickle.loads(pickle.dumps(CorruptImage("a", "b")))
    assert (error.name, error.reason) == ("a", "b")
