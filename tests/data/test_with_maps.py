from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.maps import IGNORED
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.base import build_splits
from ssl_zoo.data.sources.with_maps import Ade20kConfig, NyuDepthConfig


def ade20k(root: Path, annotation: numpy.ndarray) -> Path:
    """A folder in the layout of ADEChallengeData2016 with two images in each split."""
    for part, word in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"ADE_{word}_{number:08d}"
            for kind in ("images", "annotations"):
                (root / kind / part).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), (number, 0, 0)).save(root / "images" / part / f"{name}.jpg")
            Image.fromarray(annotation).save(root / "annotations" / part / f"{name}.png")
    return root


def annotation() -> numpy.ndarray:
    numbers = numpy.zeros((10, 12), dtype=numpy.uint8)
    numbers[0, :4] = [1, 150, 151, 255]
    return numbers


def test_classes_of_ade20k_count_from_0_and_everything_else_is_ignored(tmp_path):
    splits = build_splits(Ade20kConfig(root=str(ade20k(tmp_path, annotation()))))
    image, classes = splits.test.image_and_map(1, "segmentation")
    assert splits.test.sample_name(1) == "ADE_val_00000002.jpg" and image.shape == (3, 10, 12)
    assert classes.dtype == torch.uint8 and classes[0, :4].tolist() == [0, 149, IGNORED, IGNORED]
    assert (classes[1:] == IGNORED).all() and splits.train.map_sets["segmentation"].num_classes == 150


def test_a_palette_does_not_change_the_classes(tmp_path):
    root = ade20k(tmp_path, annotation())
    image = Image.fromarray(annotation()).convert("P")
    image.putdata(annotation().flatten().tolist())
    image.putpalette([255 - value for value in range(256)] * 3)
    image.save(root / "annotations/training/ADE_train_00000001.png")
    source = SOURCES.build(Ade20kConfig(root=str(root)), Split.train)
    assert source.image_and_map(0, "segmentation")[1][0, :2].tolist() == [0, 149]


def nyu_depth(root: Path, names: list[tuple[str, str]], depths: numpy.ndarray) -> Path:
    """Folders train and test with images and 16-bit depths at these paths."""
    for part in ("train", "test"):
        for image, depth in names:
            for name in (image, depth):
                (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", depths.shape[::-1], (100, 0, 0)).save(root / part / image)
            Image.fromarray(depths).save(root / part / depth)
    return root


DEPTHS = numpy.full((10, 12), 2500, dtype=numpy.uint16)
DEPTHS[0, :3] = [0, 9999, 10001]
LAYOUTS = {
    "folders": [("rgb/a.png", "depth/a.png"), ("rgb/b.jpg", "depth/b.png")],
    "folders of scenes": [("kitchen/rgb/0.png", "kitchen/depth/0.png"), ("office/rgb/0.png", "office/depth/0.png")],
    "pairs": [("kitchen/rgb_00045.jpg", "kitchen/sync_depth_00045.png"), ("rgb_1.jpg", "depth_1.png")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_depths_of_nyu_are_metres_and_unknown_ones_0(tmp_path, layout):
    root = nyu_depth(tmp_path, LAYOUTS[layout], DEPTHS)
    source = SOURCES.build(NyuDepthConfig(root=str(root)), Split.test)
    assert len(source) == 2 and source.map_sets["depth"].max_depth == 10
    for index in range(2):
        image, depth = source.image_and_map(index, "depth")
        assert image.shape == (3, 10, 12) and image[0].float().mean() == pytest.approx(100, abs=3)
        assert depth[0, :3].tolist() == pytest.approx([0, 9.999, 0]) and (depth[1:] == 2.5).all()
    centimetres = SOURCES.build(NyuDepthConfig(root=str(root), depth_scale=10_000), Split.test)
    assert centimetres.image_and_map(0, "depth")[1][1, 1] == 0.25


def test_an_image_without_map_is_refused_with_the_name_of_the_map(tmp_path):
    root = ade20k(tmp_path / "ade", annotation())
    (root / "annotations/training/ADE_train_00000002.png").unlink()
    with pytest.raises(ValueError, match=r"1 images have no map, such as ADE_train_0+2\.jpg.*no ADE_train_0+2\.png"):
        SOURCES.build(Ade20kConfig(root=str(root)), Split.train)
    root = nyu_depth(tmp_path / "nyu", LAYOUTS["pairs"], DEPTHS)
    (root / "train/depth_1.png").unlink()
    with pytest.raises(ValueError, match=r"such as rgb_1\.jpg.* no sync_depth_1\.png or depth_1\.png"):
        SOURCES.build(NyuDepthConfig(root=str(root)), Split.train)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image", "damaged or truncated"),
        (Image.new("L", (10, 12)), "the map has 10x12 pixels, its image 12x10"),
        (Image.new("RGB", (12, 10)), "one number per pixel, not 3"),
    ],
)
def test_a_map_that_cannot_be_used_is_a_corrupt_sample(tmp_path, content, reason):
    root = ade20k(tmp_path, annotation())
    file = root / "annotations/training/ADE_train_00000001.png"
    content.save(file) if isinstance(content, Image.Image) else file.write_bytes(content)
    source = SOURCES.build(Ade20kConfig(root=str(root)), Split.train)
    with pytest.raises(CorruptImage, match=reason):
        source.image_and_map(0, "segmentation")
    assert source.image_and_map(1, "segmentation")[1].shape == (10, 12)


def test_missing_folders_are_reported(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "a.png")
    with pytest.raises(ValueError, match=r"needs data\.root"):
        SOURCES.build(Ade20kConfig(), Split.train)
    with pytest.raises(ValueError, match="no images/training; expected the unpacked ADEChallengeData2016"):
        SOURCES.build(Ade20kConfig(root=str(tmp_path)), Split.train)
    with pytest.raises(ValueError, match=r"needs data\.root"):
        SOURCES.build(NyuDepthConfig(), Split.train)
    with pytest.raises(ValueError, match="no image in a folder rgb and none whose name starts with rgb_"):
        SOURCES.build(NyuDepthConfig(root=str(tmp_path)), Split.train)
    with pytest.raises(ValueError, match="has no folder test"):
        SOURCES.build(NyuDepthConfig(root=str(tmp_path)), Split.test)
