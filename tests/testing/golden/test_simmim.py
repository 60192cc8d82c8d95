"""verify_golden on SimMIM: the published file, and what must not pass."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_files import changed
from safetensors.torch import load_file

from ssl_zoo.interop.official import from_pixel_shuffle, to_pixel_shuffle
from ssl_zoo.nn import unpatchify
from ssl_zoo.tools.verify_golden import main

PUBLISHED = Path(__file__).resolve().parents[2] / "golden" / "simmim_a.safetensors"


def test_the_published_file_is_reproduced(capsys: pytest.CaptureFixture) -> None:
    assert main([str(PUBLISHED)]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " ok" in line}
    assert {"step0.reconstruction", "step0.grad", "history.lr", "final.encoder", "final.decoder"} <= rows


@pytest.mark.parametrize(
    "config", [{"milestones": []}, {"gamma": 0.5}, {"warmup_epochs": 0}, {"warmup_lr": 0.0}, {"wd": 0.5}, {"clip": 5.0}]
)
def test_other_settings_do_not_pass(tmp_path: Path, config: dict) -> None:
    assert main([changed(PUBLISHED, tmp_path, config=config)]) == 1


@pytest.mark.parametrize("name", ["step0.reconstruction", "final.encoder.mask_token", "final.decoder.0.bias"])
def test_other_numbers_do_not_pass(tmp_path: Path, name: str) -> None:
    assert main([changed(PUBLISHED, tmp_path, {name: load_file(PUBLISHED)[name] * 1.01 + 1e-4})]) == 1


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"init.decoder.0.bias": None}, {}, "missing bias"),
        ({"init.encoder.mask_token": None}, {}, "init.encoder.mask_token"),
        ({}, {"milestones": 2}, "config.milestones=2"),
        ({}, {"milestones": [1]}, "optim.milestones=[1]"),
        ({}, {"heads": 5}, "backbone.num_heads=5"),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, tensors: dict, config: dict, message: str
) -> None:
    assert main([changed(PUBLISHED, tmp_path, tensors, config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_head_predicts_what_convolution_and_pixel_shuffle_do() -> None:
    weight, bias, tokens = torch.randn(3 * 16, 8, 1, 1), torch.randn(3 * 16), torch.randn(2, 6, 8)
    maps = tokens.transpose(1, 2).unflatten(2, (2, 3))
    expected = F.pixel_shuffle(F.conv2d(maps, weight, bias), 4)
    predicted = F.linear(tokens, from_pixel_shuffle(weight), from_pixel_shuffle(bias))
    torch.testing.assert_close(unpatchify(predicted, (2, 3), 4), expected, atol=1e-5, rtol=1e-5)
    for official in (weight, bias):
        assert torch.equal(to_pixel_shuffle(from_pixel_shuffle(official)), official)
