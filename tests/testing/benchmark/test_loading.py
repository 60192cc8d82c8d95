"""Loading beside torchvision, on a few files."""

from pathlib import Path

import numpy
import pytest
from PIL import Image

from ssl_zoo.config import compose
from ssl_zoo.testing.benchmark.loading import compare_loading
from ssl_zoo.tools.benchmark import main

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "configs" / "ijepa" / "vitb16.yaml")


@pytest.fixture
def photographs(tmp_path) -> Path:
    generator = numpy.random.default_rng(0)
    for number in range(40):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=numpy.uint8)
        Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.jpg")
    return tmp_path


def test_both_ways_load_the_same_pixels(photographs):
    config = compose(RECIPE, ["data=imagefolder", f"data.path={photographs}", "data.test_fraction=0.01"]).config
    result = compare_loading(config, num_images=40, rounds=2)
    assert result.num_images == 32
    assert result.difference.largest <= 1 and result.difference.mean < 0.1
    assert min(result.own.decode, result.own.augment, result.torchvision.decode, result.torchvision.augment) > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["views.blur=0.5"], "of this recipe's view it uses blur"),
        (["views.crop_scale=[1.0,1.0]"], "it takes no random crop"),
    ],
)
def test_what_can_not_be_compared_is_one_clear_error(photographs, overrides, message, capsys):
    given = ["data=imagefolder", f"data.path={photographs}", *overrides]
    assert main(["--config", RECIPE, *given, "--loading"]) == 1
    assert message in capsys.readouterr().err


def test_data_without_files_is_one_clear_error(capsys):
    assert main(["--config", RECIPE, "data=scenes", "--loading"]) == 1
    assert "no image files to decode" in capsys.readouterr().err
