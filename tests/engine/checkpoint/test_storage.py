"""Shards of tensors in safetensors files: which make up full tensors, and which are refused."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import ssl_zoo
from ssl_zoo.engine.checkpoint.storage import CheckpointError, SafetensorsReader, file_name, save_tensors


def write(path: Path, tensors: dict[str, Tensor], shards: dict[str, list[list[int]]] | None = None) -> Path:
    save_file(tensors, path, metadata=None if shards is None else {"pieces": json.dumps(shards)})
    return path


def test_file_names_have_the_rank_that_wrote_them() -> None:
    assert file_name("method", 0, 1) == "method.safetensors"
    assert file_name("optimizer", 2, 8) == "optimizer_00003_of_00008.safetensors"


def test_shards_of_two_files_make_one_tensor(tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors", {"x": torch.zeros(2, 3)}, {"x": [[0, 0], [3, 3]]})
    second = write(tmp_path / "b.safetensors", {"x": torch.ones(1, 3), "y": torch.ones(())}, {"x": [[2, 0], [3, 3]]})
    tensors = SafetensorsReader({"method": [first, second]}).tensors
    assert tensors.keys() == {"method/x", "method/y"}
    assert tensors["method/x"].size == (3, 3) and len(tensors["method/x"].chunks) == 2


@pytest.mark.parametrize(
    ("shards", "reason"),
    [
        ({"x": [[0, 0], [3, 3]]}, "has 6 of its 9 values"),
        ({"x": [[2, 0], [3, 3]]}, "does not fit"),
        ({"x": [[-1, 0], [2, 3]]}, "does not fit"),
        ({"x": [[0], [2]]}, "does not fit"),
        ({"x": "anything"}, "can be read"),
        ([1], "can be read"),
    ],
)
def test_shards_that_make_no_full_tensor_are_refused(tmp_path: Path, shards: object, reason: str) -> None:
    file = write(tmp_path / "a.safetensors", {"x": torch.zeros(2, 3)}, shards)
    with pytest.raises(CheckpointError, match=reason):
        SafetensorsReader({"method": [file]})


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.safetensors", {"x": torch.zeros(2)}) for name in "ab"]
    with pytest.raises(CheckpointError, match="does not fit the others"):
        SafetensorsReader({"method": files})


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_of_other_new_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_every_safetensors_file_of_the_library_is_written_so() -> None:
    calls = [
        path for path in Path(ssl_zoo.__file__).parent.rglob("*.py") if re.search(r"\bsave_file\(", path.read_text())
    ]
    assert [path.name for path in calls] == ["storage.py"]
