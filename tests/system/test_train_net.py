"""tools/train_net.py as users run it: real processes, real signals, real files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tiny_commands import DEMO, ROOT, TINY, children_of, records, wait_for_step

from ssl_zoo.engine.checkpoint.state import hashed_manifest, list_checkpoints
from ssl_zoo.plugins import discover
from ssl_zoo.tools.train_net import main

discover()

TOOL = ROOT / "tools" / "train_net.py"


def run_main(*arguments: str) -> int:
    """Run the tool in this process: fast, for runs of a few steps."""
    return main(["--config", str(DEMO), *TINY, *arguments])


def start(output: Path, *arguments: str, ranks: int = 1, restarts: int = 0) -> subprocess.Popen:
    """Start the tool as a separate process, or as several under torchrun."""
    launcher = [sys.executable]
    if ranks > 1:
        torchrun = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
        launcher += ["-m", "torch.distributed.run", *torchrun]
    command = [*launcher, str(TOOL), "--config", str(DEMO), *TINY, f"output_dir={output}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_five_times_equals_the_uninterrupted_run_line_by_line(tmp_path: Path, ranks: int) -> None:
    finish(start(tmp_path / "undisturbed", ranks=ranks))
    moments = random.Random(ranks)
    for attempt in range(5):
        done = records(tmp_path / "killed")[-1]["step"] if attempt else 0
        process = start(tmp_path / "killed", ranks=ranks)
        wait_for_step(tmp_path / "killed", min(19, done + moments.randint(1, 5)), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(start(tmp_path / "killed", ranks=ranks))
    assert records(tmp_path / "killed") == records(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_run_restarted_by_torchrun_after_losing_a_rank_equals_the_undisturbed_run(tmp_path: Path) -> None:
    settings = ["trainer.num_steps=10", "probe.evaluators=[]"]
    finish(start(tmp_path / "undisturbed", *settings, ranks=2))
    process = start(tmp_path / "restarted", *settings, ranks=2, restarts=2)
    wait_for_step(tmp_path / "restarted", 6, process)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    finish(process)
    assert records(tmp_path / "restarted") == records(tmp_path / "undisturbed")


@pytest.mark.slow
def test_one_and_two_ranks_consume_the_same_samples_and_losses(tmp_path: Path) -> None:
    for ranks in (1, 2):
        finish(start(tmp_path / str(ranks), ranks=ranks))
    for one, two in zip(records(tmp_path / "1"), records(tmp_path / "2"), strict=True):
        assert one.get("samples") == two.get("samples")
        if "loss" in one:
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        else:
            assert one["knn5"] == pytest.approx(two["knn5"], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run_without_a_traceback(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "trainer.num_steps=2000", "trainer.checkpoint_every=2000", "probe.every_steps=0")
    wait_for_step(tmp_path, 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in output
    (checkpoint,) = list_checkpoints(tmp_path)
    assert int(checkpoint.name.removeprefix("step_")) == records(tmp_path)[-1]["step"]
    assert "the same command resumes it" in output


def test_a_finished_run_is_reported_and_not_trained_further(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2") == 0
    before = records(tmp_path)
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2") == 0
    assert records(tmp_path) == before
    first, second = capsys.readouterr().out.split("Trained 2 steps")[1:]
    assert "knn5" in first and "knn5" in second.partition("metrics:")[0]


def test_the_run_directory_is_complete_and_its_config_is_a_recipe(tmp_path: Path) -> None:
    assert run_main(f"output_dir={tmp_path / 'a'}", "trainer.num_steps=2", "monitor.loggers=[jsonl,tensorboard]") == 0
    names = {path.name.partition(".tfevents")[0] for path in (tmp_path / "a").iterdir()}
    files = {"config.yaml", "environment.json", "data.json", "metrics.jsonl", "status.json", "events.out"}
    assert names == {*files, "checkpoints", "figures"}
    environment = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert {"commit", "dirty", "device", "packages", "precision", "world_size"} <= environment.keys()
    again = ["--config", str(tmp_path / "a" / "config.yaml"), f"output_dir={tmp_path / 'b'}"]
    assert main(again) == 0
    assert records(tmp_path / "b") == records(tmp_path / "a")


def test_probes_do_not_change_the_training(tmp_path: Path) -> None:
    for name, every in (("on", 1), ("off", 0)):
        probe = [f"probe.every_steps={every}", f"probe.at_start={str(every > 0).lower()}", "probe.at_end=false"]
        assert run_main(f"output_dir={tmp_path / name}", "trainer.num_steps=3", *probe) == 0
    losses = {name: [r["loss"] for r in records(tmp_path / name) if "loss" in r] for name in ("on", "off")}
    assert losses["on"] == losses["off"] and len(losses["on"]) == 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two classes of one 3-pixel image each."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (3, 3)).save(tmp_path / "images" / name / "tiny.png")
    return tmp_path / "images"


BAD_INPUT = {
    "unknown key": (["method.predicter.depth=4"], ["method.predictor_depth"]),
    "wrong type": (["masks.target_scale=abc"], ["masks.target_scale", "number"]),
    "unknown option": (["backbone=vit_lrage"], ["vit_large"]),
    "patch size that does not divide": (
        ["backbone.patch_size=5"],
        ["backbone.image_size=32", "patch_size=5", "30, 35"],
    ),
    "impossible masks": (["masks.min_patches=50"], ["masks.min_patches"]),
    "batch that does not divide": (["trainer.gradient_accumulation_steps=3"], ["trainer.batch_size=16", "15, 18"]),
    "cuda without a device": (["trainer.device=cuda"], ["trainer.device=auto"]),
    "missing plug-in": (["--plugin", "no_such_plugin.py"], ["no_such_plugin.py"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_clear_error(case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if case == "cuda without a device" and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    arguments, hints = BAD_INPUT[case]
    assert run_main(f"output_dir={tmp_path}", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    for hint in hints:
        assert hint in error
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_the_plan_for_another_machine_gives_both_layouts(capsys: pytest.CaptureFixture) -> None:
    assert run_main("--dry-run", "--world-size", "4", "--device-memory", "80GB") == 0
    output = capsys.readouterr().out
    for expected in ("FSDP2 fits", "DDP fits", "all-gather of parameters", "tokens per step, encoder", "hours"):
        assert expected in output


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--dry-run", "--device-memory", "80 bytes"], "--device-memory 80 bytes"),
        (["--dry-run", "--world-size", "5"], "trainer.batch_size=16 is no multiple of 5 ranks"),
    ],
)
def test_a_world_size_that_does_not_divide_the_batch_is_refused(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture
) -> None:
    assert run_main(*arguments) == 1
    assert hint in capsys.readouterr().err


def test_a_planned_machine_needs_a_dry_run(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run_main("--world-size", "4")
    assert "--world-size: a machine to plan for; add --dry-run" in capsys.readouterr().err


def test_a_missing_recipe_is_reported_with_the_nearest_name(capsys: pytest.CaptureFixture) -> None:
    assert main(["--config", str(DEMO.with_name("demmo.yaml"))]) == 1
    error = capsys.readouterr().err
    assert "demmo.yaml" in error and "demo.yaml" in error


def test_data_without_a_path_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny = [setting for setting in TINY if not setting.startswith("data.")]
    assert main(["--config", str(DEMO), *tiny, "data=imagenet1k", f"output_dir={tmp_path}"]) == 1
    assert "data.root" in capsys.readouterr().err


def test_an_empty_data_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    assert _from_folder(tmp_path, tmp_path / "empty") == 1
    assert str(tmp_path / "empty") in capsys.readouterr().err


def test_three_pixel_images_are_refused_with_their_size(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _from_folder(tmp_path, folder) == 1
    error = capsys.readouterr().err
    assert "tiny.png" in error and "3x3" in error


def _from_folder(tmp_path: Path, folder: Path) -> int:
    tiny = [setting for setting in TINY if not setting.startswith("data.")]
    data = ["data=imagefolder", f"data.path={folder}", f"output_dir={tmp_path / 'run'}", "probe.evaluators=[]"]
    return main(["--config", str(DEMO), *tiny, *data])


def test_a_damaged_checkpoint_is_never_a_silent_restart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=4", "trainer.checkpoint_every=2") == 0
    weights = list_checkpoints(tmp_path)[-1] / "method.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    before = (tmp_path / "metrics.jsonl").read_text()
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=4", "trainer.checkpoint_every=2") == 1
    error = capsys.readouterr().err
    assert "method.safetensors has 1000 bytes" in error and "--resume" in error and "step_00000002" in error
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_checkpoint_with_other_settings_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2") == 0
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2", "backbone.depth=1", "seed=3") == 1
    error = capsys.readouterr().err
    assert (
        "backbone.depth: 2 in the checkpoint, 1 in this run" in error
        and "seed: 0 in the checkpoint, 3 in this run" in error
    )


def test_a_collapse_stops_the_run_with_its_reason_and_the_run_can_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    limits = ["monitor.alarm.patience=2", "monitor.alarm.limits={target_cosine: 0}", "trainer.num_steps=3"]
    assert run_main(f"output_dir={tmp_path}", *limits, "monitor.alarm.policy=stop") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: collapse at step 2: ") and "monitor.alarm.policy=warn" in error
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002"]
    assert run_main(f"output_dir={tmp_path}", *limits) == 0
    assert records(tmp_path)[-1]["step"] == 3


def test_settings_without_effect_on_results_may_change_on_resume(tmp_path: Path) -> None:
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2") == 0
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2", "trainer.keep_checkpoints=9") == 0


def test_a_run_of_a_version_without_a_key_resumes_with_its_default(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2") == 0
    manifest = list_checkpoints(tmp_path)[-1] / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sha256"], content["config"]["optim"]["milestones"]
    manifest.write_text(hashed_manifest(content))
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2", "optim.milestones=[7]") == 1
    assert "optim.milestones: [] in the checkpoint, [7.0] in this run" in capsys.readouterr().err
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2") == 0


def test_never_resuming_does_not_overwrite_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2") == 0
    assert run_main(f"output_dir={tmp_path}", "trainer.num_steps=2", "--resume", "never") == 1
    assert "--resume never would overwrite" in capsys.readouterr().err


def test_resuming_from_a_path_continues_in_another_directory(tmp_path: Path) -> None:
    settings = ["trainer.num_steps=4", "trainer.checkpoint_every=2"]
    assert run_main(f"output_dir={tmp_path / 'a'}", *settings) == 0
    middle = list_checkpoints(tmp_path / "a")[0]
    assert run_main(f"output_dir={tmp_path / 'b'}", *settings, "--resume", str(middle)) == 0
    assert records(tmp_path / "b") == [r for r in records(tmp_path / "a") if r["step"] > 2]
    assert main(["--config", str(DEMO), *TINY, f"output_dir={tmp_path / 'c'}", "--resume", str(tmp_path / "no")]) == 1


def test_a_run_resumes_from_an_earlier_checkpoint_of_its_own(tmp_path: Path) -> None:
    settings = ["trainer.num_steps=4", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=2"]
    assert run_main(f"output_dir={tmp_path}", *settings) == 0
    complete, (earlier, newest) = records(tmp_path), list_checkpoints(tmp_path)
    (newest / "manifest.json").write_text("{")
    assert run_main(f"output_dir={tmp_path}", *settings, "--resume", str(earlier)) == 0
    assert records(tmp_path) == complete and list_checkpoints(tmp_path) == [earlier, newest]
    assert (newest / "manifest.json").read_text() != "{"
    assert [path.name for path in (tmp_path / "checkpoints" / "replaced").iterdir()] == [newest.name]


@pytest.mark.parametrize("recipe", ["vith14", "vitl16", "vitg16_in22k", "demo"])
def test_a_dry_run_plans_without_data_or_weights(recipe: str, capsys: pytest.CaptureFixture) -> None:
    started = time.monotonic()
    assert main(["--config", str(DEMO.with_name(f"{recipe}.yaml")), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "FLOPs per image" in output and "images per micro-batch" in output and "context patches" in output
    assert time.monotonic() - started < 60


def test_help_config_explains_every_key(capsys: pytest.CaptureFixture) -> None:
    assert main(["--config", str(DEMO), "--help-config"]) == 0
    output = capsys.readouterr().out
    for key in ("method.predictor_depth", "masks.target_scale", "optim.lr", "trainer.batch_size"):
        assert key in output
