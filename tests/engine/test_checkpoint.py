"""Checkpoints: whole, verified, or refused with a remedy."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import ALONE, checkpointer_of, tiny_trainer

from ssl_zoo.engine.checkpoint import (
    CheckpointError,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    restore,
    sealed,
)
from ssl_zoo.engine.saving import Saver
from ssl_zoo.engine.storage import fingerprint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    tiny_trainer(run, num_steps=4, checkpoint_every=2).train()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", f"{finished}/.", str(tmp_path)], check=True)
    return tmp_path


def reseal(checkpoint: Path, **changes: object) -> None:
    """Make the manifest fit what is in the folder, as somebody would who means to deceive."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"] |= {name: fingerprint(checkpoint / name) for name in manifest["files"]}
    (checkpoint / "manifest.json").write_text(sealed({**manifest, **changes}))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=5, checkpoint_every=1, keep_checkpoints=2).train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000004", "step_00000005"]


@pytest.mark.parametrize("name", ["method.safetensors", "optimizer.safetensors", "state.json"])
def test_a_truncated_file_is_refused_with_the_previous_checkpoint_as_remedy(run: Path, name: str) -> None:
    newest = list_checkpoints(run)[-1]
    with open(newest / name, "r+b") as file:
        file.truncate((newest / name).stat().st_size // 2)
    with pytest.raises(CheckpointError, match=rf"damaged: {name} has \d+ bytes.*--resume .*step_00000002"):
        read_checkpoint(newest)


def test_a_flipped_bit_is_refused(run: Path) -> None:
    newest = list_checkpoints(run)[-1]
    with open(newest / "method.safetensors", "r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(newest)


def test_a_missing_file_or_manifest_is_refused(run: Path) -> None:
    newest = list_checkpoints(run)[-1]
    (newest / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state.json is missing"):
        read_checkpoint(newest)
    (newest / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        read_checkpoint(newest)
    (newest / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no manifest.json"):
        read_checkpoint(newest)


def test_a_checkpoint_of_another_model_changes_nothing(run: Path) -> None:
    trainer = tiny_trainer(run / "other")
    newest = list_checkpoints(run)[-1]
    tensors = load_file(newest / "method.safetensors")
    tensors["encoder.norm.weight"] = torch.ones(7)
    del tensors["encoder.norm.bias"]
    save_file(tensors, newest / "method.safetensors")
    reseal(newest)
    before = trainer.method.encoder.norm.weight.clone()
    with pytest.raises(CheckpointError, match=r"encoder.norm.bias is missing; .*\[7\] there, \[48\] here"):
        restore(read_checkpoint(newest), trainer.method, trainer.optimization.optimizer)
    assert torch.equal(trainer.method.encoder.norm.weight, before)


def test_the_manifest_tells_step_method_and_config(run: Path) -> None:
    manifest = json.loads((list_checkpoints(run)[-1] / "manifest.json").read_text())
    assert manifest["step"] == 4 and manifest["method"] == "ijepa" and "config" in manifest


def test_a_folder_left_by_a_killed_save_is_ignored_and_removed(run: Path) -> None:
    leftover = run / "checkpoints" / ".step_00000005"
    leftover.mkdir()
    (leftover / "method.safetensors").write_bytes(b"half")
    assert [path.name for path in list_checkpoints(run)] == ["step_00000002", "step_00000004"]
    trainer = tiny_trainer(run, num_steps=5)
    checkpointer_of(trainer).resume(trainer, read_checkpoint(list_checkpoints(run)[-1]))
    trainer.train()
    assert not leftover.exists() and list_checkpoints(run)[-1].name == "step_00000005"


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_a_loadable_newest_checkpoint(tmp_path: Path) -> None:
    script = (
        "import sys, itertools, pathlib, torch\n"
        "from ssl_zoo.engine.distributed import Processes\n"
        "from ssl_zoo.engine.saving import Saver\n"
        "method = torch.nn.Linear(600, 600)\n"
        "optimizer = torch.optim.SGD(method.parameters())\n"
        "ranks = Processes(0, 1, torch.device('cpu'))\n"
        "saver = Saver(pathlib.Path(sys.argv[1]), ranks, keep=2, in_background=True)\n"
        "for step in itertools.count(1):\n"
        "    saver.save(step, method, optimizer, {}, {})\n"
        "    print(step, flush=True)\n"
    )
    root = Path(__file__).resolve().parents[2]
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
        )
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        newest = list_checkpoints(tmp_path)[-1]
        assert read_checkpoint(newest).step == int(newest.name.removeprefix("step_"))


def test_saving_over_nothing_but_a_missing_parent_works(tmp_path: Path) -> None:
    method = torch.nn.Linear(2, 2)
    Saver(tmp_path / "a" / "b", ALONE).save(1, method, torch.optim.SGD(method.parameters()), {}, {})
    assert load_file(checkpoint_path(tmp_path / "a" / "b", 1) / "method.safetensors").keys() == {"weight", "bias"}
