"""Inspection of a run directory without the engine's own code: metrics, checkpoints, differences."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_TIMING = {"images_per_second", "data_wait", "memory_bytes"}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Read the complete records of ``metrics.jsonl``, without the keys that depend on the clock."""
    path, records = run / "metrics.jsonl", []
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else []:
        if line.endswith("\n"):
            records.append({key: value for key, value in json.loads(line).items() if key not in _TIMING})
    return records


def checkpoints(run: Path) -> list[Path]:
    """List the published checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Parse the step from a checkpoint's folder name, published or hidden."""
    return int(checkpoint.name.lstrip(".").removeprefix("step_"))


def unfinished(run: Path) -> list[Path]:
    """List the folders of unpublished saves, without those that are being removed, which end in ``.removed``."""
    return [path for path in (run / "checkpoints").glob(".step_*") if path.suffix != ".removed"]


def files(checkpoint: Path) -> list[Path]:
    """List the files in a checkpoint's manifest."""
    return [checkpoint / name for name in json.loads((checkpoint / "manifest.json").read_text())["files"]]


def damage(checkpoint: Path) -> str | None:
    """Describe the first difference between a checkpoint and its manifest; None if it is valid."""
    try:
        expected = json.loads((checkpoint / "manifest.json").read_text())["files"]
    except (OSError, ValueError) as error:
        return f"{checkpoint}: {error}"
    for name, info in expected.items():
        if not (checkpoint / name).is_file():
            return f"{checkpoint / name} is missing"
        if hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() != info["sha256"]:
            return f"{checkpoint / name} does not match its SHA-256"
    return None


def difference(run: Path, reference: Path) -> str | None:
    """Describe the first difference from a reference run; None if records and last tensors have equal bits."""
    records, expected = metrics(run), metrics(reference)
    if [record["step"] for record in records] != [record["step"] for record in expected]:
        return f"steps {[record['step'] for record in records]} are logged"
    for record, other in zip(records, expected, strict=True):
        if record != other:
            keys = [key for key in other if record.get(key) != other[key]]
            return f"step {other['step']}: {', '.join(keys)} differ"
    last, last_expected = checkpoints(run)[-1], checkpoints(reference)[-1]
    if last.name != last_expected.name:
        return f"the last checkpoint is {last.name}, not {last_expected.name}"
    tensors, others = _tensors(last), _tensors(last_expected)
    if tensors.keys() != others.keys():
        return f"{last} has other tensors: {sorted(tensors.keys() ^ others.keys())[:3]}"
    for name, tensor in tensors.items():
        if not torch.equal(_bits(tensor), _bits(others[name])):
            return f"{last}: {name} differs"
    return None


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}:{name}": tensor
        for path in files(checkpoint)
        if path.suffix == ".safetensors"
        for name, tensor in load_file(path).items()
    }


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
