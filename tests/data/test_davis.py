from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.base import build_splits
from ssl_zoo.data.sources.davis import DavisConfig
from ssl_zoo.data.sources.scenes import ScenesConfig


def davis(root: Path) -> Path:
    """A folder in the layout of DAVIS-2017 with videos of three frames; object 7 moves to the right."""
    for part, names in (("train", ["bear", "dog"]), ("val", ["cows"])):
        (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/2017/{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            for kind in ("JPEGImages", "Annotations"):
                (root / kind / "480p" / name).mkdir(parents=True)
            for frame in range(3):
                objects = numpy.zeros((10, 12), dtype=numpy.uint8)
                objects[2:5, frame : frame + 4] = 7
                annotation = Image.fromarray(objects).convert("P")
                annotation.putdata(objects.flatten().tolist())
                annotation.putpalette([255 - value for value in range(256)] * 3)
                annotation.save(root / f"Annotations/480p/{name}/{frame:05d}.png")
                Image.new("RGB", (12, 10), (80 * frame, 0, 0)).save(root / f"JPEGImages/480p/{name}/{frame:05d}.jpg")
    return root


def test_a_video_has_its_frames_and_objects_in_order(tmp_path):
    splits = build_splits(DavisConfig(root=str(davis(tmp_path))))
    assert (splits.train.num_videos, splits.test.num_videos, len(splits.train), len(splits.test)) == (2, 1, 6, 3)
    video = splits.test.video(0)
    assert video.name == "cows" and video.frames.shape == (3, 3, 10, 12) and video.objects.shape == (3, 10, 12)
    assert video.frames[:, 0].float().mean(dim=(1, 2)).tolist() == pytest.approx([0, 80, 160], abs=3)
    assert [int((objects == 7).nonzero()[0, 1]) for objects in video.objects] == [0, 1, 2]
    assert video.objects.unique().tolist() == [0, 7]
    assert splits.test.map_sets == {} and splits.test.label_sets == {}
    [grey] = {build_splits(DavisConfig(root=str(tmp_path)), 1).test.video(0).frames.shape}
    assert grey == (3, 1, 10, 12)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data=davis needs data\.root"):
        SOURCES.build(DavisConfig(), Split.train)
    with pytest.raises(ValueError, match=r"has no ImageSets/2017/train\.txt; expected the unpacked DAVIS-2017"):
        SOURCES.build(DavisConfig(root=str(tmp_path)), Split.train)
    root = davis(tmp_path / "davis")
    (root / "ImageSets/2017/val.txt").write_text("cows\ngoat\n")
    with pytest.raises(ValueError, match=r"1 videos of .*val\.txt have no frame, such as .*JPEGImages/480p/goat"):
        SOURCES.build(DavisConfig(root=str(root)), Split.test)
    (root / "ImageSets/2017/val.txt").unlink()
    splits = build_splits(DavisConfig(root=str(root)))
    assert splits.test is None and "val.txt" in splits.without_test


def test_videos_of_scenes_begin_with_the_image_and_move_all_objects():
    source = SOURCES.build(ScenesConfig(image_size=32, num_train=4, num_test=6), Split.test)
    video, again = source.video(3), source.video(3)
    assert torch.equal(video.frames[0], source.image(3)) and torch.equal(video.frames, again.frames)
    assert torch.equal(video.objects[0], source.geometry(torch.tensor([3])).instance[0])
    assert video.frames.shape == (16, 3, 32, 32) and source.num_videos == 6
    moved = [not torch.equal(*video.objects[[frame, frame + 1]]) for frame in range(15)]
    assert sum(moved) > 10 and not torch.equal(video.frames, source.video(4).frames)
