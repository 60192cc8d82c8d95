"""Every data source finds its files in the documented layouts and reports what is missing otherwise."""

import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy
import pytest
import torch
from PIL import Image

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.loader import TrainingData
from ssl_zoo.data.shapes import SHAPES
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.cifar10 import Cifar10Config
from ssl_zoo.data.sources.fashion_mnist import FashionMnistConfig
from ssl_zoo.data.sources.imagefolder import ImageFolderConfig
from ssl_zoo.data.sources.imagenet1k import ImageNet1kConfig
from ssl_zoo.data.sources.scenes import ScenesConfig
from ssl_zoo.data.sources.torchvision_dataset import TorchvisionConfig

PARTS = {"train": 5, "t10k": 3}


def _jpeg(shade, size=16):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade % 256, 10, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def _write(root, names):
    for shade, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(shade))
    return root


def _tar(path, folder, mode="w"):
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname=".")
    return path


def _folder(path, split=Split.train, **settings):
    return SOURCES.build(ImageFolderConfig(path=str(path), **settings), split)


def _contents(source):
    labels = source.labels.tolist() if source.labels is not None else None
    return (
        [source.sample_name(i).removeprefix("./") for i in range(len(source))],
        labels,
        torch.stack([source.image(i) for i in range(len(source))]),
    )


CLASSES = [f"{kind}/{number}.jpg" for kind in ("cat", "ant", "bee") for number in range(8)]


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_a_tar_gives_the_same_samples_as_its_folder(tmp_path, ending):
    folder = _write(tmp_path / "images", CLASSES)
    archive = _tar(tmp_path / f"images{ending}", folder, "w:gz" if ending.endswith("gz") else "w")
    for split in Split:
        from_folder, from_tar = _contents(_folder(folder, split)), _contents(_folder(archive, split))
        assert from_folder[:2] == from_tar[:2]
        assert torch.equal(from_folder[2], from_tar[2])


def test_classes_are_the_sorted_folders_and_hold_out_is_disjoint_and_complete(tmp_path):
    folder = _write(tmp_path, CLASSES)
    train, test = _folder(folder, test_fraction=0.3), _folder(folder, Split.test, test_fraction=0.3)
    assert train.classes == test.classes == ["ant", "bee", "cat"] and train.num_classes == 3
    names = _contents(train)[0], _contents(test)[0]
    assert sorted(names[0] + names[1]) == sorted(CLASSES) and not set(names[0]) & set(names[1])
    for source in (train, test):
        assert [source.classes[label] for label in source.labels] == [n.split("/")[0] for n in _contents(source)[0]]


def test_hold_out_of_a_flat_folder_keeps_its_members_when_images_are_added(tmp_path):
    names = [f"{number:03}.png.jpg" for number in range(200)]
    before = set(_contents(_folder(_write(tmp_path, names), Split.test))[0])
    _write(tmp_path, [f"new{number}.jpg" for number in range(50)])
    after = _folder(tmp_path, Split.test)
    assert before <= set(_contents(after)[0]) and 5 <= len(before) <= 40
    assert after.labels is None and after.num_classes == 0


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_split_folders_are_used_where_they_exist(tmp_path, test_folder):
    names = [f"train/a/{n}.jpg" for n in range(3)] + ["train/b/0.jpg", f"{test_folder}/b/9.jpg", "extra/c/1.jpg"]
    folder = _write(tmp_path, names)
    train, test = _folder(folder), _folder(folder, Split.test)
    assert _contents(train)[:2] == (sorted(n for n in names if n.startswith("train")), [0, 0, 0, 1])
    assert _contents(test)[:2] == ([f"{test_folder}/b/9.jpg"], [1])


def test_an_empty_folder_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} contains no image file"):
        _folder(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nowhere", "there is no folder or tar archive"),
        (lambda root: _write(root, ["a.jpg"]) / "a.jpg", "neither a folder nor"),
    ],
)
def test_a_wrong_path_is_one_clear_error(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        _folder(make(tmp_path))


def test_a_truncated_tar_is_one_clear_error(tmp_path):
    archive = _tar(tmp_path / "images.tar", _write(tmp_path / "images", CLASSES))
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"images\.tar"):
        _folder(archive)


def test_a_large_compressed_tar_says_to_gunzip_it(tmp_path):
    archive = _tar(tmp_path / "images.tar.gz", _write(tmp_path / "images", CLASSES), "w:gz")
    with pytest.raises(ValueError, match=r"max_unpacked_bytes=1000 .*gunzip"):
        _folder(archive, max_unpacked_bytes=1000)


def test_hostile_members_of_a_tar_write_nothing_and_links_are_not_followed(tmp_path):
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("../../outside.jpg", "/absolute.jpg", *CLASSES):
            member = tarfile.TarInfo(name)
            member.size = len(_jpeg(1))
            tar.addfile(member, io.BytesIO(_jpeg(1)))
        link = tarfile.TarInfo("cat/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    names = _contents(_folder(archive))[0] + _contents(_folder(archive, Split.test))[0]
    assert len(names) == len(CLASSES) + 2 and "cat/link.jpg" not in names
    assert os.listdir(tmp_path) == ["images.tar"]


def test_corrupt_files_are_replaced_and_reported_in_training(tmp_path):
    folder = _write(tmp_path, CLASSES)
    train = _folder(folder)
    broken = [train.sample_name(index) for index in (0, 5)]
    (folder / broken[0]).write_bytes(b"")
    (folder / broken[1]).write_bytes(_jpeg(1)[:-100])
    data = TrainingData(train, [ViewSpec("view", (16, 16), ViewConfig())], [None], seed=0, batch_size=len(train))
    batch = data.batch(0)
    assert {sample.name for sample in batch.corrupt} == set(broken)
    assert batch.index.sort().values.tolist() == sorted([1, 1, 6, 6, *set(range(len(train))) - {0, 1, 5, 6}])


def test_a_folder_of_three_pixel_images_is_one_clear_error(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(_jpeg(number, size=3))
    data = TrainingData(_folder(tmp_path), [ViewSpec("v", (8, 8), ViewConfig())], [None], seed=0, batch_size=4)
    with pytest.raises(ValueError, match=r"3x3 pixels are below data\.min_image_side=8"):
        data.batch(0)


def test_imagenet_reads_folders_tars_and_subset_lists(tmp_path):
    names = [f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in ("n02", "n01", "n03") for n in range(3)]
    root = _write(tmp_path, [*names, "val/n01/ILSVRC2012_val_00000001.JPEG"])
    (tmp_path / "list.txt").write_text("n03_1.JPEG\nn01_2.JPEG\n")
    train = SOURCES.build(ImageNet1kConfig(root=str(root)), Split.train)
    assert len(train) == 9 and train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(SOURCES.build(ImageNet1kConfig(root=str(root)), Split.test)) == 1
    part = SOURCES.build(ImageNet1kConfig(root=str(root), subset=str(tmp_path / "list.txt")), Split.train)
    assert [part.sample_name(i) for i in range(2)] == ["n01/n01_2.JPEG", "n03/n03_1.JPEG"]
    assert part.labels.tolist() == [0, 2] and part.num_classes == 3
    archived = tmp_path / "archived"
    archived.mkdir()
    _tar(archived / "train.tar", root / "train")
    assert SOURCES.build(ImageNet1kConfig(root=str(archived)), Split.train).labels.tolist() == train.labels.tolist()


def test_a_flat_imagenet_validation_folder_says_what_is_expected(tmp_path):
    root = _write(tmp_path, ["val/ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(ValueError, match=r"class folder; expected <wnid>/\*\.JPEG"):
        SOURCES.build(ImageNet1kConfig(root=str(root)), Split.test)


def test_fashion_mnist_reads_idx_files_as_three_equal_channels(tmp_path):
    pixels = numpy.arange(5 * 28 * 28, dtype=numpy.uint32).astype(numpy.uint8)
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 5, 28, 28) + pixels.tobytes())
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">II", 2049, 5) + bytes([3, 1, 4, 1, 5]))
    source = SOURCES.build(FashionMnistConfig(root=str(tmp_path)), Split.train)
    assert source.labels.tolist() == [3, 1, 4, 1, 5]
    expected = torch.from_numpy(pixels).view(5, 1, 28, 28).expand(-1, 3, -1, -1)
    assert torch.equal(source.images(torch.arange(5)), expected)
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte"):
        SOURCES.build(FashionMnistConfig(root=str(tmp_path)), Split.test)


def test_cifar10_binary_files_are_read_and_pickles_refused(tmp_path):
    records = numpy.random.default_rng(0).integers(0, 256, (4, 3073), dtype=numpy.uint8)
    records[:, 0] = [3, 0, 9, 1]
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(records.tobytes())
    source = SOURCES.build(Cifar10Config(root=str(tmp_path)), Split.test)
    assert source.labels.tolist() == [3, 0, 9, 1]
    assert torch.equal(source.image(2).flatten(), torch.from_numpy(records[2, 1:]))
    (tmp_path / "other" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(ValueError, match="unpickling executes code"):
        SOURCES.build(Cifar10Config(root=str(tmp_path / "other")), Split.test)


def test_cifar10_validation_images_are_train_images_outside_of_the_training_split(tmp_path):
    generator = numpy.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for part in ["test_batch", *(f"data_batch_{n}" for n in range(1, 6))]:
        records = generator.integers(0, 256, (4, 3073), dtype=numpy.uint8)
        records[:, 0] %= 10
        records.tofile(folder / f"{part}.bin")
    full = SOURCES.build(Cifar10Config(root=str(tmp_path)), Split.train)
    train, held_out = (
        SOURCES.build(Cifar10Config(root=str(tmp_path), validation=6), split) for split in (Split.train, Split.test)
    )
    assert (len(train), len(held_out)) == (14, 6)
    names = [source.sample_name(i) for source in (train, held_out) for i in range(len(source))]
    assert sorted(names) == sorted(full.sample_name(i) for i in range(20))
    by_name = {full.sample_name(i): full.image(i) for i in range(20)}
    assert all(torch.equal(held_out.image(i), by_name[held_out.sample_name(i)]) for i in range(6))
    with pytest.raises(ValueError, match="only 20 training images"):
        SOURCES.build(Cifar10Config(root=str(tmp_path), validation=20), Split.train)
    with pytest.raises(ValueError, match=r"data\.validation=-1 must be at least 0"):
        Cifar10Config(validation=-1)


def test_cifar10_without_data_names_the_ways_to_give_it(tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_ZOO_DATA", raising=False)
    with pytest.raises(ValueError, match=r"data\.root=FOLDER .* SSL_ZOO_DATA"):
        SOURCES.build(Cifar10Config(), Split.train)
    with pytest.raises(ValueError, match=r"no CIFAR-10 train split"):
        SOURCES.build(Cifar10Config(root=str(tmp_path)), Split.train)


@pytest.mark.skipif("SSL_ZOO_DATA" not in os.environ, reason="needs the folder SSL_ZOO_DATA with cifar10-test.tar.gz")
def test_cifar10_is_complete_in_the_data_folder():
    source = SOURCES.build(Cifar10Config(), Split.test)
    assert source.labels.bincount().tolist() == [1000] * 10
    assert source.images(torch.arange(10_000)).float().mean().item() == pytest.approx(121, abs=3)


def _scenes(split=Split.train, **settings):
    return SOURCES.build(ScenesConfig(**{"num_train": 300, "num_test": 50, **settings}), split)


def test_a_scene_is_a_function_of_seed_split_and_index_to_the_bit():
    source, indices = _scenes(), torch.randperm(300)[:70]
    together = source.images(indices)
    assert torch.equal(together, _scenes(num_train=300).images(indices))
    assert torch.equal(together[:20], torch.stack([source.image(int(index)) for index in indices[:20]]))
    assert torch.equal(source.image(7), _scenes(num_train=20).image(7))
    assert not torch.equal(source.image(0), _scenes(Split.test).image(0))
    assert not torch.equal(source.image(0), _scenes(seed=1).image(0))


def test_scene_labels_describe_the_scene():
    source = _scenes()
    scenes = source.scenes(torch.arange(300))
    labels = source.label_sets
    assert list(labels) == ["distance", "count", "shape"] and torch.equal(source.labels, labels["distance"])
    assert torch.equal(labels["count"] + 1, scenes.count) and scenes.count.unique().tolist() == list(range(1, 11))
    for row in range(300):
        count = int(scenes.count[row])
        votes = scenes.shape[row, :count].bincount(minlength=len(SHAPES))
        assert votes[labels["shape"][row]] == votes.max()
    nearest = torch.stack([scenes.ground[row, : scenes.count[row], 1].min() for row in range(300)])
    means = torch.stack([nearest[labels["distance"] == part].mean() for part in range(6)])
    assert (means.diff() > 0).all()


def test_every_counted_object_changes_the_image():
    from dataclasses import replace

    from ssl_zoo.data.raycast import render

    scenes = _scenes().scenes(torch.arange(100))
    several = scenes.count > 1
    full, fewer = render(scenes, 48), render(replace(scenes, count=torch.where(several, scenes.count - 1, 1)), 48)
    changed = (full != fewer).flatten(1).any(1)
    assert changed[several].float().mean() > 0.97  # a far object can hide behind a near one
    assert not changed[~several].any()


def test_images_do_not_depend_on_the_boxes_that_objects_are_rendered_in(monkeypatch):
    from ssl_zoo.data import raycast

    scenes = _scenes().scenes(torch.arange(60))
    expected = raycast.render(scenes, 48)
    monkeypatch.setattr(raycast, "_EXTENT", (2.5, 2.5, 2.5, 2.5))
    assert torch.equal(raycast.render(scenes, 48), expected)


@pytest.mark.parametrize("image_size", [16, 33, 64, 160])
def test_scenes_have_any_resolution_and_none_is_blank(image_size):
    images = _scenes(image_size=image_size).images(torch.arange(40)).float()
    assert images.shape == (40, 3, image_size, image_size)
    assert images.flatten(1).std(1).min() > 8


def test_too_small_scenes_name_the_key():
    with pytest.raises(ValueError, match=r"data\.image_size=3"):
        ScenesConfig(image_size=3)


def test_sources_can_be_sent_to_a_worker_process(tmp_path):
    folder = _folder(_tar(tmp_path / "images.tar", _write(tmp_path / "images", CLASSES)))
    for source in (folder, _scenes()):
        assert torch.equal(pickle.loads(pickle.dumps(source)).image(3), source.image(3))


def _write_idx(path, values):
    head = struct.pack(">I", 0x800 + values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(head + values.tobytes())


def test_torchvision_arrays_become_coloured_images_with_their_labels(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = numpy.random.default_rng(0)
    pixels = {part: generator.integers(0, 256, (count, 28, 28), dtype=numpy.uint8) for part, count in PARTS.items()}
    for part, values in pixels.items():
        _write_idx(raw / f"{part}-images-idx3-ubyte", values)
        _write_idx(raw / f"{part}-labels-idx1-ubyte", numpy.arange(len(values), dtype=numpy.uint8))
    for split, part in ((Split.train, "train"), (Split.test, "t10k")):
        source = SOURCES.build(TorchvisionConfig(name="MNIST", root=str(tmp_path)), split)
        assert len(source) == PARTS[part] and source.labels.tolist() == list(range(PARTS[part]))
        assert source.image(1).shape == (3, 28, 28)
        assert torch.equal(source.image(1)[2], torch.from_numpy(pixels[part][1]))


def test_a_torchvision_data_set_of_files_names_the_broken_one(tmp_path):
    folder = tmp_path / "dtd" / "dtd"
    _write(folder / "images", ["dotted/a.jpg", "woven/b.jpg"])
    (folder / "labels").mkdir()
    for part in ("train1", "test1"):
        (folder / "labels" / f"{part}.txt").write_text("dotted/a.jpg\nwoven/b.jpg\n")
    source = SOURCES.build(TorchvisionConfig(name="DTD", root=str(tmp_path)), Split.test)
    assert source.classes == ["dotted", "woven"] and source.labels.tolist() == [0, 1]
    (folder / "images" / "woven" / "b.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptImage, match="DTD/test/000001: damaged or truncated: UnidentifiedImageError"):
        source.image(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("STL11", "no torchvision data set that can be read here; did you mean STL10"),
        ("CIFAR10", "no torchvision data set that can be read here"),
        ("KMNIST", r"data\.name=KMNIST below data\.root=.*download=True.*data\.download=true"),
    ],
)
def test_data_that_torchvision_can_not_read_is_one_clear_error(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        SOURCES.build(TorchvisionConfig(name=name, root=str(tmp_path)), Split.train)
