"""Mixtures keep the samples, names and orders of their sources."""

import pytest
import torch

from ssl_zoo.config import ConfigError, compose_section
from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.loader import LoaderConfig, TrainingData
from ssl_zoo.data.shards.adopt import index_shards
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.mixture import MixtureConfig, PartConfig
from ssl_zoo.testing.faults.archives import jpeg, write_tar

VIEWS = [ViewSpec("view", (16, 16), ViewConfig())]


def _part(num_train, weight=None, **settings):
    return PartConfig("scenes", weight, {"image_size": 16, "num_train": num_train, "num_test": 5, **settings})


def _mixture(*parts, split=Split.train):
    return SOURCES.build(MixtureConfig(list(parts)), split)


def _epochs(source, count, seed=0):
    data = TrainingData(source, VIEWS, {}, seed=seed, batch_size=len(source))
    return [data.indices(step) for step in range(count)]


def test_without_weights_an_epoch_has_every_sample_once():
    mixture = _mixture(_part(20), _part(11, seed=1))
    for epoch in _epochs(mixture, 3):
        assert epoch.sort().values.tolist() == list(range(31))
    assert not torch.equal(*_epochs(mixture, 2))


def test_ids_number_the_parts_one_after_the_other():
    mixture, (one, two) = _mixture(_part(20), _part(11, seed=1)), (_mixture(_part(20)), _mixture(_part(11, seed=1)))
    assert torch.equal(mixture.image(7), one.image(7)) and torch.equal(mixture.image(22), two.image(2))
    index = torch.tensor([30, 0, 19, 20])
    assert torch.equal(mixture.images(index), torch.stack([mixture.image(int(number)) for number in index]))
    assert mixture.sample_name(22) == two.sample_name(2)
    assert mixture.label_sets["source"].tolist() == [0] * 20 + [1] * 11


def test_weights_divide_every_epoch_and_each_part_repeats_only_after_its_own_epoch():
    mixture = _mixture(_part(20, weight=1.0), _part(10, weight=2.0, seed=1))
    epochs = _epochs(mixture, 4)
    assert [int((epoch < 20).sum()) for epoch in epochs] == [10] * 4
    stream = torch.cat(epochs)
    first, second = stream[stream < 20], stream[stream >= 20]
    for part, size in ((first, 20), (second, 10)):
        for own_epoch in part.view(-1, size):
            assert own_epoch.unique().numel() == size


@pytest.mark.parametrize("weights", [(None, None), (3.0, 1.0)])
def test_ranks_and_workers_change_nothing(weights):
    mixture = _mixture(_part(20, weights[0]), _part(11, weights[1], seed=1))

    def batches(rank, world_size, num_workers):
        data = TrainingData(
            mixture, VIEWS, {}, seed=3, batch_size=8, rank=rank, world_size=world_size,
            config=LoaderConfig(num_workers=num_workers),
        )  # fmt: skip
        return list(data.batches(2, 7))

    alone, ranks = batches(0, 1, 0), [batches(0, 2, 2), batches(1, 2, 0)]
    for step, batch in enumerate(alone):
        assert torch.equal(batch.index, torch.cat([rank[step].index for rank in ranks]))
        assert torch.equal(batch.views["view"], torch.cat([rank[step].views["view"] for rank in ranks]))


def test_shards_within_a_mixture_keep_their_order_and_the_names_of_their_broken_samples(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", [(f"{n}.jpg", jpeg(n) if n else b"") for n in range(20)])
    index_shards([str(tmp_path / "{0..2}.tar")], tmp_path)
    settings = {"path": str(tmp_path), "test_path": str(tmp_path), "shuffle": "shards", "shuffle_window": 1}
    mixture = _mixture(_part(15), PartConfig("webdataset", None, settings))
    assert mixture.image_size is None
    [epoch] = _epochs(mixture, 1)
    shards = (epoch[epoch >= 15] - 15) // 20
    assert (shards.diff() != 0).sum() == 2
    batch = TrainingData(mixture, VIEWS, {}, seed=0, batch_size=75).batch(0)
    assert {sample.name for sample in batch.corrupt} == {f"{shard}.tar/0.jpg" for shard in range(3)}


def test_labels_are_joined_where_the_classes_have_the_same_names(tmp_path):
    from shard_archives import write_images

    from ssl_zoo.data.shards.inputs import AllImages
    from ssl_zoo.data.shards.write import make_shards

    parts = []
    for name in ("a", "b"):
        folder = write_images(tmp_path / name, [f"{kind}/{n}.jpg" for kind in ("cat", "dog") for n in range(3)])
        make_shards(AllImages(str(folder)), tmp_path / f"{name}_shards", name=name, shard_bytes=10**6)
        path = str(tmp_path / f"{name}_shards")
        parts.append(PartConfig("webdataset", None, {"path": path, "test_path": path}))
    mixture = _mixture(*parts)
    assert mixture.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2 and mixture.classes == ("cat", "dog")
    assert list(_mixture(parts[0], _part(5)).label_sets) == ["source"]


def test_a_mixture_is_configured_from_the_command_line():
    config = compose_section(
        "data",
        ["data=mixture", "data.parts=[{source:scenes,weight:2,settings:{num_train:7}},{source:cifar10,weight:1}]"],
    )
    assert config.parts[0].config().num_train == 7 and config.parts[1].weight == 1.0
    assert SOURCES.get("mixture").expected_size(config) == 50_007


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("[{source:scenes,settings:{num_trian:7}}]", r"scenes has no key num_trian; did you mean num_train\?"),
        ("[{source:scenes,settings:{num_train:many}}]", r"scenes: num_train=many: .*Integer"),
        ("[{source:scenes,settings:{num_train:0}}]", r"data\.num_train=0"),
        ("[{source:scense}]", r"Did you mean 'scenes'\?"),
        ("[{source:scenes,weight:1},{source:scenes}]", "give every part a weight above 0, or none"),
        ("[{source:scenes,weight:-1}]", "give every part a weight above 0, or none"),
        ("[{source:scenes,wieght:1}]", r"data\.parts"),
    ],
)
def test_mistakes_in_a_part_are_reported_with_their_key(parts, message):
    with pytest.raises((ConfigError, LookupError), match=message):
        compose_section("data", ["data=mixture", f"data.parts={parts}"])


def test_a_mixture_needs_parts_and_each_part_a_sample():
    with pytest.raises(ValueError, match=r"data=mixture needs data\.parts"):
        _mixture()
    with pytest.raises(ValueError, match="a part has none of the 31 samples"):
        _mixture(_part(20, weight=1000.0), _part(11, weight=1.0))
