"""The data of a run is recorded without its place, and a change is named."""

import pytest
from PIL import Image

from ssl_zoo.data.sources import build_splits
from ssl_zoo.data.sources.imagefolder import ImageFolderConfig
from ssl_zoo.engine.checkpoint.state import Checkpoint, CheckpointError
from ssl_zoo.engine.data_record import compare_with_run, data_record, require_same_data, write_record

NAMES = [f"train/{kind}/{number}.png" for kind in "ab" for number in range(4)] + ["val/a/0.png", "val/b/0.png"]


def _images(folder, names=NAMES):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def _splits(folder):
    return build_splits(ImageFolderConfig(path=str(folder)))


def _checkpoint(run, splits):
    write_record(run, splits)
    manifest = {"data": data_record(splits)}
    return Checkpoint(run / "checkpoints" / "step_00000001", manifest, {}, None)


def test_data_may_move_and_become_a_folder_in_a_folder(tmp_path):
    checkpoint = _checkpoint(tmp_path / "run", _splits(_images(tmp_path / "images")))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").rename(tmp_path / "elsewhere" / "images")
    for path in (tmp_path / "elsewhere" / "images", tmp_path / "elsewhere"):
        require_same_data(checkpoint, _splits(path))


@pytest.mark.parametrize(
    ("added", "removed", "message"),
    [
        (["train/a/9.png"], [], r"8 train images then, 9 now; train images added: train/a/9\.png\."),
        ([], ["train/b/0.png"], r"8 train images then, 7 now; train images removed: train/b/0\.png\."),
        (
            ["train/a/zero.png"],
            ["train/a/0.png"],
            r"train images added: train/a/zero\.png; train images removed: train/a/0\.png",
        ),
        (["val/c/0.png"], [], r"2 classes then, 3 now; classes added: c"),
        ([f"train/a/new{n}.png" for n in range(9)], [], r"new0\.png, train/a/new1\.png, train/a/new2\.png, \.\.\."),
    ],
)
def test_other_images_or_classes_are_one_error_that_says_what_changed_and_what_to_do(tmp_path, added, removed, message):
    checkpoint = _checkpoint(tmp_path / "run", _splits(_images(tmp_path / "images")))
    _images(tmp_path / "images", added)
    for name in removed:
        (tmp_path / "images" / name).unlink()
    with pytest.raises(CheckpointError, match=message) as error:
        require_same_data(checkpoint, _splits(tmp_path / "images"))
    assert "--accept-changed-data" in str(error.value) and "output_dir" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_the_names_the_numbers_still_say_what_changed(tmp_path):
    checkpoint = _checkpoint(tmp_path / "run", _splits(_images(tmp_path / "images")))
    (tmp_path / "run" / "data.json").unlink()
    _images(tmp_path / "images", ["train/a/9.png"])
    with pytest.raises(CheckpointError, match="8 train images then, 9 now; other names of train images"):
        require_same_data(checkpoint, _splits(tmp_path / "images"))


def test_a_checkpoint_without_a_record_is_accepted_with_a_line(tmp_path, caplog):
    with caplog.at_level("INFO"):
        old = Checkpoint(tmp_path / "checkpoints" / "step_00000001", {}, {}, None)
        require_same_data(old, _splits(_images(tmp_path / "images")))
    assert "does not record its data" in caplog.text


def test_other_test_images_are_noticed_where_they_are_used(tmp_path):
    checkpoint = _checkpoint(tmp_path / "run", _splits(_images(tmp_path / "images")))
    _images(tmp_path / "images", ["val/a/1.png"])
    splits = _splits(tmp_path / "images")
    require_same_data(checkpoint, splits, is_evaluated=False)
    expected = "2 test images then, 3 now; test images added: val/a/1.png"
    assert compare_with_run(tmp_path / "run", splits) == expected
    with pytest.raises(CheckpointError, match=expected):
        require_same_data(checkpoint, splits)
