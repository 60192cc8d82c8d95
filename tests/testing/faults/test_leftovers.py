"""The check of a survived fault detects a single bit."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import tiny_trainer

from ssl_zoo.testing.faults.leftovers import checkpoints, damage, difference, files, unfinished


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reference")
    tiny_trainer(run, num_steps=3, checkpoint_every=1).train()
    return run


@pytest.fixture
def run(reference: Path, tmp_path: Path) -> Path:
    return shutil.copytree(reference, tmp_path / "run")


def flip_last_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_run_equals_itself_and_its_repetition(reference: Path, tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=3, checkpoint_every=1).train()
    assert difference(tmp_path, reference) is None


def test_one_bit_of_one_tensor_is_detected(reference: Path, run: Path) -> None:
    [weights] = [file for file in files(checkpoints(run)[-1]) if file.name == "method.safetensors"]
    flip_last_bit(weights)
    assert difference(run, reference).endswith("differs") and "does not match its SHA-256" in damage(
        checkpoints(run)[-1]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "steps [1, 2] are logged"),
        (lambda lines: [lines[0], lines[0], *lines[2:]], "steps [1, 1, 3] are logged"),
        (lambda lines: [json.dumps({**json.loads(lines[0]), "loss": 0.1}), *lines[1:]], "step 1: loss differ"),
    ],
)
def test_another_record_is_detected(reference: Path, run: Path, change, message: str) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in change(lines)))
    assert difference(run, reference) == message


def test_a_missing_file_or_manifest_is_damage(run: Path) -> None:
    newest = checkpoints(run)[-1]
    assert damage(newest) is None
    files(newest)[0].unlink()
    assert "is missing" in damage(newest)
    (newest / "manifest.json").unlink()
    assert "manifest.json" in damage(newest)


def test_an_earlier_end_and_an_unfinished_save_are_detected(reference: Path, run: Path) -> None:
    newest = checkpoints(run)[-1]
    newest.rename(newest.with_name(f".{newest.name}"))
    assert difference(run, reference) == "the last checkpoint is step_00000002, not step_00000003"
    (newest.parent / ".step_00000001.removed").mkdir()
    assert [path.name for path in unfinished(run)] == [".step_00000003"]
