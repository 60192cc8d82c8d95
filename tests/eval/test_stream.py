"""Streams of augmented train images, and the augmentations of evaluators."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_probes import Stripes, encoder, probe

from ssl_zoo.data import order
from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.data.loader import AugmentOn, LoaderConfig
from ssl_zoo.data.sources.base import SourceConfig, Split
from ssl_zoo.eval import stream as stream_module
from ssl_zoo.eval.augment import RandAugment, random_erase
from ssl_zoo.eval.drop_path import SharedDropPath, set_drop_path
from ssl_zoo.eval.features import Pooling
from ssl_zoo.eval.finetune import FinetuneConfig
from ssl_zoo.eval.heads import FeatureKind, FrozenEncoder
from ssl_zoo.eval.mix import Mix
from ssl_zoo.eval.stream import Augmentation, Subset, TrainStream, rows_in_pairs

CPU = torch.device("cpu")
STRONG = ViewConfig(crop_scale=[0.3, 1.0], horizontal_flip=0.5)


def stream(batch_size: int = 10, view: ViewConfig | None = None, samples: int = 0, **settings) -> TrainStream:
    model = probe(train_samples=samples).evaluated_model(encoder())
    augmentation = Augmentation(view or ViewConfig(), **settings)
    return TrainStream(model.train, model.encoder_input, augmentation, seed=3, batch_size=batch_size)


@pytest.mark.parametrize("samples", [0, 80])
def test_without_augmentation_images_are_those_that_evaluations_see_in_the_engines_order(samples):
    streamed = stream(samples=samples)
    split = probe(train_samples=samples).evaluated_model(encoder()).train
    [part] = streamed.parts(2, 3, CPU)
    rows = order.indices(3, 2, 10, split.num_images)
    if not samples:
        rows = split.source.epoch_order(3, 0)[20:30]
    images, labels, _ = next(iter(split.take(rows)))
    assert torch.equal(part.images, images) and torch.equal(part.labels, labels)


def test_a_step_may_be_larger_than_what_is_loaded_at_once(monkeypatch):
    [whole] = stream(view=STRONG).parts(4, 5, CPU)
    monkeypatch.setattr(stream_module, "_IMAGES_AT_ONCE", 6)
    divided = stream(view=STRONG)
    parts = list(divided.parts(4, 5, CPU))
    assert divided.parts_per_step == 2 and [part.rows for part in parts] == [range(5), range(5, 10)]
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_steps_are_functions_of_the_seed_and_their_number():
    settings = {"view": STRONG, "rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.5}
    first = list(stream(**settings).parts(0, 3, CPU))
    later = list(stream(**settings).parts(2, 3, CPU))
    assert torch.equal(first[2].images, later[0].images)
    assert not torch.equal(first[1].images, first[2].images)


def test_a_run_that_augments_on_the_device_streams_the_same_images_to_its_probes():
    model = probe(train_samples=80).evaluated_model(encoder())
    augmentation = Augmentation(STRONG, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.5)
    loaders = [LoaderConfig(num_workers=0, augment_on=where) for where in AugmentOn]
    inputs = [replace(model.encoder_input, loader=loader) for loader in loaders]
    host, device = (TrainStream(model.train, given, augmentation, seed=3, batch_size=10) for given in inputs)
    parts = [next(iter(streamed.parts(2, 3, CPU))) for streamed in (host, device)]
    assert torch.equal(parts[0].images, parts[1].images)


@pytest.mark.parametrize("num_rows", [8, 9, 26])
def test_ranks_take_all_rows_in_whole_pairs(num_rows):
    for world_size in range(1, 5):
        slices = [rows_in_pairs(num_rows, rank, world_size) for rank in range(world_size)]
        assert [row for rows in slices for row in range(rows.start, rows.stop)] == list(range(num_rows))
        assert all(rows.start % 2 == 0 for rows in slices)


def test_a_rank_without_images_has_an_empty_share(monkeypatch):
    assert [len(range(10)[rows_in_pairs(3, rank, 4)]) for rank in range(4)] == [0, 0, 0, 3]
    monkeypatch.setattr(stream_module, "rank_and_size", lambda: (0, 4))
    model = probe().evaluated_model(encoder())
    streamed = TrainStream(
        model.train, model.encoder_input, Augmentation(STRONG, "rand-m9", erasing=0.5), seed=0, batch_size=3
    )
    frozen = FrozenEncoder(model, [FeatureKind(Pooling.average, 1)], final_norm=True)
    [([features], labels)] = frozen.steps(streamed, 0, 1)
    assert features.shape == (0, 48) and labels.shape == (0,)


def test_a_subset_has_the_images_and_names_of_its_samples():
    source = Stripes(SourceConfig(), Split.train)
    subset = Subset(source, torch.tensor([7, 3, 50]))
    assert len(subset) == 3 and subset.sample_name(1) == "stripes/3"
    assert torch.equal(subset.images(torch.tensor([2, 0])), source.images(torch.tensor([50, 7])))


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_is_a_function_of_the_key_and_leaves_global_generators_alone(channels):
    images = torch.randint(256, (6, channels, 16, 16), dtype=torch.uint8)
    augment = RandAugment("rand-m9-mstd0.5-inc1", (16, 16), [0.5] * channels)
    states = random.getstate(), np.random.get_state()[1].copy()
    keys = [(0, "image", row) for row in range(6)]
    augmented = augment(images, keys)
    assert augmented.shape == images.shape and augmented.dtype == torch.uint8 and not torch.equal(augmented, images)
    assert torch.equal(augmented[4:], augment(images[4:], keys[4:]))
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()


def test_random_erasing_fills_boxes_with_normal_noise_and_does_not_depend_on_the_rank():
    images = torch.full((400, 3, 32, 32), 9.0)
    erased = random_erase(images, 0.25, torch.Generator().manual_seed(0), slice(0, 400), 400)
    changed = (erased != 9).any(dim=1)
    chosen = changed.flatten(1).any(dim=1)
    assert 0.2 < chosen.float().mean() < 0.3
    area = changed[chosen].float().mean(dim=(1, 2))
    assert area.min() > 0.015 and area.max() < 0.4
    box = changed[chosen][0]
    assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None])
    noise = erased[erased != 9]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    of_rank = random_erase(images[100:200], 0.25, torch.Generator().manual_seed(0), slice(100, 200), 400)
    assert torch.equal(of_rank, erased[100:200])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_neighbours_are_mixed_with_complementary_shares_on_any_rank(mixup, cutmix):
    images = torch.arange(8.0)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    mix = Mix(mixup, cutmix, num_classes=4, seed=0)
    for step in range(6):
        mixed, targets = mix(images, labels, step)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        share = targets[0, 0]
        assert torch.allclose(mixed[0].mean(), 1 - share, atol=1e-5)  # of image 1, whose pixels are 1
        assert torch.allclose(mixed[0] + mixed[1], torch.ones(3, 8, 8))
        of_rank, _ = mix(images[4:], labels[4:], step)
        assert torch.equal(of_rank, mixed[4:])


def test_the_last_image_of_an_odd_number_stays_as_it_is():
    images, labels = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1])
    mixed, targets = Mix(1.0, 0.0, 2, seed=0)(images, labels, 0)
    assert torch.allclose(mixed[2], images[2]) and targets[2].tolist() == [0.0, 1.0]


def test_dropped_branches_are_scaled_and_chosen_for_the_whole_batch():
    net = encoder()
    decisions = set_drop_path(net, 0.5)
    kept = decisions.sample(seed=0, step=1, batch_size=6)
    assert torch.equal(kept, decisions.sample(0, 1, 6)) and not torch.equal(kept, decisions.sample(0, 2, 6))
    decisions.use(kept[:, 2:4])
    drop = SharedDropPath(decisions, branch=1)
    expected = torch.where(kept[1, 2:4], 2.0, 0.0)[:, None].expand(2, 5)
    assert torch.equal(drop(torch.ones(2, 5)), expected)
    assert torch.equal(drop.eval()(torch.ones(2, 5)), torch.ones(2, 5))


@pytest.mark.parametrize("policy", ["augmix-m3", "rand-m", "rand-m9-unknown"])
def test_a_policy_that_timm_would_not_understand_is_refused(policy):
    with pytest.raises(ValueError, match=rf"probe\.finetune\.rand_augment={policy} is no policy of RandAugment"):
        FinetuneConfig(rand_augment=policy)
