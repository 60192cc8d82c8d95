"""Evaluation of a trained run from the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_zoo.engine import precision as engine_precision
from ssl_zoo.eval.base import EVALUATORS
from ssl_zoo.tools import eval_net, train_net
from ssl_zoo.tools.train_net import main as train

ROOT = Path(train_net.__file__).resolve().parents[1]
DEMO = str(ROOT / "configs" / "ijepa" / "demo.yaml")
TINY = [
    *("backbone.embed_dim=48", "backbone.depth=2", "backbone.num_heads=4", "backbone.image_size=32"),
    *("backbone.patch_size=4", "data.image_size=32", "data.num_train=128", "data.num_test=64"),
    *("method.predictor_dim=32", "method.predictor_depth=1", "method.predictor_heads=4", "masks.min_patches=4"),
    *("trainer.batch_size=16", "trainer.num_steps=4", "trainer.checkpoint_every=2"),
    *("monitor.loggers=[jsonl]", "monitor.images_every=0", "probe.every_steps=2", "probe.evaluators=[knn,logistic]"),
    *("probe.train_samples=96", "probe.test_samples=48", "probe.knn.k=[5]"),
]
SUBSET = ["probe.train_samples=96", "probe.test_samples=48"]
QUICK = [
    *("probe.linear.epochs=2", "probe.attentive.epochs=2", "probe.finetune.epochs=2", "probe.finetune.batch_size=32"),
    *("probe.depth.epochs=1", "probe.depth.num_bins=8", "probe.segmentation.epochs=1"),
    *("probe.low_shot.images_per_class=2", "probe.health.lidar_images=16", "probe.health.lidar_views=2"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    assert train(["--config", DEMO, *TINY, f"output_dir={run}"]) == 0
    return run


def records(folder: Path) -> dict[str, dict]:
    """The JSON files of a folder by evaluator and label."""
    read = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {f"{r['evaluator']} {r['scores'][0]['protocol']['label']}": r for r in read}


@pytest.mark.parametrize("step", [2, 4])
def test_a_score_equals_that_of_the_running_training_on_the_same_images(run, tmp_path, step) -> None:
    arguments = ["--run", str(run), "--checkpoint", str(step), "--evaluators", "knn", "logistic", *SUBSET]
    assert eval_net.main([*arguments, "--out", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [online] = [line for line in lines if line["step"] == step and "logistic" in line]
    scores = [score for record in records(tmp_path).values() for score in record["scores"]]
    names = ("knn5", "logistic")
    assert {score["name"]: score["value"] for score in scores} == {name: online[name] for name in names}
    assert {score["name"]: score["random_init"] for score in scores} == {n: online[f"{n}_random_init"] for n in names}


def test_a_training_with_every_evaluator_is_bit_equal_to_one_without(run, tmp_path) -> None:
    names = "knn,linear,logistic,low_shot,attentive,finetune,health,retrieval,depth,segmentation"
    evaluators = f"probe.evaluators=[{names}]"
    arguments = ["--config", DEMO, *TINY, *QUICK, evaluators, "probe.every_steps=1", f"output_dir={tmp_path}/all"]
    assert train(arguments) == 0
    assert train(["--config", DEMO, *TINY, "probe.evaluators=[]", f"output_dir={tmp_path}/none"]) == 0
    weights = [tmp_path / name / "checkpoints" / "step_00000004" / "method.safetensors" for name in ("all", "none")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert '"rankme"' in (tmp_path / "all" / "metrics.jsonl").read_text()


def test_all_evaluators_and_label_sets_share_a_table_and_have_a_file_each(run, tmp_path, capsys) -> None:
    evaluators = ["knn", "linear", "logistic", "low_shot", "attentive", "finetune", "health"]
    evaluators += ["retrieval", "depth", "segmentation"]
    arguments = ["--run", str(run), "--evaluators", *evaluators, *QUICK, "--label", "count", "distance"]
    assert eval_net.main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(
        word in printed for word in ("random init", "trained", "knn5", "low_shot", "rankme", "count", "distance")
    )
    written = records(tmp_path)
    assert written.keys() == {f"{name} {label}" for name in evaluators for label in ("count", "distance")}
    for record in written.values():
        assert record["step"] == 4 and record["seconds"] > 0 and record["environment"]["python"]
        for score in record["scores"]:
            protocol = score["protocol"]
            assert score["random_init"] is not None and len(score["protocol_hash"]) == 12
            version = EVALUATORS.get(record["evaluator"]).version
            assert (protocol["version"], protocol["train"], protocol["test"]) == (version, 128, 64)
            assert protocol["train_hash"] != protocol["test_hash"]
    assert written["low_shot count"]["scores"][0]["spread"] > 0


def test_several_runs_share_a_table_and_the_baseline_of_equal_initial_weights(run, tmp_path, capsys) -> None:
    longer = tmp_path / "longer"
    assert train(["--config", DEMO, *TINY, "trainer.num_steps=6", "probe.evaluators=[]", f"output_dir={longer}"]) == 0
    capsys.readouterr()
    arguments = ["--run", str(run), str(longer), "probe.knn.k=[5]", "--evaluators", "knn", "logistic"]
    assert eval_net.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    both = capsys.readouterr().out.splitlines()[-6:]
    header, knn, logistic = both[1], both[3], both[4]
    assert [cell.strip() for cell in header.split("┃")[1:-1]] == [
        *("evaluation", "labels", "random init", run.name, "longer")
    ]
    cells = [cell.strip() for cell in knn.split("│")[1:-1]]
    scores = [records(tmp_path / "out" / name)["knn None"]["scores"][0] for name in (run.name, "longer")]
    assert cells == ["knn5", "", f"{scores[0]['random_init']:.2%}", *(f"{s['value']:.2%}" for s in scores)]
    assert scores[0]["random_init"] == scores[1]["random_init"] and "logistic" in logistic
    # train and test features of trained and random weights; the second run reuses the random ones
    stored = [len(list((tmp_path / "out" / name / "features").iterdir())) for name in (run.name, "longer")]
    assert stored == [4, 2]


def test_runs_with_other_initial_weights_have_their_own_baselines(run, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    assert train(["--config", DEMO, *TINY, "seed=1", "probe.evaluators=[]", f"output_dir={other}"]) == 0
    assert eval_net.main(["--run", str(run), str(other), "--evaluators", "knn", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{run.name}, random" in printed and "other, random" in printed  # "init" is on the header's second line


def test_runs_are_named_by_the_shortest_distinct_ends_of_their_paths() -> None:
    assert eval_net.distinct_names([Path("runs/ijepa/demo")]) == ["demo"]
    assert eval_net.distinct_names([Path("runs/ijepa/demo"), Path("runs/mae/demo")]) == ["ijepa/demo", "mae/demo"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [(["a/run", "b/../a/run"], "a directory is given twice"), (["seed=1"], "--run needs the directory")],
)
def test_invalid_lists_of_runs_are_refused(runs, message, capsys) -> None:
    with pytest.raises(SystemExit):
        eval_net.main(["--run", *runs, "--evaluators", "knn"])
    assert message in capsys.readouterr().err


def test_a_second_call_reads_the_features_of_the_first(run, tmp_path, monkeypatch) -> None:
    arguments = ["--run", str(run), "--evaluators", "knn", "--out", str(tmp_path)]
    assert eval_net.main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert len(list((tmp_path / "features").iterdir())) == 4  # train and test, trained and random
    monkeypatch.setattr("ssl_zoo.eval.base.extract_shard", None)
    assert eval_net.main(arguments) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "features").iterdir()}.items() <= before.items()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_resumes_and_is_evaluated_in_the_precision_that_was_chosen_at_its_start(
    precision, tmp_path, monkeypatch
) -> None:
    """The speeds of the machine change in between."""

    def speeds(faster: str) -> None:
        monkeypatch.setattr(engine_precision, "cpu_capabilities", lambda: {"avx512_bf16": True})
        monkeypatch.setattr(engine_precision, "_measured", lambda *_: {"bf16": 2.0, "fp32": 1.0, faster: 9.0})

    other = {"fp32": "bf16", "bf16": "fp32"}[precision]
    arguments = ["--config", DEMO, *TINY, "probe.evaluators=[]", "trainer.checkpoint_every=4"]
    speeds(precision)
    assert train([*arguments, f"output_dir={tmp_path}/whole"]) == 0
    environment = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert environment["precision"] == precision and environment["precision_gflops"][precision] == 9.0
    assert "a transformer block reaches" in environment["precision_reason"]
    # The same run, interrupted after two of four steps, goes on where the other precision is faster.
    with monkeypatch.context() as interrupting:
        interrupting.setattr("ssl_zoo.engine.trainer.Trainer.is_done", property(lambda self: self.step >= 2))
        assert train([*arguments, f"output_dir={tmp_path}/resumed"]) == 0
    speeds(other)
    assert train([*arguments, f"output_dir={tmp_path}/resumed"]) == 0
    weights = [tmp_path / n / "checkpoints" / "step_00000004" / "method.safetensors" for n in ("whole", "resumed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (
        eval_net.main(["--run", f"{tmp_path}/whole", "--evaluators", "knn", *SUBSET, "--out", f"{tmp_path}/out"]) == 0
    )
    evaluated = records(tmp_path / "out")["knn None"]["environment"]
    assert evaluated["precision"] == precision and evaluated["precision_reason"] == "recorded when the run was started"


def test_a_file_of_weights_has_the_scores_of_its_run(run, tmp_path) -> None:
    config = str(run / "config.yaml")
    method = load_file(run / "checkpoints" / "step_00000004" / "method.safetensors")
    prefix = next(name for name in method if name.endswith("pos_embed") and "target" in name).removesuffix("pos_embed")
    save_file(method, tmp_path / "all.safetensors")
    bare = {name.removeprefix(prefix): tensor for name, tensor in method.items() if name.startswith(prefix)}
    save_file(bare, tmp_path / "bare.safetensors")
    arguments = ["--config", config, "--evaluators", "knn", "--no-cache", "--no-baseline"]
    assert eval_net.main(["--weights", str(tmp_path / "bare.safetensors"), *arguments]) == 0
    full = ["--weights", str(tmp_path / "all.safetensors"), "--prefix", prefix]
    assert eval_net.main([*full, *arguments, "--out", str(tmp_path / "full")]) == 0
    assert eval_net.main(["--run", str(run), *arguments[2:], "--out", str(tmp_path / "run")]) == 0
    found = [records(tmp_path / folder)["knn None"] for folder in ("eval/bare", "full", "run")]
    assert found[0]["scores"] == found[1]["scores"] == found[2]["scores"]
    assert found[0]["scores"][0]["random_init"] is None and found[0]["step"] is None


def test_a_run_is_evaluated_at_another_size_of_images(run, tmp_path, capsys) -> None:
    arguments = ["--run", str(run), "--evaluators", "knn", "finetune", *QUICK, "--no-baseline", "--out", str(tmp_path)]
    assert eval_net.main([*arguments, "backbone.image_size=48"]) == 0
    written = records(tmp_path)
    for name in ("knn None", "finetune None"):
        assert written[name]["scores"][0]["protocol"]["image_size"] == [48, 48]
        assert written[name]["trained_grid"] == [8, 8]
    assert eval_net.main([*arguments, "backbone.image_size=24", "backbone.image_width=40"]) == 0
    assert len(list(tmp_path.glob("knn_*.json"))) == 2
    assert eval_net.main([*arguments, "backbone.patch_size=8"]) == 1
    assert "backbone.patch_size=8: " in capsys.readouterr().err


def test_a_file_of_weights_has_the_scores_of_its_run_at_another_size(run, tmp_path) -> None:
    method = load_file(run / "checkpoints" / "step_00000004" / "method.safetensors")
    save_file(method, tmp_path / "all.safetensors")
    prefix = next(name for name in method if name.endswith("pos_embed") and "target" in name).removesuffix("pos_embed")
    shared = ["--evaluators", "knn", "--no-cache", "--no-baseline", "backbone.image_size=48"]
    full = ["--weights", str(tmp_path / "all.safetensors"), "--prefix", prefix, "--config", str(run / "config.yaml")]
    assert eval_net.main([*full, *shared, "--out", str(tmp_path / "full")]) == 0
    assert eval_net.main(["--run", str(run), *shared, "--out", str(tmp_path / "run")]) == 0
    found = [records(tmp_path / folder)["knn None"]["scores"] for folder in ("full", "run")]
    assert found[0] == found[1]


def test_either_encoder_of_a_method_can_be_evaluated(run, tmp_path, capsys) -> None:
    found = {}
    for name in ("evaluated", "target_encoder", "encoder"):
        arguments = [
            "--run",
            str(run),
            "--evaluators",
            "health",
            *QUICK,
            "--no-baseline",
            "--out",
            str(tmp_path / name),
        ]
        assert eval_net.main([*arguments, "--network", name]) == 0
        found[name] = records(tmp_path / name)["health None"]
    assert found["evaluated"]["scores"] == found["target_encoder"]["scores"] != found["encoder"]["scores"]
    assert found["encoder"]["network"] == "encoder"


def test_a_method_without_an_ema_has_no_target_encoder(run, tmp_path, capsys) -> None:
    arguments = ["--config", DEMO.replace("ijepa", "mae"), *TINY[:6], f"output_dir={tmp_path}", "probe.evaluators=[]"]
    tiny = ["trainer.batch_size=16", "trainer.num_steps=1", "monitor.loggers=[jsonl]", "method.decoder_dim=32"]
    assert train([*arguments, *tiny, "method.decoder_heads=4", "method.decoder_depth=1"]) == 0
    assert eval_net.main(["--run", str(tmp_path), "--evaluators", "knn", "--network", "target_encoder"]) == 1
    assert "has no EMA weights of its encoder; take --network encoder" in capsys.readouterr().err


PLUGIN = '''
from dataclasses import dataclass

from ssl_zoo.eval import EVALUATORS, Evaluator, EvaluatorConfig, Score
from ssl_zoo.settings import setting


@dataclass
class MineConfig(EvaluatorConfig):
    k: int = setting(3, "a number to report", at_least=1)


@EVALUATORS.register("mine", MineConfig)
class Mine(Evaluator):
    """Reports its setting."""

    def __call__(self, model):
        return [Score("mine", self.config.k, self.protocol(model), is_fraction=False)]
'''


@pytest.fixture
def tool(tmp_path):
    """Run a tool with a plug-in file in a process of its own, since registration can't be undone."""
    (tmp_path / "mine.py").write_text(PLUGIN)

    def call(name: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools" / name), *arguments, "--plugin", str(tmp_path / "mine.py")]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)

    return call


def test_an_evaluator_of_a_plugin_file_takes_settings_in_training_and_later(run, tmp_path, tool) -> None:
    evaluators = ["probe.evaluators=[knn,mine]", "probe.mine.k=5", "trainer.num_steps=1", f"output_dir={tmp_path}/run"]
    assert tool("train_net.py", "--config", DEMO, *TINY, *evaluators).returncode == 0
    assert '"mine": 5' in (tmp_path / "run" / "metrics.jsonl").read_text()
    arguments = ["--run", str(run), "--evaluators", "mine", "probe.mine.k=7", "--no-cache", "--out", str(tmp_path)]
    assert tool("eval_net.py", *arguments).returncode == 0
    [score] = records(tmp_path)["mine None"]["scores"]
    assert score["value"] == score["random_init"] == score["protocol"]["k"] == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probe.mine.kk=5", "there is no key probe.mine.kk; did you mean probe.mine.k?"),
        ("probe.mine.k=0", "probe.mine.k=0 must be at least 1"),
    ],
)
def test_a_wrong_setting_of_a_plugins_evaluator_is_refused_by_name(run, tool, override, message) -> None:
    refused = tool("eval_net.py", "--run", str(run), "--evaluators", "mine", override)
    assert refused.returncode == 1 and message in refused.stderr


def test_help_lists_the_settings_of_a_plugins_evaluator(tool) -> None:
    assert re.search(
        r"probe\.mine\.k +integer, at least 1 +3 +a number to report",
        tool("train_net.py", "--config", DEMO, "--help-config").stdout,
    )


@pytest.mark.slow
def test_two_processes_share_the_extraction_and_give_the_scores_of_one(run, tmp_path) -> None:
    arguments = ["--run", str(run), "--evaluators", "knn", "linear", "logistic", "attentive", *QUICK]
    assert eval_net.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    command = [*launcher, str(ROOT / "tools" / "eval_net.py"), *arguments, "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=300, env=environment, capture_output=True)
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert [record["scores"] for record in one.values()] == [record["scores"] for record in two.values()]
    assert {record["environment"]["world_size"] for record in two.values()} == {2}


def test_a_dry_run_prints_the_cost_of_each_evaluator_and_encodes_nothing(run, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--run", str(run), "--evaluators", "knn", "logistic", "--dry-run", "--world-size", "2"]
    assert eval_net.main([*arguments, "--out", str(tmp_path), "probe.train_samples=96"]) == 0
    printed = capsys.readouterr().out
    assert "96 train and 64 test images, 6 classes" in printed and "ImageNet-1k" in printed
    assert "│ knn       │ 2 " in printed and "│ logistic  │ 8 " in printed
    assert "the network and its random init" in printed and list(tmp_path.iterdir()) == []


def test_a_planned_machine_needs_a_dry_run(run, capsys) -> None:
    with pytest.raises(SystemExit):
        eval_net.main(["--run", str(run), "--evaluators", "knn", "--world-size", "2"])
    assert "--world-size: a machine to plan for; add --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evaluators", "knm"], "Did you mean 'knn'"),
        (["--evaluators", "knn", "--label", "counts"], "Did you mean 'count'"),
        (["--evaluators", "knn", "--checkpoint", "3"], "has last, best and the steps 2, 4"),
        (["--evaluators", "knn", "probe.knn.k=[500]"], "probe.knn.k=[500] on 128 train images"),
        (["--evaluators", "linear", "probe.linear.pooling=class_token"], "no class token"),
        (["--evaluators", "linear", "probe.linear.num_layers=3"], "the encoder has 2 blocks"),
        (["--evaluators", "knn", "probe.knm.k=[5]"], "probe.knm"),
        (
            ["--evaluators", "logistic", "probe.train_samples=1"],
            "all 1 train images are of one class; raise probe.train_samples",
        ),
    ],
)
def test_bad_input_gives_one_line_and_a_nonzero_code(run, tmp_path, capsys, arguments, message) -> None:
    assert eval_net.main(["--run", str(run), *arguments, "--out", str(tmp_path), "--no-baseline"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_weights_of_another_network_or_format_are_refused(run, tmp_path, capsys) -> None:
    arguments = ["--config", str(run / "config.yaml"), "--evaluators", "knn", "--no-cache"]
    save_file({"blocks.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"a": 1}, tmp_path / "weights.pth")
    for file, message in (("other.safetensors", "is of another model"), ("weights.pth", "no safetensors file")):
        assert eval_net.main(["--weights", str(tmp_path / file), *arguments]) == 1
        assert message in capsys.readouterr().err
    assert eval_net.main(["--weights", str(tmp_path / "nowhere"), *arguments]) == 1
    assert "there is no file" in capsys.readouterr().err


def test_images_without_labels_have_no_accuracy_but_health(run, tmp_path, capsys) -> None:
    from PIL import Image

    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(40):
        noise = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
    data = ["data=imagefolder", f"data.path={folder}", "data.test_fraction=0.5"]
    arguments = ["--run", str(run), *data, "--out", str(tmp_path)]
    assert eval_net.main([*arguments, "--evaluators", "knn"]) == 1
    assert "has no labels" in capsys.readouterr().err
    assert eval_net.main([*arguments, "--evaluators", "health", "probe.health.lidar_images=4"]) == 0
    assert "rankme" in capsys.readouterr().out
