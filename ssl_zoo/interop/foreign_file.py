"""Weight files of other projects, read as nested mappings of tensors without executing anything in them."""

import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

# Classes of configurations and bookkeeping that official files hold beside their weights. Each is read as an empty
# stand-in: neither the class nor its module is imported, and no weight is ever in one.
_MAPPINGS = (
    *("argparse.Namespace", "yacs.config.CfgNode", "easydict.EasyDict", "collections.defaultdict"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Enum", "Float", "Integer", "String")),
)
_VALUES = (
    *("typing.Any", "datetime.timedelta", *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list"))),
    *("builtins.str", "builtins.tuple", "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.PosixPath", "numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int64", "UInt32")),
)
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_SAFETENSORS, _PYTORCH = "model.safetensors", "pytorch_model.bin"
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


class ForeignFileError(ValueError):
    """A file that can't be read as weights; the message has the file, the reason and the remedy."""


@dataclass(frozen=True)
class ForeignFile:
    """The content of a file or folder of weights.

    Attributes:
        content: nested mappings; the leaves that are tensors are the weights.
        files: the files that hold the tensors.
        config: ``config.json`` of a folder of Hugging Face or timm, otherwise None.
        preprocessor: its ``preprocessor_config.json``, or its like in timm's; empty where there is none.
    """

    path: Path
    content: Mapping[str, Any]
    files: Sequence[Path]
    config: Mapping[str, Any] | None = None
    preprocessor: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_of_timm(self) -> bool:
        """Return whether it is a folder as ``timm.models.save_for_hf`` writes it."""
        return self.config is not None and "architecture" in self.config


def read_foreign_file(path: Path) -> ForeignFile:
    """Read a file of torch or safetensors, or a folder of Hugging Face or timm.

    Raises:
        ForeignFileError: nothing to read there, damaged, of another kind, or a pickle that needs more than tensors.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ForeignFileError(f"there is no file or folder {path}")
    return ForeignFile(path, _read_tensors(path), [path])


def _read_folder(folder: Path) -> ForeignFile:
    if not (folder / _CONFIG).is_file():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise ForeignFileError(
            f"{folder} has no {_CONFIG}, as a folder of Hugging Face does; it has {found}. Give the file of weights"
        )
    config = _read_json(folder / _CONFIG)
    preprocessor = _read_json(folder / _PREPROCESSOR) if (folder / _PREPROCESSOR).is_file() else {}
    of_timm = config.get("pretrained_cfg", {})
    preprocessor = {f"image_{kind}": of_timm[kind] for kind in ("mean", "std") if kind in of_timm} | preprocessor
    for name in (_SAFETENSORS, _PYTORCH):
        if (folder / name).is_file():
            return ForeignFile(folder, _read_tensors(folder / name), [folder / name], config, preprocessor)
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = _shards(index)
            content = {key: tensor for file in files for key, tensor in _read_tensors(file).items()}
            return ForeignFile(folder, content, files, config, preprocessor)
    raise ForeignFileError(f"{folder} has neither {_SAFETENSORS} nor {_PYTORCH}; download the weights as well")


def _shards(index: Path) -> list[Path]:
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name:
            raise ForeignFileError(f"{index}: {name!r} is no name of a file in the same folder")
        if not (index.parent / name).is_file():
            raise ForeignFileError(f"{index} lists {name}, which is missing; download it as well")
    return [index.parent / name for name in names]


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ForeignFileError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ForeignFileError(f"{path} holds no mapping")
    return content


def _read_tensors(path: Path) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise ForeignFileError(f"{path} is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise ForeignFileError(f"{path} is a pointer of Git LFS, not the weights; fetch them with `git lfs pull`")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ForeignFileError(f"{path} is a web page, not weights; the download was refused or redirected")
    if start[8:9] == b"{":  # a header of JSON after its length in eight bytes
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ForeignFileError(f"{path} is a damaged safetensors file ({error}); download it again") from error
    return _read_torch(path, is_zip=start.startswith(b"PK"))


def _read_torch(path: Path, *, is_zip: bool) -> Mapping[str, Any]:
    stand_ins = [(_IgnoredMapping, name) for name in _MAPPINGS] + [(_IgnoredValue, name) for name in _VALUES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            # Only a zip of torch can be mapped into memory: then no more is read than the weights that are used.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ForeignFileError(_refusal(path, error)) from None  # torch's message advises to read it unsafely
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ForeignFileError(f"{path} can't be read as weights of torch: {_first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise ForeignFileError(f"{path} holds {type(content).__name__}, not a state dict")
    return content


def _refusal(path: Path, error: Exception) -> str:
    needed = _GLOBAL.search(str(error))
    cause = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    reason = f"it refers to {needed[1]}" if needed else cause or "it is no state dict"
    return (
        f"{path} is refused: {reason}, and reading that could execute code. If you trust its origin, load it where "
        'that may happen, save its tensors alone with torch.save({"model": state_dict}, FILE), and import that file'
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].removesuffix(".")


class _IgnoredMapping:
    """Stands in for a configuration: an ordered dict, to which torch adds items and state without calling anything."""

    def __new__(cls, *args: Any) -> OrderedDict:
        return OrderedDict()


class _IgnoredValue:
    """Stands in for a value that is not needed; takes any arguments and state, and runs nothing."""

    def __new__(cls, *args: Any) -> "_IgnoredValue":
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass
