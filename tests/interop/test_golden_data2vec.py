"""verify_golden on data2vec: the published file, and what must not pass."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssl_zoo.tools.verify_golden import main

PUBLISHED = Path(__file__).resolve().parents[1] / "golden" / "data2vec_a.safetensors"


def changed(tmp_path: Path, tensors: dict | None = None, config: dict | None = None) -> str:
    with safe_open(str(PUBLISHED), "pt") as file:
        settings = json.loads(file.metadata()["config"])
    path = tmp_path / "fixture.safetensors"
    kept = {n: t for n, t in {**load_file(PUBLISHED), **(tensors or {})}.items() if t is not None}
    save_file(kept, path, {"config": json.dumps(settings | (config or {}))})
    return str(path)


def test_the_published_file_is_reproduced(capsys: pytest.CaptureFixture) -> None:
    assert main([str(PUBLISHED)]) == 0
    assert "final.teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "factor"),
    [("step0.targets", 1.001), ("final.teacher.blocks.2.mlp.fc1.weight", 1.01), ("history.ema_decay", 0.999)],
)
def test_other_numbers_do_not_pass(tmp_path: Path, name: str, factor: float) -> None:
    assert main([changed(tmp_path, {name: load_file(PUBLISHED)[name] * factor})]) == 1


@pytest.mark.parametrize("config", [{"l1_beta": 0.5}, {"target_layers": [2, 3]}, {"lr": 1e-3}, {"clip": 3.0}])
def test_other_settings_do_not_pass(tmp_path: Path, config: dict) -> None:
    assert main([changed(tmp_path, config=config)]) == 1


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"init.student.lm_head.bias": None}, {}, "missing bias"),
        ({"init.student.mask_token": None}, {}, "init.student.mask_token"),
        ({"init.student.norm.bias": None}, {}, "missing norm.bias"),
        ({}, {"target_layers": [0, 2]}, "config.target_layers"),
        ({}, {"ema_start_at": 3}, "constant weight decay and momentum"),
        ({}, {"heads": 5}, "backbone.num_heads=5"),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, tensors: dict, config: dict, message: str
) -> None:
    assert main([changed(tmp_path, tensors, config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
