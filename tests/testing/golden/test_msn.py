"""verify_golden on MSN: the published file, and what must not pass."""

from pathlib import Path

import pytest
import torch
from golden_files import changed
from safetensors.torch import load_file

from ssl_zoo.tools.verify_golden import main

PUBLISHED = Path(__file__).resolve().parents[2] / "golden" / "msn_a.safetensors"


def test_the_published_file_is_reproduced(capsys: pytest.CaptureFixture) -> None:
    assert main([str(PUBLISHED)]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " ok" in line}
    of_first_step = {f"step0.sinkhorn_{name}.targets" for name in ("on", "off")} | {"step0.anchor_views", "step0.grad"}
    of_run = {"history.loss_memax", "history.grad_norm", "final.student", "final.teacher", "final.prototypes"}
    assert of_first_step | of_run <= rows


@pytest.mark.parametrize(
    "config",
    [
        {"use_sinkhorn": False},
        {"sinkhorn_iterations": 2},
        {"temperature": 0.11},
        {"sharpen0": 0.3},
        {"memax_weight": 2.0},
        {"ent_weight": 0.1},
        {"position_offset": 0.1},
        {"ema0": 0.99},
        {"schedule_stretch": 1.0},
        {"wd_end": 0.04},
    ],
)
def test_other_settings_do_not_pass(tmp_path: Path, config: dict) -> None:
    assert main([changed(PUBLISHED, tmp_path, config=config)]) == 1


@pytest.mark.parametrize(
    "name",
    ["step0.target_views", "final.student.fc.bn1.running_var", "final.teacher.fc.bn2.num_batches_tracked"],
)
def test_other_numbers_do_not_pass(tmp_path: Path, name: str) -> None:
    stored = load_file(PUBLISHED)[name]
    other = stored * 1.01 + 1e-3 if stored.is_floating_point() else stored + 1
    assert main([changed(PUBLISHED, tmp_path, {name: other})]) == 1


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"init.student.fc.fc1.bias": None}, {}, "missing fc1.bias"),
        ({"init.prototypes": torch.zeros(64, 31)}, {}, "init.prototypes has shape [64, 31], needs [64, 32]"),
        ({"init.teacher.fc.bn1.running_var": torch.ones(3)}, {}, "init.teacher.fc.bn1.running_var is [3]"),
        ({"step1.kept_patches": torch.zeros(30, dtype=torch.int64)}, {}, "needs different patches of 0..35"),
        ({"step2.focal_image.1": None}, {}, "step2.focal_image.1 is missing"),
        ({"step0.anchor_image": torch.zeros(10, 3, 24, 20)}, {}, "needs [10, 3, 24, 24]"),
        ({}, {"use_sinkhorn": 1}, "config.use_sinkhorn=1"),
        ({}, {"focal_size": 18}, "config.focal_size=18"),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, tensors: dict, config: dict, message: str
) -> None:
    assert main([changed(PUBLISHED, tmp_path, tensors, config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
