"""verify_golden on DINO and iBOT: the published files, and what must not pass."""

from pathlib import Path

import pytest
import torch
from golden_files import changed
from safetensors.torch import load_file

from ssl_zoo.tools.verify_golden import main

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PUBLISHED, IBOT = GOLDEN / "dino_a.safetensors", GOLDEN / "ibot_a.safetensors"


def test_the_published_file_is_reproduced(capsys: pytest.CaptureFixture) -> None:
    assert main([str(PUBLISHED)]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " ok" in line}
    assert {"step0.clipped_grad_norm", "history.center", "history.momentum", "final.student", "final.teacher"} <= rows


@pytest.mark.parametrize(
    "config",
    [
        {"position_offset": 0.0},
        {"student_temp": 0.2},
        {"center_momentum": 0.99},
        {"freeze_last_layer": 2},
        {"temp_warmup_epochs": 5},
        {"momentum": 0.99},
        {"clip": 3.0},
        {"norm_last_layer": False},
        {"wd_end": 0.04},
    ],
)
def test_other_settings_do_not_pass(tmp_path: Path, config: dict) -> None:
    assert main([changed(PUBLISHED, tmp_path, config=config)]) == 1


@pytest.mark.parametrize("name", ["step0.teacher_output", "history.center", "final.teacher.head.mlp.4.bias"])
def test_other_numbers_do_not_pass(tmp_path: Path, name: str) -> None:
    assert main([changed(PUBLISHED, tmp_path, {name: load_file(PUBLISHED)[name] * 1.01 + 1e-4})]) == 1


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"init.student.head.mlp.0.bias": None}, {}, "missing mlp.0.bias"),
        ({"step2.crop.3": None}, {}, "step2.crop.3 is missing"),
        ({}, {"norm_last_layer": 1}, "config.norm_last_layer=1"),
        ({}, {"local_size": 18}, "config.local_size=18"),
        ({}, {"local_size": 20}, "step0.crop.2"),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, tensors: dict, config: dict, message: str
) -> None:
    assert main([changed(PUBLISHED, tmp_path, tensors, config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("published", [PUBLISHED, IBOT])
def test_a_stored_teacher_is_used_in_place_of_a_copy_of_the_student(tmp_path, capsys, published: Path) -> None:
    stored = {n: t for n, t in load_file(published).items() if n.startswith("init.student.") and "masked" not in n}
    teacher = {name.replace("student", "teacher"): tensor for name, tensor in stored.items()}
    assert main([changed(published, tmp_path, teacher)]) == 0
    capsys.readouterr()
    assert main([changed(published, tmp_path, {name: 1.1 * tensor for name, tensor in teacher.items()})]) == 1
    verdicts = {line.split()[0]: " FAIL" in line for line in capsys.readouterr().out.splitlines() if "step0." in line}
    of_networks = {name: failed for name, failed in verdicts.items() if name.startswith(("step0.t", "step0.s"))}
    assert of_networks == {name: "teacher" in name for name in of_networks} and len(of_networks) >= 4


def test_ibots_published_file_is_reproduced(capsys: pytest.CaptureFixture) -> None:
    assert main([str(IBOT)]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " ok" in line}
    assert {"step0.student_patch", "history.center_patch", "history.loss_patch", "final.student"} <= rows


@pytest.mark.parametrize("config", [{"patch_temp0": 0.04}, {"lambda2": 2.0}, {"patch_temp": 0.07}])
def test_ibots_other_settings_do_not_pass(tmp_path: Path, config: dict) -> None:
    assert main([changed(IBOT, tmp_path, config=config)]) == 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"init.student.backbone.masked_embed": None}, "init.student.backbone.masked_embed is missing"),
        ({"step1.mask.0": torch.zeros(4, 8, 8)}, "step1.mask.0 is [4, 8, 8] of torch.float32"),
    ],
)
def test_ibots_file_that_cannot_be_verified_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, tensors: dict, message: str
) -> None:
    assert main([changed(IBOT, tmp_path, tensors)]) == 2
    assert message in capsys.readouterr().err
