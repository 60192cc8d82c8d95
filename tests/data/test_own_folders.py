"""Folders as users have them: their classes, splits and stray files."""

import json

import pytest
from shard_archives import write_images

from ssl_zoo.data.shards.adopt import index_shards
from ssl_zoo.data.shards.inputs import AllImages
from ssl_zoo.data.shards.write import make_shards
from ssl_zoo.data.sources import SOURCES, MissingSplit, Split, build_splits
from ssl_zoo.data.sources.imagefolder import ImageFolderConfig, Labels
from ssl_zoo.data.sources.imagenet1k import ImageNet1kConfig
from ssl_zoo.data.sources.mixture import MixtureConfig, PartConfig
from ssl_zoo.data.sources.webdataset import WebDatasetConfig
from ssl_zoo.data.summary import classes_of_one_split, similar_classes, source_summary, summary
from ssl_zoo.testing.faults.archives import jpeg, write_tar


def _splits(root, names, **settings):
    write_images(root, names)
    return build_splits(ImageFolderConfig(path=str(root), **settings))


def _per_class(*classes, count=4, prefix=""):
    return [f"{prefix}{name}/{number}.jpg" for name in classes for number in range(count)]


def _labelled(source):
    return {source.names()[row]: source.classes[label] for row, label in enumerate(source.labels.tolist())}


@pytest.mark.parametrize("layout", ["imagenet1k", "imagefolder"])
def test_a_class_of_one_split_leaves_no_gap_in_the_numbers_of_the_other(tmp_path, layout):
    names = _per_class("n1", "n2", "n3", "n5", prefix="train/") + _per_class("n1", "n3", "n4", "n5", prefix="val/")
    write_images(tmp_path, [*names, "train/stray.jpg"])
    config = ImageNet1kConfig(root=str(tmp_path))
    splits = build_splits(config if layout == "imagenet1k" else ImageFolderConfig(path=str(tmp_path)))
    for source in (splits.train, splits.test):
        assert list(source.classes) == ["n1", "n2", "n3", "n4", "n5"] and source.num_classes == 5
        assert all(name.split("/")[-2] == label for name, label in _labelled(source).items())
    assert classes_of_one_split(splits) == (
        "1 of 5 classes have no test image (n2) and 1 of 5 classes have no train image (n4)"
    )
    assert "left out: 1 (1 image outside of the class folders" in summary(splits)
    alone = SOURCES.build(config, Split.test)
    assert alone.labels.unique().tolist() == [0, 2, 3, 4] and alone.num_classes == 5


def test_imagenet_pretrains_without_validation_images_or_with_unsorted_ones(tmp_path):
    write_images(tmp_path, _per_class("n1", "n2", prefix="train/"))
    config = ImageNet1kConfig(root=str(tmp_path))
    splits = build_splits(config)
    assert len(splits.train) == 8 and splits.test is None and "neither a folder val/" in splits.without_test
    write_images(tmp_path, ["val/ILSVRC2012_val_00000001.JPEG"])
    splits = build_splits(config)
    assert splits.train.num_classes == 2 and splits.test is None and "sort them into folders" in splits.without_test


@pytest.mark.parametrize(
    ("names", "classes", "left_out"),
    [
        ([*_per_class("a", "b"), "stray.jpg"], ["a", "b"], "1 image outside of the class folders: stray.jpg"),
        ([*_per_class("a", "b", prefix="photos/"), "photos/s.jpg"], ["a", "b"], "class folders: photos/s.jpg"),
        ([*_per_class("a", "b", prefix="photos/"), "s.jpg"], ["a", "b"], "class folders: s.jpg"),
        (_per_class("a", "b", count=2) + [f"{n}.jpg" for n in range(4)], [], ""),
        ([*_per_class("a"), "stray.jpg"], [], ""),
        (_per_class("a"), ["a"], ""),
        ([f"{n}.jpg" for n in range(4)], [], ""),
    ],
)
def test_stray_files_leave_the_labels_unless_they_are_as_many_as_the_others(tmp_path, names, classes, left_out):
    splits = _splits(tmp_path, names, test_fraction=0.3)
    sources = [source for source in (splits.train, splits.test) if source is not None]
    assert all(list(source.classes) == classes and source.num_classes == len(classes) for source in sources)
    assert sum(map(len, sources)) == len(names) - bool(left_out)
    assert left_out in summary(splits) and ("left out" in summary(splits)) == bool(left_out)


def test_without_labels_every_image_is_used(tmp_path):
    splits = _splits(tmp_path, [*_per_class("a", "b"), "stray.jpg"], labels=Labels.none)
    assert len(splits.train) + (len(splits.test) if splits.test else 0) == 9 and splits.train.labels is None


def test_images_beside_the_split_folders_are_counted(tmp_path):
    names = _per_class("a", prefix="train/") + _per_class("a", prefix="test/") + ["val/a/0.jpg", "extra/c/1.jpg"]
    splits = _splits(tmp_path, names)
    assert (len(splits.train), len(splits.test)) == (4, 4)
    assert "2 images outside of the split folders: extra/c/1.jpg, val/a/0.jpg" in summary(splits)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_handful_of_images_always_leaves_some_to_train_on(tmp_path, count):
    for seed in range(20):
        names = [f"{seed}_{number}.jpg" for number in range(count)]
        splits = _splits(tmp_path / str(seed), names, test_fraction=0.9)
        assert len(splits.train) + (0 if splits.test is None else len(splits.test)) == count
        if splits.test is None:
            assert "no image for the test split" in splits.without_test and "no test" in summary(splits)


def test_one_name_in_two_normal_forms_is_one_class(tmp_path):
    names = _per_class("caf\u00e9", "tea", prefix="train/") + _per_class("cafe\u0301", "tea", prefix="val/")
    splits = _splits(tmp_path, names)
    assert splits.train.num_classes == splits.test.num_classes == 2
    assert sorted(splits.test.labels.unique().tolist()) == [0, 1]


def test_an_empty_class_folder_is_no_class_and_classes_that_differ_only_in_case_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    splits = _splits(tmp_path, _per_class("Dog", "dog", "cat"))
    assert list(splits.train.classes) == ["Dog", "cat", "dog"]
    assert similar_classes(splits.train) == "classes that differ only in case: Dog, dog"


def test_the_summary_of_shards_names_what_did_not_get_into_them(tmp_path):
    folder = write_images(tmp_path / "images", _per_class("a", "b"))
    (folder / "a" / "0.jpg").write_bytes(b"")
    source = AllImages(str(folder))
    assert source_summary(source) == "8 images (8 JPEG) in 2 classes"
    make_shards(source, tmp_path / "shards", name="images", shard_bytes=10**6)
    splits = build_splits(WebDatasetConfig(path=str(tmp_path / "shards"), test_fraction=0.3))
    text = summary(splits)
    assert text.startswith("7 images (7 JPEG) in 2 classes") and text.count("a/0.jpg (the file is empty)") == 1


def test_shards_of_a_folder_without_a_decodable_image_are_one_clear_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; the first: 0\.jpg: the file is empty"):
        make_shards(AllImages(str(tmp_path / "images")), tmp_path / "shards", name="", shard_bytes=10**6)


def test_names_of_any_bytes_and_lengths_go_through_shards(tmp_path):
    deep = "/".join(["d" * 250] * 4)
    folder = write_images(tmp_path / "images", ["a/" + "n" * 251 + ".jpg", "a/caf\udce9.jpg", "a/line\nfeed.jpg"])
    write_images(folder, ["b/-x.jpg", "b/per%cent.jpg", "b/'q\".jpg", f"b/{deep}/1.jpg", f"b/{deep}/2.jpg"])
    make_shards(AllImages(str(folder)), tmp_path / "shards", name="images", shard_bytes=10**6)
    path = str(tmp_path / "shards")
    source = SOURCES.build(WebDatasetConfig(path=path, test_path=path), Split.train)
    names = [source.sample_name(row) for row in range(len(source))]
    assert len(set(names)) == 8 and all(name.isprintable() for name in names)
    assert [bytes(source.encoded(row)) for row in range(8)] == [AllImages(str(folder)).encoded(row) for row in range(8)]


def test_foreign_shards_with_dots_in_names_lose_no_image_silently(tmp_path):
    files = [
        ("cat.1.jpg", jpeg(1)), ("cat.1.cls", b"1"), ("cat.2.jpg", jpeg(2)), ("cat.2.cls", b"2"),
        ("dog.left.png", jpeg(3)), ("dog.right.jpg", jpeg(4)), ("dog.cls", b"3"),
        ("eel.jpg", jpeg(5)), ("eel.mask.png", jpeg(6)), ("eel.cls", b"4"),
        ("cat.3.jpg", jpeg(7)), ("cat.3.cls", b"5"),
        (".DS_Store", b"junk"), ("._cat.1.jpg", b"junk"),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", files)
    [shard] = index_shards([str(tmp_path / "a.tar")], tmp_path).shards
    source = SOURCES.build(WebDatasetConfig(path=str(tmp_path), test_path=str(tmp_path)), Split.train)
    labels = {source.sample_name(row): label for row, label in enumerate(source.labels.tolist())}
    assert labels == {
        "a.tar/cat.1.jpg": 1, "a.tar/cat.2.jpg": 2, "a.tar/cat.3.jpg": 5,
        "a.tar/dog.left.png": 3, "a.tar/dog.right.jpg": 3, "a.tar/eel.jpg": 4,
    }  # fmt: skip
    reasons = {sample.name: sample.reason for sample in shard.left_out}
    assert reasons == {
        "a.tar/eel.mask.png": "it is a further image of the sample eel",
        "a.tar/.DS_Store": "it is a hidden file",
        "a.tar/._cat.1.jpg": "it is a hidden file",
    }
    assert json.loads((tmp_path / "manifest.json").read_text())["samples"] == 6


def test_a_mixture_numbers_its_labels_alike_in_both_splits_though_a_part_has_no_test_image(tmp_path):
    write_images(tmp_path / "cats", _per_class("a", "b", prefix="train/") + _per_class("a", prefix="val/"))
    write_images(tmp_path / "one", ["only.jpg"])
    parts = [PartConfig("imagefolder", None, {"path": str(tmp_path / name)}) for name in ("one", "cats")]
    splits = build_splits(MixtureConfig(parts=parts))
    assert list(splits.train.classes) == list(splits.test.classes) == ["imagefolder", "imagefolder"]
    assert splits.train.labels.tolist() == [0] + [1] * 8 and splits.test.labels.tolist() == [1] * 4
    assert "9 train and 4 test images of 2 parts: [0] 1 image (1 JPEG) without labels" in summary(splits)
    with pytest.raises(MissingSplit, match="no part"):
        SOURCES.build(MixtureConfig(parts=parts[:1]), Split.test)
