"""Official weights as their user meets them: refused by name, imported, evaluated, and the start of a run."""

import json
from pathlib import Path

import official_files
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ssl_zoo.config import compose
from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.engine.trained import open_run
from ssl_zoo.interop.manifest import Manifest
from ssl_zoo.nn import ViT
from ssl_zoo.tools import eval_net, import_weights, list, train_net

ROOT = Path(train_net.__file__).resolve().parents[1]
HEADS = ["--num-heads", "4", "--predictor-heads", "4"]
SCENES = ["data=scenes", "data.image_size=32", "data.num_train=32", "data.num_test=16"]
RUN = [
    *("loader.num_workers=0", "probe.evaluators=[]", "trainer.batch_size=16", "trainer.num_steps=1"),
    *("trainer.checkpoint_every=1", "trainer.precision=fp32", "monitor.loggers=[jsonl]", "monitor.images_every=0"),
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
    assert eval_net.main(["--weights", str(official), *config, "--evaluators", "knn"]) == 1
    assert f"\n  python tools/import_weights.py {official}\n" in capsys.readouterr().err


def test_an_imported_folder_is_described_and_evaluated(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "imported"
    assert import_weights.main([str(official), *HEADS, "--out", str(out)]) == 0
    manifest = Manifest.read(out)
    assert (manifest.kind, manifest.method, manifest.evaluated) == ("import", "ijepa", "target_encoder")
    assert manifest.source["sha256"] == fingerprint(official)["sha256"]
    assert manifest.source["licence"].startswith("CC BY-NC 4.0")
    assert manifest.source["matched"] == "29 of 29 tensors"
    asked = ["--evaluators", "knn", "--no-cache", "probe.knn.k=[5]", *SCENES, "--out", str(tmp_path / "scores")]
    assert eval_net.main(["--weights", str(out), *asked]) == 0
    assert json.loads(next((tmp_path / "scores").glob("*.json")).read_text())["network"] == "target_encoder"


def test_the_model_card_has_source_matching_use_and_licence(tmp_path: Path) -> None:
    torch.save(official_files.msn(), tmp_path / "msn.pth.tar")
    out = tmp_path / "imported"
    assert import_weights.main([str(tmp_path / "msn.pth.tar"), *HEADS, "--out", str(out)]) == 0
    manifest, card = Manifest.read(out), (out / "README.md").read_text()
    for part in (
        "# msn, ViT of width 48, depth 2, patch size 8",
        "| source | `msn.pth.tar` |",
        f"| SHA-256 of `msn.pth.tar` | `{manifest.source['sha256']}` |",
        f"| matched | {manifest.source['matched']} |",
        'encoder = ssl_zoo.load("FOLDER")',
        "backbone.init_from=FOLDER",
        "CC BY-NC 4.0 (facebookresearch/msn)",
    ):
        assert part in card
    assert {path.name for path in out.iterdir()} == {*manifest.files, "manifest.json", "README.md"}
    for reason in manifest.source["left_out"]:
        assert f": {reason} |" in card


def test_a_folder_that_exists_is_not_overwritten(official: Path, capsys: pytest.CaptureFixture) -> None:
    assert import_weights.main([str(official), *HEADS, "--out", str(official.parent)]) == 1
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_published_weights_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert list.main(["weights"]) == 0
    assert "ijepa_vith14_in1k " in capsys.readouterr().out


def test_a_dry_run_reports_what_would_be_loaded_and_refuses_what_a_start_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(official_files.mae(), tmp_path / "mae.pth")
    source = tmp_path / "source"
    assert import_weights.main([str(tmp_path / "mae.pth"), *HEADS, "--out", str(source)]) == 0
    run = ["--config", str(source / "recipe.yaml"), *SCENES, *RUN, f"output_dir={tmp_path / 'run'}"]
    capsys.readouterr()
    assert train_net.main([*run, f"backbone.init_from={source}", "backbone.image_size=48", "--dry-run"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line == (
        f"backbone.init_from: encoder, decoder from {source} (import of mae); positions recomputed for 48x48 px "
        "instead of 32x32"
    )
    nowhere = f"backbone.init_from={tmp_path}/none"
    assert train_net.main([*run, nowhere]) == 1
    refusal = capsys.readouterr().err
    assert train_net.main([*run, nowhere, "--dry-run"]) == 1
    assert capsys.readouterr().err == refusal == f"error: {nowhere}: there is no such file or folder\n"
    wider = [f"backbone.init_from={source}", "backbone.embed_dim=64", "--dry-run"]
    assert train_net.main([*run, *wider]) == 1
    assert "set backbone.embed_dim=48 (here 64)" in capsys.readouterr().err


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
    assert train_net.main([*again, "--dry-run"]) == 0
    assert train_net.main(again) == 0
    assert json.loads((run / "environment.json").read_text())["init_from"] == record
    assert train_net.main([*again, "backbone.init_from=null"]) == 1  # other settings than those of the checkpoint


@pytest.mark.slow
def test_scores_at_another_resolution_are_those_of_positions_interpolated_by_hand(tmp_path: Path) -> None:
    recipe = {"defaults": [{"method": "mae"}, {"backbone": "vit"}, {"data": "scenes"}]}
    recipe["backbone"] = {"image_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
    recipe["backbone"] |= {"class_token": True, "positions": "learned"}
    recipe["method"] = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4}
    (tmp_path / "mae.yaml").write_text(yaml.safe_dump(recipe))
    scenes = ["data.image_size=64", "data.num_train=96", "data.num_test=64"]
    subset = ["probe.train_samples=96", "probe.test_samples=64", "probe.knn.k=[5]"]
    command = ["--config", str(tmp_path / "mae.yaml"), *SCENES, *RUN, *scenes, *subset, "optim.lr=0.01"]
    assert train_net.main([*command, "trainer.num_steps=4", f"output_dir={tmp_path / 'first'}"]) == 0

    config = compose(tmp_path / "first" / "config.yaml", ["backbone.image_size=48"]).config
    resized = open_run(tmp_path / "first", config).method.encoder.eval()
    state = open_run(tmp_path / "first", compose(tmp_path / "first" / "config.yaml").config).method.encoder.state_dict()
    table = state["pos_embed"][0, 1:].T.reshape(1, 48, 4, 4)
    patches = torch.nn.functional.interpolate(table, size=(6, 6), mode="bicubic", align_corners=False)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], patches.reshape(48, 36).T[None]], dim=1)
    by_hand = ViT(config.backbone).eval()
    by_hand.load_state_dict(state)
    save_file(state, tmp_path / "hand.safetensors")
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(resized(images), by_hand(images), rtol=0, atol=1e-6)

    def scores(*source: str) -> dict[str, float]:
        out = tmp_path / source[0].strip("-")
        protocols = [
            "--evaluators",
            "knn",
            "logistic",
            "--no-baseline",
            "--no-cache",
            *subset,
            "backbone.image_size=48",
        ]
        assert eval_net.main([*source, *protocols, "--out", str(out)]) == 0
        written = [json.loads(path.read_text()) for path in out.glob("*.json")]
        return {score["name"]: score["value"] for record in written for score in record["scores"]}

    expected = scores("--weights", str(tmp_path / "hand.safetensors"), *command[:2], *SCENES, *scenes)
    assert expected.keys() == {"knn5", "logistic"}
    assert scores("--run", str(tmp_path / "first")) == expected
    start = [f"backbone.init_from={tmp_path / 'first'}", "backbone.image_size=48", "probe.evaluators=[knn,logistic]"]
    assert train_net.main([*command, *start, f"output_dir={tmp_path / 'second'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    [before] = [line for line in lines if "knn5_random_init" in line and line["step"] == 0]
    assert {name: before[f"{name}_random_init"] for name in expected} == expected


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
