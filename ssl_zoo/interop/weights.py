"""Weights to share: one safetensors file a network, with what is needed to use and check them."""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

import ssl_zoo
from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.engine.trained import TrainedMethod, encoders
from ssl_zoo.io import publish_directory
from ssl_zoo.method import Method

_PACKAGES = ("torch", "timm", "safetensors")


def predictor(method: Method) -> Mapping[str, Tensor]:
    """What a method holds beside its encoders, e.g. ``predictor.blocks.0...`` or ``head.weight``."""
    networks = {*encoders(method).values()}
    others = tuple(f"{name}." for name, module in method.named_modules() if module in networks)
    return {name: tensor for name, tensor in method.state_dict().items() if not name.startswith(others)}


def export_weights(trained: TrainedMethod, out: Path, *, name: str, config: Mapping[str, Any]) -> list[Path]:
    """Write the networks and ``manifest.json`` into a new folder, which is whole or not there; returns the paths.

    Args:
        name: of the method.
        config: the run's, as plain values.

    Raises:
        ValueError: ``out`` exists.
    """
    if out.exists():
        raise ValueError(f"--out {out} exists; name a folder that does not")
    temporary = out.with_name(f".{out.name}.unfinished")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    named, files = encoders(trained.method), {}
    parts = {part: network.state_dict() for part, network in named.items()} | {"predictor": predictor(trained.method)}
    for part, tensors in parts.items():
        if tensors:
            file = temporary / f"{part}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata={"format": "pt"})
            files[file.name] = {**fingerprint(file), "values": sum(tensor.numel() for tensor in tensors.values())}
    manifest = {
        "method": name,
        "step": trained.step,
        "checkpoint": trained.checkpoint.name,
        "evaluated": next(part for part, network in named.items() if network is trained.method.eval_encoder()),
        "versions": {"ssl_zoo": ssl_zoo.__version__, **{package: version(package) for package in _PACKAGES}},
        "files": files,
        "config": config,
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    publish_directory(temporary, out)
    return sorted(out.iterdir())
