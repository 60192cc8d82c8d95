"""Reading of foreign files: tensors are found in every container, and nothing in a file is executed."""

import argparse
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssl_zoo.interop.foreign_file import ForeignFileError, read_foreign_file
from ssl_zoo.interop.layouts import flat_tensors

FORMATS = {"zip": True, "legacy": False}  # of torch.save


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path, function: Any) -> None:
        self.canary, self.function = canary, function

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.function, (
            f"touch {self.canary}" if self.function is os.system else f"open({str(self.canary)!r},'w')",
        )


PLACES = {
    "the file itself": lambda payload: payload,
    "a value beside the weights": lambda payload: {"model": {"w": torch.ones(2)}, "epoch": payload},
    "a configuration": lambda payload: {"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=payload)},
    "a weight": lambda payload: {"model": {"w": payload}},
    "a key": lambda payload: {"model": {"w": torch.ones(2)}, "list": [(payload,)]},
    "a default dict": lambda payload: {"model": {"w": torch.ones(2)}, "state": defaultdict(list, a=payload)},
}


@pytest.mark.parametrize("is_zip", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("function", [os.system, eval, exec], ids=["os.system", "eval", "exec"])
def test_a_payload_is_refused_by_name_and_not_executed(tmp_path: Path, function: Any, place: str, is_zip: bool) -> None:
    payload = PLACES[place](Payload(tmp_path / "CANARY", function))
    torch.save(payload, tmp_path / "weights.pth", _use_new_zipfile_serialization=is_zip)
    name = "posix.system" if function is os.system else function.__name__
    with pytest.raises(ForeignFileError, match=f"refers to {name}, and reading that could execute code"):
        read_foreign_file(tmp_path / "weights.pth")
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_payload_in_a_pickle_of_another_protocol_is_refused(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps({"w": Payload(tmp_path / "CANARY", os.system)}, protocol=protocol)
        (tmp_path / "weights.pt").write_bytes(content)
        with pytest.raises(ForeignFileError):
            read_foreign_file(tmp_path / "weights.pt")
    assert not (tmp_path / "CANARY").exists()


def test_a_payload_in_the_first_tar_format_of_torch_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "weights.pth.tar", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Payload(tmp_path / "CANARY", os.system), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(ForeignFileError):
        read_foreign_file(tmp_path / "weights.pth.tar")
    assert not (tmp_path / "CANARY").exists()


def test_a_payload_in_a_folder_of_hugging_face_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    torch.save({"w": Payload(tmp_path / "CANARY", os.system)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ForeignFileError, match=r"posix\.system"):
        read_foreign_file(tmp_path)
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("is_zip", FORMATS.values(), ids=FORMATS)
def test_configurations_and_numpy_values_beside_the_weights_are_ignored(tmp_path: Path, is_zip: bool) -> None:
    content = {
        "model": {"w": torch.ones(2)},
        "args": argparse.Namespace(lr=0.1, inner=argparse.Namespace(path=Path("/x"))),
        "best": np.float64(0.5),
        "history": np.arange(3),
        "random_state": np.random.get_state(),
        "counts": defaultdict(int, a=1),
    }
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=is_zip)
    tensors, _ = flat_tensors(read_foreign_file(tmp_path / "weights.pth").content)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"w": [1.0, 1.0]}


def test_no_third_party_class_of_a_configuration_is_imported(tmp_path: Path) -> None:
    """A CfgNode of yacs, which is not installed, is pickled as its class by name, with items and state."""
    by_name = (
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01cyacs.config\nCfgNode\nq\x02)\x81q\x03X\x01\x00\x00\x00bq\x04K\x01s}q\x05"
        b"X\x01\x00\x00\x00cq\x06K\x02sbu."
    )
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("archive/data.pkl", by_name)
        archive.writestr("archive/version", "3\n")
    assert read_foreign_file(tmp_path / "weights.pth").content == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"PK\x03\x04 truncated", "can't be read as weights of torch"),
        (b"\x00" * 8 + b"{truncated", "damaged safetensors"),
        (b"\x80\x02garbage", "can't be read|is refused"),
        (b"text", "can't be read|is refused"),
    ],
)
def test_a_file_that_is_no_weights_is_refused_with_the_reason(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ForeignFileError, match=message):
        read_foreign_file(tmp_path / "weights.pth")


def test_a_missing_path_and_a_folder_without_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match="there is no file or folder"):
        read_foreign_file(tmp_path / "missing.pth")
    (tmp_path / "weights.pth").touch()
    with pytest.raises(ForeignFileError, match=r"has no config\.json.* it has weights\.pth"):
        read_foreign_file(tmp_path)


def test_the_shards_of_a_folder_are_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for number in range(2):
        save_file({f"w{number}": torch.full((2,), number)}, tmp_path / f"model-{number}.safetensors")
    index = {"weight_map": {"w0": "model-0.safetensors", "w1": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_foreign_file(tmp_path).content.keys() == {"w0", "w1"}
    index["weight_map"]["w1"] = "../model-1.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ForeignFileError, match="is no name of a file in the same folder"):
        read_foreign_file(tmp_path)


def test_a_tensor_that_claims_more_values_than_the_file_holds_is_refused() -> None:
    with pytest.raises(ForeignFileError, match="holds fewer values"):
        flat_tensors({"model": {"w": torch.ones(1).expand(1_000_000, 1_000)}})


def test_wrappers_and_containers_are_removed_and_the_optimizer_is_left_out() -> None:
    state = {"module._orig_mod.blocks.0.w": torch.ones(1)}
    tensors, num_skipped = flat_tensors({"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}})
    assert (set(tensors), num_skipped) == ({"blocks.0.w"}, 1)
