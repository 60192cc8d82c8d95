"""Checkpoints are complete and verified, or refused with a remedy."""

import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import ALONE, checkpointer_of, tiny_trainer

from ssl_zoo.engine.checkpoint.folders import checkpoint_path, list_checkpoints, step_of
from ssl_zoo.engine.checkpoint.saver import Saver
from ssl_zoo.engine.checkpoint.state import (
    CheckpointError,
    hashed_manifest,
    read_checkpoint,
    restore,
)
from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.engine.distributed import concerns_another_rank
from ssl_zoo.engine.settings import TrainerConfig
from ssl_zoo.engine.trainer import Hook, StepResult, Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    tiny_trainer(run, num_steps=4, checkpoint_every=2).train()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", f"{finished}/.", str(tmp_path)], check=True)
    return tmp_path


def forge_manifest(checkpoint: Path, **changes: object) -> None:
    """Make the manifest match the files in the folder, as an attacker would."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"] |= {name: fingerprint(checkpoint / name) for name in manifest["files"]}
    (checkpoint / "manifest.json").write_text(hashed_manifest({**manifest, **changes}))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=5, checkpoint_every=1, keep_checkpoints=2).train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000004", "step_00000005"]


def test_keep_every_keeps_checkpoints_permanently(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=5, checkpoint_every=1, keep_checkpoints=1, keep_every=2).train()
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [2, 4, 5]
    with pytest.raises(ValueError, match=r"keep_every=3 is no multiple of trainer.checkpoint_every=2"):
        TrainerConfig(checkpoint_every=2, keep_every=3)


def test_a_checkpoint_written_in_the_background_has_the_bits_of_its_step(tmp_path: Path) -> None:
    for name, in_background in (("background", True), ("waiting", False)):
        settings = {"num_steps": 4, "checkpoint_every": 1, "keep_checkpoints": 4, "async_checkpoints": in_background}
        tiny_trainer(tmp_path / name, **settings).train()
    for step in range(1, 5):
        for file in ("method.safetensors", "optimizer.safetensors"):
            background, waiting = (checkpoint_path(tmp_path / name, step) / file for name in ("background", "waiting"))
            assert background.read_bytes() == waiting.read_bytes()


@contextmanager
def disk_to_fill() -> Iterator[Callable[[], None]]:
    """Yield a function after whose call every file is limited to 20 kB, as on a full disk.

    The limit ends with the block, since the file of pytest's own output may be larger.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_full_disk_ends_the_run_and_leaves_the_other_checkpoints(
    tmp_path: Path, in_background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Filling(Hook):
        name = "filling"

        def after_step(self, trainer: Trainer, result: StepResult) -> None:
            if trainer.step == 3:
                while not list_checkpoints(tmp_path):
                    time.sleep(0.01)
                fill_disk()

    trainer = tiny_trainer(tmp_path, hooks=[Filling()], checkpoint_every=2, async_checkpoints=in_background)
    message = r"step_00000004 could not be .*complete one is .*step_00000002\. Make"
    with disk_to_fill() as fill_disk, pytest.raises(CheckpointError, match=message):
        trainer.train()
    assert "could not be written" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    assert read_checkpoint(list_checkpoints(tmp_path)[-1]).step == 2


def test_a_save_that_loses_a_rank_reports_the_rank_and_not_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 6000ms for recv")

    monkeypatch.setattr(torch.distributed.checkpoint, "save", lost)
    with pytest.raises(RuntimeError, match="Timed out waiting 6000ms"):
        tiny_trainer(tmp_path, num_steps=2, checkpoint_every=1).train()
    assert concerns_another_rank(RuntimeError("Connection closed by peer"))
    assert not concerns_another_rank(CheckpointError("the loader timed out"))


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


def test_a_flipped_bit_anywhere_in_the_manifest_is_refused(run: Path) -> None:
    file = list_checkpoints(run)[-1] / "manifest.json"
    content = file.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"step_00000004"):
            read_checkpoint(file.parent)


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one_and_replaces_it(run: Path) -> None:
    earlier, newest = list_checkpoints(run)
    (newest / "method.safetensors").write_bytes(b"")
    trainer = tiny_trainer(run, num_steps=4, checkpoint_every=2)
    checkpointer_of(trainer).resume(trainer, read_checkpoint(earlier))
    trainer.train()
    assert list_checkpoints(run) == [earlier, newest]
    assert read_checkpoint(newest).step == 4


@pytest.mark.parametrize("name", ["../state.json", "/etc/hostname", "link.json", "folder"])
def test_links_and_paths_in_a_manifest_are_refused(run: Path, name: str) -> None:
    newest = list_checkpoints(run)[-1]
    (newest / "link.json").symlink_to(newest / "state.json")
    (newest / "folder").mkdir()
    (newest.parent / "state.json").write_text("{}")
    files = json.loads((newest / "manifest.json").read_text())["files"]
    forge_manifest(newest, files={**files, name: files["state.json"]})
    with pytest.raises(CheckpointError, match=re.escape(name)):
        read_checkpoint(newest)


def test_a_pickle_under_the_name_of_a_checkpoint_is_not_executed(run: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(run / "executed"),)

    newest = list_checkpoints(run)[-1]
    (newest / "method.safetensors").write_bytes(pickle.dumps({"encoder.norm.weight": Payload()}))
    forge_manifest(newest)
    with pytest.raises(CheckpointError, match=r"method.safetensors holds no tensors that can be read"):
        read_checkpoint(newest)
    assert not (run / "executed").exists()


def test_checkpoints_of_the_first_format_are_read(run: Path) -> None:
    newest = list_checkpoints(run)[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["sha256"]
    (newest / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    trainer = tiny_trainer(run, num_steps=5)
    checkpointer_of(trainer).resume(trainer, read_checkpoint(newest))
    tensors = load_file(newest / "method.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in trainer.method.state_dict().items())
    trainer.train()
    assert [step_of(path) for path in list_checkpoints(run)] == [2, 4, 5]


def test_a_checkpoint_of_another_model_changes_nothing(run: Path) -> None:
    trainer = tiny_trainer(run / "other")
    newest = list_checkpoints(run)[-1]
    tensors = load_file(newest / "method.safetensors")
    tensors["encoder.norm.weight"] = torch.ones(7)
    del tensors["encoder.norm.bias"]
    save_file(tensors, newest / "method.safetensors")
    forge_manifest(newest)
    before = trainer.method.encoder.norm.weight.clone()
    with pytest.raises(CheckpointError, match=r"encoder.norm.bias is missing; .*shape \[7\], this model \[48\]"):
        restore(read_checkpoint(newest), trainer.method, trainer.optimization.optimizer)
    assert torch.equal(trainer.method.encoder.norm.weight, before)


def test_the_manifest_has_step_method_and_config(run: Path) -> None:
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
        "from ssl_zoo.engine.checkpoint.saver import Saver\n"
        "method = torch.nn.Linear(600, 600)\n"
        "optimizer = torch.optim.SGD(method.parameters())\n"
        "ranks = Processes(0, 1, torch.device('cpu'))\n"
        "saver = Saver(pathlib.Path(sys.argv[1]), ranks, keep=2, in_background=True)\n"
        "for step in itertools.count(1):\n"
        "    saver.save(step, method, optimizer, {}, {})\n"
        "    print(step, flush=True)\n"
    )
    root = Path(__file__).resolve().parents[3]
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


def test_saving_creates_missing_parent_folders(tmp_path: Path) -> None:
    method = torch.nn.Linear(2, 2)
    Saver(tmp_path / "a" / "b", ALONE).save(1, method, torch.optim.SGD(method.parameters()), {}, {})
    assert load_file(checkpoint_path(tmp_path / "a" / "b", 1) / "method.safetensors").keys() == {"weight", "bias"}
