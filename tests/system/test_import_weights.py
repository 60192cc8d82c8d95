"""Official weights as their user meets them: refused by name, imported, evaluated, and the start of a run."""

import json
from pathlib import Path

import official_files
import pytest
import torch
import yaml
from safetensors.torch import load_file

from ssl_zoo.config import compose
from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.engine.trained import open_run
from ssl_zoo.interop.manifest import Manifest
from ssl_zoo.tools import eval_net, import_weights, list, train_net

ROOT = Path(train_net.__file__).resolve().parents[1]
HEADS = ["--num-heads", "4", "--predictor-heads", "4"]
SCENES = ["data=scenes", "data.image_size=32", "data.num_train=32", "data.num_test=16"]
RUN = [
    *("loader.num_workers=0", "probe.evaluators=[]", "trainer.batch_size=16", "trainer.num_steps=1"),
    *("trainer.checkpoint_every=1", "trainer.precision=fp32", "monitor.tensorboard=false", "monitor.images_every=0"),
]

STILL = ["optim.lr=1e-12", "optim.warmup_lr=0", "optim.min_lr=0"]  # a step that moves no weight by more than rounding


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Return the file of I-JEPA's target encoder alone, as an official training has it."""
    torch.save({"target_encoder": official_files.ijepa()["target_encoder"]}, tmp_path / "x.pth.tar")
    return tmp_path / "x.pth.tar"


@pytest.mark.parametrize("config", [[], ["--config", str(ROOT / "configs" / "ijepa" / "demo.yaml")]])
def test_the_refusal_of_an_official_file_names_the_command_that_imports_it(
    official: Path, config: list, capsys: pytest.CaptureFixture
) -> None:
    assert eval_net.main(["--weights", str(official), *config, "--protocol", "knn"]) == 1
    assert f"\n  python tools/import_weights.py {official}\n" in capsys.readouterr().err


def test_an_imported_folder_is_described_and_evaluated(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "imported"
    assert import_weights.main([str(official), *HEADS, "--out", str(out)]) == 0
    manifest = Manifest.read(out)
    assert (manifest.kind, manifest.method, manifest.evaluated) == ("import", "ijepa", "target_encoder")
    assert manifest.source["sha256"] == fingerprint(official)["sha256"]
    assert manifest.source["licence"].startswith("CC BY-NC 4.0")
    assert manifest.source["matched"] == "29 of 29 tensors"
    asked = ["--protocol", "knn", "--no-cache", "probe.knn.k=[5]", *SCENES, "--out", str(tmp_path / "scores")]
    assert eval_net.main(["--weights", str(out), *asked]) == 0
    assert json.loads(next((tmp_path / "scores").glob("*.json")).read_text())["network"] == "target_encoder"


def test_a_folder_that_exists_is_not_overwritten(official: Path, capsys: pytest.CaptureFixture) -> None:
    assert import_weights.main([str(official), *HEADS, "--out", str(official.parent)]) == 1
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_published_weights_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert list.main(["weights"]) == 0
    assert "ijepa_vith14_in1k " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_starts_from_imported_weights_and_resumes_without_them(tmp_path: Path) -> None:
    torch.save(official_files.mae(), tmp_path / "mae.pth")
    source, run = tmp_path / "source", tmp_path / "run"
    assert import_weights.main([str(tmp_path / "mae.pth"), *HEADS, "--out", str(source)]) == 0
    command = ["--config", str(source / "recipe.yaml"), f"backbone.init_from={source}", *SCENES, *RUN]
    command += [f"output_dir={run}"]
    assert train_net.main([*command, *STILL]) == 0
    record = json.loads((run / "environment.json").read_text())["init_from"]
    assert record["loaded"] == {"encoder": "encoder", "decoder": "predictor"}
    assert record["sha256"]["encoder.safetensors"] == fingerprint(source / "encoder.safetensors")["sha256"]
    trained = open_run(run, compose(run / "config.yaml").config).method.encoder.state_dict()
    for name, tensor in load_file(source / "encoder.safetensors").items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-6)
    source.rename(tmp_path / "moved")
    again = ["--config", str(run / "config.yaml"), f"output_dir={run}"]
    assert train_net.main(again) == 0
    assert json.loads((run / "environment.json").read_text())["init_from"] == record
    assert train_net.main([*again, "backbone.init_from=null"]) == 1  # other settings than those of the checkpoint


@pytest.mark.slow
def test_a_run_starts_from_another_run(tmp_path: Path) -> None:
    recipe = {"defaults": [{"method": "mae"}, {"backbone": "vit"}, {"data": "scenes"}]}
    recipe["backbone"] = {"image_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
    recipe["method"] = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4}
    (tmp_path / "mae.yaml").write_text(yaml.safe_dump(recipe))
    command = ["--config", str(tmp_path / "mae.yaml"), *SCENES, *RUN]
    assert train_net.main([*command, f"output_dir={tmp_path / 'first'}"]) == 0
    start = [f"backbone.init_from={tmp_path / 'first'}", f"output_dir={tmp_path / 'second'}"]
    assert train_net.main([*command, *start, *STILL]) == 0
    first, second = (
        open_run(tmp_path / name, compose(tmp_path / name / "config.yaml").config).method.state_dict()
        for name in ("first", "second")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)
    record = json.loads((tmp_path / "second" / "environment.json").read_text())["init_from"]
    assert (record["kind"], record["method"], record["step"], record["fresh"]) == ("run", "mae", 1, [])
