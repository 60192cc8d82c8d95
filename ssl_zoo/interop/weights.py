"""Weights as safetensors: one file per network of a method."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ssl_zoo.engine.checkpoint.storage import save_tensors
from ssl_zoo.engine.trained import encoders
from ssl_zoo.method import Method


def predictor(method: Method) -> Mapping[str, Tensor]:
    """Return a method's weights outside of its encoders, e.g. ``predictor.blocks.0...`` or ``head.weight``."""
    networks = {*encoders(method).values()}
    others = tuple(f"{name}." for name, module in method.named_modules() if module in networks)
    return {name: tensor for name, tensor in method.state_dict().items() if not name.startswith(others)}


def write_networks(method: Method, folder: Path) -> None:
    """Write ``encoder``, ``target_encoder`` and ``predictor.safetensors``, those that the method has."""
    networks = {name: network.state_dict() for name, network in encoders(method).items()}
    for name, tensors in {**networks, "predictor": predictor(method)}.items():
        if tensors:
            contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_tensors(contiguous, folder / f"{name}.safetensors", metadata={"format": "pt"})
