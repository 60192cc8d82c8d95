"""``backbone.in_channels`` decides what every source, view and shard holds; what can't have that number is refused."""

import logging
import pickle
from pathlib import Path

import numpy
import pytest
import tifffile
import torch
from PIL import Image
from shard_archives import write_images

from ssl_zoo.config import compose
from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.loader import LoaderConfig, TrainingData
from ssl_zoo.data.shards.inputs import AllImages
from ssl_zoo.data.shards.write import make_shards
from ssl_zoo.data.sources import Split, build_source, build_splits
from ssl_zoo.data.sources.base import GreySource, grey
from ssl_zoo.data.sources.imagefolder import ImageFolder, ImageFolderConfig
from ssl_zoo.data.sources.mixture import MixtureConfig, PartConfig
from ssl_zoo.data.sources.scenes import RenderedScenes, ScenesConfig
from ssl_zoo.data.sources.webdataset import WebDatasetConfig
from ssl_zoo.data.statistics import measure
from ssl_zoo.data.summary import summary
from ssl_zoo.data.transforms import render_each, render_equal, sample_params
from ssl_zoo.engine.build import build_views
from ssl_zoo.nn import ViTConfig
from ssl_zoo.planning.plan import Plan
from ssl_zoo.views import check_channels
from ssl_zoo.views.multi_crop import MultiCropConfig
from ssl_zoo.views.single_crop import SingleCropConfig

SCENES = ScenesConfig(image_size=16, num_train=12, num_test=4)
DEMO = Path(__file__).parents[2] / "configs" / "mae" / "demo.yaml"


def folder(path: Path, kind: str, count: int = 6) -> ImageFolderConfig:
    """Write images of random blocks, of 5 bands, 12 bits, or RGB with alpha."""
    path.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(0)
    for number in range(count):
        blocks = numpy.kron(random.integers(0, 256, (5, 6, 5)), numpy.ones((8, 8, 1), int))
        if kind == "5 bands":
            pixels = blocks.astype("u1")
            tifffile.imwrite(path / f"{number}.tif", pixels, photometric="minisblack", planarconfig="contig")
        elif kind == "12 bits":
            Image.fromarray((blocks[..., 0] * 16).astype("u2")).save(path / f"{number}.png")
        elif kind == "alpha":
            Image.fromarray(blocks[..., :4].astype("u1")).save(path / f"{number}.png")
        else:
            Image.fromarray(blocks[..., :3].astype("u1")).save(path / f"{number}.png")
    return ImageFolderConfig(path=str(path), test_fraction=0.3)


def test_grey_images_of_an_rgb_source_are_its_luminance():
    rgb, one = (build_source(SCENES, Split.train, channels) for channels in (3, 1))
    index = torch.arange(5)
    pillow = [Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L") for image in rgb.images(index)]
    assert one.images(index).shape == (5, 1, 16, 16)
    assert torch.equal(one.images(index)[:, 0], torch.from_numpy(numpy.stack([numpy.array(p) for p in pillow])))
    assert torch.equal(one.image(3), grey(rgb.image(3)))


def test_a_plug_in_source_that_knows_rgb_alone_gives_grey_images_as_well(monkeypatch):
    monkeypatch.setattr(RenderedScenes, "channel_counts", (3,))
    source = build_source(SCENES, Split.train, 1)
    assert isinstance(source, GreySource) and source.channels == 1 and source.image_size == (16, 16)
    assert source.images(torch.arange(2)).shape == (2, 1, 16, 16) and list(source.label_sets) == list(
        build_source(SCENES, Split.train).label_sets
    )


def test_grey_images_keep_everything_else_of_their_source(tmp_path):
    write_images(tmp_path, [f"{label}/{number}.png" for label in "ab" for number in range(12)])
    rgb = build_source(ImageFolderConfig(path=str(tmp_path)), Split.train)
    one = pickle.loads(pickle.dumps(GreySource(rgb)))
    for name in ("listing", "classes", "num_classes", "image_size", "config", "split"):
        assert getattr(one, name) == getattr(rgb, name), name
    assert one.names() == rgb.names() and one.fingerprint() == rgb.fingerprint() and len(one) == len(rgb)
    assert one.labels.equal(rgb.labels) and one.epoch_order(0, 1).equal(rgb.epoch_order(0, 1))
    assert one.encoded(0) == rgb.encoded(0) and one.sample_name(0) == rgb.sample_name(0) and not one.take_notices()


@pytest.mark.parametrize("native", [True, False])
def test_both_splits_have_the_channels_of_the_run_and_the_classes_and_names_of_rgb(tmp_path, monkeypatch, native):
    if not native:
        monkeypatch.setattr(ImageFolder, "channel_counts", (3,))
    write_images(tmp_path, [f"{label}/{number}.png" for label in "ab" for number in range(12)])
    config = ImageFolderConfig(path=str(tmp_path))
    one, rgb = build_splits(config, 1), build_splits(config)
    for grey_split, rgb_split in ((one.train, rgb.train), (one.test, rgb.test)):
        assert grey_split.image(0).shape[0] == grey_split.channels == 1 and rgb_split.image(0).shape[0] == 3
        assert grey_split.names() == rgb_split.names() and grey_split.labels.equal(rgb_split.labels)
    assert summary(one) == summary(rgb)


def test_a_mixture_whose_part_has_no_test_image_is_grey_in_both_splits(tmp_path):
    write_images(tmp_path, ["only.jpg"])
    parts = [
        PartConfig("imagefolder", settings={"path": str(tmp_path)}),
        PartConfig("scenes", settings={"image_size": 16, "num_train": 4, "num_test": 2}),
    ]
    splits = build_splits(MixtureConfig(parts), 1)
    assert len(splits.train) == 5 and len(splits.test) == 2
    assert {splits.train.image(0).shape[0], splits.train.image(4).shape[0], splits.test.image(0).shape[0]} == {1}


def test_a_dry_run_accepts_a_tiff_of_other_channels_among_other_images_or_in_a_hidden_folder(tmp_path):
    bands = folder(tmp_path / "mixed", "5 bands", count=1)
    write_images(tmp_path / "mixed", ["a.jpg", "b.jpg"])
    folder(tmp_path / "grey" / ".cache", "5 bands", count=1)
    Image.new("L", (48, 40)).save(tmp_path / "grey" / "a.tif")
    for config in (bands, ImageFolderConfig(path=str(tmp_path / "grey"))):
        ImageFolder.check_channels(config, 3)


def test_shards_of_deep_tiffs_count_them_as_tiff(tmp_path):
    source = AllImages(folder(tmp_path / "bands", "5 bands").path, 5)
    make_shards(source, tmp_path / "out", name="bands", shard_bytes=10**6)
    path = str(tmp_path / "out")
    shards = build_splits(WebDatasetConfig(path=path, test_path=path), 5)
    assert shards.train.listing.images == {"TIFF": 6} == source.listing.images


def test_a_mixture_has_the_channels_of_its_parts(tmp_path):
    path = folder(tmp_path / "images", "RGB").path
    parts = [
        PartConfig("scenes", settings={"image_size": 40, "num_train": 4}),
        PartConfig("imagefolder", settings={"path": path}),
    ]
    mixture = build_source(MixtureConfig(parts), Split.train, 1)
    assert mixture.image(0).shape == (1, 40, 40) and mixture.image(5).shape == (1, 40, 48)
    with pytest.raises(ValueError, match=r"backbone\.in_channels=4: data=scenes has RGB images"):
        build_source(MixtureConfig(parts), Split.train, 4)


@pytest.mark.parametrize("channels", [2, 4])
def test_an_rgb_source_refuses_other_channels_in_a_dry_run_too(channels):
    config = compose(DEMO, [f"backbone.in_channels={channels}"]).config
    for attempt in (lambda: Plan.of(config), lambda: build_source(config.data, Split.train, channels)):
        with pytest.raises(ValueError, match=rf"backbone\.in_channels={channels}: data=scenes has RGB images"):
            attempt()


def test_files_of_other_channels_are_refused_before_the_start_with_the_key(tmp_path):
    rgb, bands = folder(tmp_path / "rgb", "RGB"), folder(tmp_path / "bands", "5 bands")
    for config, channels in ((rgb, 4), (bands, 3), (bands, 1), (bands, 4)):
        with pytest.raises(ValueError, match=rf"backbone\.in_channels={channels}.* set backbone\.in_channels"):
            build_source(config, Split.train, channels)
    for path, channels, found in ((rgb.path, 4, "an RGB image"), (bands.path, 3, "an image of 5 channels")):
        dry = compose(DEMO, ["data=imagefolder", f"data.path={path}", f"backbone.in_channels={channels}"]).config
        with pytest.raises(ValueError, match=rf"{found} can't .* backbone\.in_channels={channels}"):
            Plan.of(dry)


def test_a_single_file_of_other_channels_is_a_corrupt_sample_with_its_reason(tmp_path):
    config = folder(tmp_path / "bands", "5 bands", count=12)
    Image.new("RGB", (48, 40)).save(tmp_path / "bands" / "5.tif")
    source = build_source(config, Split.train, 5)
    spec = ViewSpec("view", (16, 16), ViewConfig(), channels=5)
    batch = TrainingData(source, [spec], {}, seed=0, batch_size=len(source)).batch(0)
    assert batch.views["view"].shape == (len(source), 5, 16, 16)
    assert [(sample.name, "an RGB image" in sample.reason) for sample in batch.corrupt] == [("5.tif", True)]


def test_evaluation_renders_every_number_of_channels(tmp_path):
    source = build_source(folder(tmp_path / "bands", "5 bands"), Split.train, 5)
    [(images, _, _)] = EvaluationData(source, size=(16, 16), mean=[0.5] * 5, std=[0.25] * 5)
    assert images.shape == (len(source), 5, 16, 16)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_guessed_range_is_logged_once_for_a_run(tmp_path, caplog, num_workers):
    config = folder(tmp_path / "deep", "12 bits", count=20)
    train, test = (build_source(config, split, 1) for split in Split)
    spec = ViewSpec("view", (16, 16), ViewConfig(), channels=1)
    loader = LoaderConfig(num_workers=num_workers)
    data = TrainingData(train, [spec], {}, seed=0, batch_size=4, config=loader)
    with caplog.at_level(logging.WARNING):
        assert len(list(data.batches(0, 6))) == 6
        list(EvaluationData(test, size=(16, 16), mean=[0.5], std=[0.5], num_workers=num_workers))
        list(data.batches(6, 9))
    [line] = [record.getMessage() for record in caplog.records if "intensity_range" in record.getMessage()]
    assert ".png" in line and "0..4095" in line


def test_a_declared_range_is_logged_nowhere_and_makes_files_comparable(tmp_path, caplog):
    config = folder(tmp_path / "deep", "12 bits")
    config.intensity_range = [0.0, 8160.0]
    source = build_source(config, Split.train, 1)
    TrainingData(source, [ViewSpec("v", (40, 48), ViewConfig(), channels=1)], {}, seed=0, batch_size=4).batch(0)
    assert not source.take_notices() and not caplog.records
    assert 100 < source.image(0).max() <= 128


@pytest.mark.parametrize(
    "setting", [{"intensity_range": [5.0, 5.0]}, {"intensity_range": [1.0]}, {"background": [0, 0]}]
)
def test_impossible_pixel_settings_name_their_key(setting):
    [key] = setting
    with pytest.raises(ValueError, match=rf"data\.{key}="):
        ImageFolderConfig(**setting)


# --- views ------------------------------------------------------------------------------------------------------------

COLOURS = {"color_jitter": [0.0, 0.0, 0.4, 0.1], "color_jitter_probability": 1.0, "grayscale": 1.0}


def test_statistics_follow_the_channels_where_none_are_given():
    for channels, mean in ((1, [0.459]), (3, [0.485, 0.456, 0.406]), (4, [0.5] * 4)):
        backbone = ViTConfig(image_size=16, patch_size=4, embed_dim=48, num_heads=4, depth=1, in_channels=channels)
        [spec] = build_views(SingleCropConfig(), backbone)
        assert (list(spec.mean), len(spec.std), spec.channels) == (mean, channels, channels)
    assert compose(DEMO, ["backbone.in_channels=1"]).plain()["views"]["mean"] == [0.459]
    assert compose(DEMO, []).plain()["views"]["std"] == [0.229, 0.224, 0.225]


def test_statistics_of_another_number_of_channels_are_refused_with_the_key():
    with pytest.raises(ValueError, match=r"views\.std=.* has 3 values, but backbone\.in_channels=1"):
        check_channels(SingleCropConfig(std=[0.2] * 3), 1)
    with pytest.raises(ValueError, match=r"views\.local_crop\.mean=.* has 1 values"):
        check_channels(MultiCropConfig(local_crop=ViewConfig(mean=[0.5])), 3)


def test_colours_of_many_channels_are_refused_with_every_key_to_set():
    with pytest.raises(ValueError, match=r"in_channels=4: .*views\.color_jitter=\[0\.0,0\.0,0,0\] views\.grayscale=0"):
        check_channels(SingleCropConfig(**COLOURS), 4)
    views = MultiCropConfig(
        global_crop=ViewConfig(grayscale=0.2), local_crop=ViewConfig(color_jitter=[0.4, 0.4, 0.2, 0.1])
    )
    with pytest.raises(
        ValueError, match=r"views\.global_crop\.grayscale=0 views\.local_crop\.color_jitter=\[0\.4,0\.4,0,0\]"
    ):
        check_channels(views, 4)
    check_channels(views, 1)


def test_colour_augmentations_leave_grey_images_as_they_are():
    images = torch.randint(0, 256, (6, 1, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = ViewSpec("view", (24, 24), ViewConfig(**COLOURS), channels=1)
    params = sample_params(spec.config, 6, torch.Generator().manual_seed(0))
    assert torch.equal(render_equal(images, params, spec), images)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_all_other_augmentations_change_each_channel_as_they_would_alone(channels):
    config = ViewConfig(crop_scale=[0.3, 1.0], horizontal_flip=0.5, color_jitter=[0.4, 0, 0, 0], blur=0.5, solarize=0.3)
    images = torch.randint(0, 256, (8, channels, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = ViewSpec("view", (24, 24), config, channels=channels)
    params = sample_params(config, 8, torch.Generator().manual_seed(1))
    for render in (render_equal, lambda images, *rest: render_each(list(images), *rest)):
        together = render(images, params, spec)
        alone = torch.cat([render(images[:, c : c + 1], params, spec) for c in range(channels)], dim=1)
        assert (together.int() - alone.int()).abs().max() <= 1


def test_contrast_keeps_the_mean_of_images_of_any_channels():
    images = torch.full((1, 5, 8, 8), 100, dtype=torch.uint8)
    images[..., :4] = 140
    spec = ViewSpec("v", (8, 8), ViewConfig(color_jitter=[0, 0.9, 0, 0], color_jitter_probability=1.0), channels=5)
    view = render_equal(images, sample_params(spec.config, 1, torch.Generator().manual_seed(3)), spec)
    assert view.float().mean().item() == pytest.approx(120, abs=1) and view.float().std() != images.float().std()


# --- shards and statistics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "channels"), [("5 bands", 5), ("12 bits", 1), ("alpha", 3), ("alpha", 1)])
@pytest.mark.parametrize("resize_short", [None, 20])
def test_shards_give_the_images_of_the_files(tmp_path, kind, channels, resize_short):
    config = folder(tmp_path / "images", kind)
    files = AllImages(config.path, channels)
    make_shards(files, tmp_path / "shards", name="", shard_bytes=10**6, resize_short=resize_short)
    written = WebDatasetConfig(path=str(tmp_path / "shards"), test_path=str(tmp_path / "shards"))
    shards = build_source(written, Split.train, channels)
    assert len(shards) == len(files)
    for index in range(len(files)):
        stored, original = shards.image(index).float(), files.image(index).float()
        if resize_short is None:
            assert torch.equal(stored, original)
        else:
            assert stored.shape == (channels, 20, 24)
            halved = torch.nn.functional.avg_pool2d(original, 2)
            assert (stored - halved).abs().mean() < 8


def test_statistics_are_those_of_all_pixels_and_of_the_stored_values(tmp_path):
    source = AllImages(folder(tmp_path / "deep", "12 bits").path, 1)
    found = measure(source, 100)
    pixels = torch.stack([source.image(index) for index in range(len(source))]).double() / 255
    assert found.mean == pytest.approx([pixels.mean().item()], abs=1e-3)
    assert found.std == pytest.approx([pixels.std().item()], abs=1e-3)
    stored = [numpy.array(Image.open(tmp_path / "deep" / f"{number}.png")) for number in range(6)]
    assert (found.low, found.high) == (min(map(numpy.min, stored)), max(map(numpy.max, stored)))
    assert found.types == ["uint16"] and found.num_images == 6
