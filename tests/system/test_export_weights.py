"""Weights to share, as somebody uses them who has nothing but the exported folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from ssl_zoo.config import compose
from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.engine.trained import open_run
from ssl_zoo.tools import eval_net, export_weights, train_net
from ssl_zoo.tools import list as list_parts

ROOT = Path(train_net.__file__).resolve().parents[1]
TINY = [
    *("backbone.embed_dim=48", "backbone.depth=2", "backbone.num_heads=4", "backbone.image_size=32"),
    *("backbone.patch_size=4", "data.image_size=32", "data.num_train=64", "data.num_test=32", "masks.min_patches=4"),
    *("method.predictor_dim=32", "method.predictor_depth=1", "method.predictor_heads=4", "probe.evaluators=[]"),
    *("trainer.batch_size=16", "trainer.num_steps=4", "trainer.checkpoint_every=2", "trainer.precision=fp32"),
    *("monitor.loggers=[jsonl]", "monitor.images_every=0"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    recipe = str(ROOT / "configs" / "ijepa" / "demo.yaml")
    assert train_net.main(["--config", recipe, *TINY, f"output_dir={run}"]) == 0
    return run


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    assert export_weights.main(["--run", str(run)]) == 0
    return run / "export" / "step_00000004"


def test_the_folder_says_what_is_in_it(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert {path.name for path in exported.iterdir()} == {*manifest["files"], "manifest.json", "README.md"}
    assert manifest["files"].keys() == {"encoder.safetensors", "target_encoder.safetensors", "predictor.safetensors"}
    assert (manifest["method"], manifest["step"], manifest["evaluated"]) == ("ijepa", 4, "target_encoder")
    assert manifest["config"]["backbone"]["embed_dim"] == manifest["backbone"]["embed_dim"] == 48
    assert manifest["details"]["verified"]["largest_difference"] == 0
    for name, expected in manifest["files"].items():
        assert fingerprint(exported / name) == {key: expected[key] for key in ("bytes", "sha256")}


def test_exported_weights_get_the_scores_of_their_run(run: Path, exported: Path, tmp_path: Path) -> None:
    asked = ["--evaluators", "knn", "--no-cache", "--no-baseline", "probe.knn.k=[5]", "--out"]
    scores = {}
    for network in ("encoder", "target_encoder"):
        weights = ["--weights", str(exported / f"{network}.safetensors"), "--config", str(run / "config.yaml")]
        for name, source in (("file", weights), ("run", ["--run", str(run), "--network", network])):
            out = tmp_path / f"{network}_{name}"
            assert eval_net.main([*source, *asked, str(out)]) == 0
            scores[network, name] = json.loads(next(out.glob("*.json")).read_text())["scores"]
        assert scores[network, "file"] == scores[network, "run"]


def test_timm_reads_an_exported_encoder_and_computes_the_same_features(run: Path, exported: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0}
    theirs = VisionTransformer(**sizes, class_token=False, global_pool="avg", fc_norm=False)
    theirs.load_state_dict(load_file(exported / "target_encoder.safetensors"))
    ours = open_run(run, compose(run / "config.yaml").config).method.eval_encoder()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval().forward_features(images), ours.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_folder_that_exists_is_not_overwritten(run: Path, exported: Path, capsys: pytest.CaptureFixture) -> None:
    assert export_weights.main(["--run", str(run), "--checkpoint", "2", "--out", str(exported)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --out") and "exists" in line


def test_the_model_card_has_origin_scores_and_licence(run: Path, tmp_path: Path) -> None:
    evaluated = tmp_path / "run"
    shutil.copytree(run, evaluated)
    arguments = ["--run", str(evaluated), "--evaluators", "knn", "--no-cache", "probe.knn.k=[5]"]
    assert eval_net.main(arguments) == 0
    assert export_weights.main(["--run", str(evaluated), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    [score] = json.loads(next((evaluated / "eval").glob("*/knn*.json")).read_text())["scores"]
    for part in (
        "`ijepa/demo.yaml`",
        "| data | scenes |",
        "| seed | 0 |",
        "GFLOP",
        score["protocol_hash"],
        "## Licence",
    ):
        assert part in card
    assert f"| knn5 | {100 * score['value']:.1f} % | {100 * score['random_init']:.1f} % |" in card


def test_the_model_zoo_is_a_table_of_run_records(run: Path, exported: Path, tmp_path: Path) -> None:
    page = tmp_path / "zoo.md"
    assert list_parts.main(["--zoo", str(run), "--out", str(page)]) == 0
    [row] = [line for line in page.read_text().splitlines() if "ijepa/demo.yaml" in line]
    sha = json.loads((exported / "manifest.json").read_text())["files"]["target_encoder.safetensors"]["sha256"]
    for part in ("scenes", "4 steps, 64 images", "FLOP", f"target_encoder.safetensors, SHA-256 `{sha}`"):
        assert part in row


def test_a_folder_without_runs_is_no_zoo(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert list_parts.main(["--zoo", str(tmp_path)]) == 1
    assert "holds no run with a checkpoint" in capsys.readouterr().err


def test_heads_are_exported_beside_the_encoders(tmp_path: Path) -> None:
    tiny = [setting for setting in TINY if not setting.startswith(("masks.", "method."))]
    head = ["method.num_prototypes=16", "method.head_dim=16", "method.bottleneck_dim=8", "views.local_size=16"]
    recipe = str(ROOT / "configs" / "dino" / "demo.yaml")
    assert train_net.main(["--config", recipe, *tiny, *head, f"output_dir={tmp_path}"]) == 0
    assert export_weights.main(["--run", str(tmp_path)]) == 0
    exported = tmp_path / "export" / "step_00000004"
    assert json.loads((exported / "manifest.json").read_text())["evaluated"] == "target_encoder"
    parts = {name.split(".")[0] for name in load_file(exported / "predictor.safetensors")}
    assert parts == {"head", "teacher_head", "center"}
    encoder, average = (load_file(exported / f"{name}.safetensors") for name in ("encoder", "target_encoder"))
    assert encoder.keys() == average.keys()
