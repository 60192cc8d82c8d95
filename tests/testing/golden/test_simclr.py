"""verify_golden on SimCLR's loss: the published file, files of other sizes, and what must not pass."""

from pathlib import Path

import pytest
import torch
from golden_files import changed
from safetensors.torch import load_file

from ssl_zoo.tools.verify_golden import main

PUBLISHED = Path(__file__).resolve().parents[2] / "golden" / "simclr_a.safetensors"


def test_the_published_file_is_reproduced(capsys: pytest.CaptureFixture) -> None:
    assert main([str(PUBLISHED)]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " ok" in line}
    quantities = ("loss", "loss_mean_over_2B", "logits_ab", "grad")
    assert rows == {f"temperature.{number}.{name}" for number in (0, 1) for name in quantities}


@pytest.mark.parametrize("config", [{"temperatures": [0.1, 0.4]}, {"temperatures": [0.1]}])
def test_other_temperatures_do_not_pass(tmp_path: Path, config: dict) -> None:
    assert main([changed(PUBLISHED, tmp_path, config=config)]) == 1


@pytest.mark.parametrize("name", ["temperature.0.loss", "temperature.1.grad.1", "temperature.0.logits_ab"])
def test_other_numbers_do_not_pass(tmp_path: Path, name: str) -> None:
    assert main([changed(PUBLISHED, tmp_path, {name: load_file(PUBLISHED)[name] * 1.01 + 1e-4})]) == 1


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"features.1": None}, {}, "tensor features.1 is missing"),
        ({"features.1": torch.zeros(8, 31)}, {}, "features.1 is [8, 31] of torch.float32, needs [8, 32]"),
        ({}, {"batch": 9}, "features.0 is [8, 32]"),
        ({}, {"temperatures": 0.1}, "config.temperatures=0.1"),
        ({}, {"temperatures": [0.0]}, "config.temperatures=[0.0]"),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, tensors: dict, config: dict, message: str
) -> None:
    assert main([changed(PUBLISHED, tmp_path, tensors, config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
