"""verify_golden on CAE: the published file, and what must not pass."""

from pathlib import Path

import pytest
import torch
from golden_files import changed
from safetensors.torch import load_file

from ssl_zoo.tools.verify_golden import main

PUBLISHED = Path(__file__).resolve().parents[2] / "golden" / "cae_a.safetensors"


def test_the_published_file_is_reproduced(capsys: pytest.CaptureFixture) -> None:
    assert main([str(PUBLISHED)]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if " ok" in line}
    forward = {f"step0.{name}" for name in ("encoder_output", "latent_target", "latent_prediction", "logits", "grad")}
    assert forward | {"history.loss_align", "history.lr", "final.regresser", "final.decoder"} <= rows


@pytest.mark.parametrize("config", [{"align_weight": 1.0}, {"wd": 0.1}, {"clip": 5.0}, {"warmup_epochs": 0}])
def test_other_settings_do_not_pass(tmp_path: Path, config: dict) -> None:
    assert main([changed(PUBLISHED, tmp_path, config=config)]) == 1


@pytest.mark.parametrize("name", ["step0.latent_target", "step0.logits", "init.rd_pos_embed", "final.mask_token"])
def test_other_numbers_do_not_pass(tmp_path: Path, name: str) -> None:
    assert main([changed(PUBLISHED, tmp_path, {name: load_file(PUBLISHED)[name] * 1.01 + 1e-4})]) == 1


def test_positions_with_the_column_first_do_not_pass(tmp_path: Path) -> None:
    table = load_file(PUBLISHED)["init.encoder.pos_embed"]
    assert main([changed(PUBLISHED, tmp_path, {"init.encoder.pos_embed": table.roll(24, dims=-1)})]) == 1


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"init.decoder.head.bias": None}, {}, "missing head.bias"),
        ({"init.regresser.regressor_blocks.1.norm1_k.bias": None}, {}, "missing regressor_blocks.1.norm1_k.bias"),
        ({"init.mask_token": None}, {}, "init.mask_token"),
        ({"step1.token_labels": torch.full((4, 64), 128)}, {}, "step1.token_labels: needs [4, 64] int64 in 0..127"),
        ({"step2.mask": torch.arange(256).view(4, 8, 8) < 40}, {}, "step2.mask: needs equally many masked patches"),
        ({}, {"decoder_heads": 5}, "method.decoder_dim=48 is no multiple of 5"),
        ({}, {"wd_end": 0.4}, "config.wd_end=0.4: the weight decay of CAE is constant"),
    ],
)
def test_a_file_that_cannot_be_verified_exits_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, tensors: dict, config: dict, message: str
) -> None:
    assert main([changed(PUBLISHED, tmp_path, tensors, config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
