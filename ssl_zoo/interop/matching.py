"""Comparison of imported networks with those of a method here: what is missing, unknown or of another shape."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ssl_zoo.interop.networks import ENCODERS, PREDICTOR
from ssl_zoo.interop.weights import predictor
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.nn import ViTConfig
from ssl_zoo.targets import TARGETS

_SHOWN = 6  # names per reason


def expected_networks(
    method: str,
    settings: Mapping[str, Any],
    backbone: ViTConfig,
    found: Iterable[str],
    targets: Mapping[str, Any] = MappingProxyType({}),
    device: str = "meta",
) -> Mapping[str, Mapping[str, Tensor]]:
    """Return the networks that a method has as initialised with seed 0; on the meta device, names and shapes alone."""
    built = built_method(method, settings, backbone, targets, device)
    encoder = built.encoder.state_dict()
    return {name: encoder if name in ENCODERS else predictor(built) for name in found}


def built_method(
    method: str, settings: Mapping[str, Any], backbone: ViTConfig, targets: Mapping[str, Any], device: str
) -> Method:
    """Build a method with its default kind of targets."""
    cls = METHODS.get(method)
    target = None if cls.default_targets is None else TARGETS.config_of(cls.default_targets)(**targets)
    return build_method(METHODS.config_of(method)(**settings), backbone, target, seed=0, device=device)


def fits(tensor: Tensor, expected: Tensor) -> bool:
    return tensor.shape == expected.shape and tensor.is_floating_point() == expected.is_floating_point()


def compared(
    found: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Mapping[str, Tensor]]
) -> tuple[list[str], dict[str, list[str]]]:
    """Return what is unknown or of another shape, in words, and the names that are missing by network."""
    problems, missing = [], {}
    for network, tensors in found.items():
        wanted = expected[network]
        problems += [f"{network}: {name} is unknown" for name in tensors if name not in wanted]
        problems += [
            f"{network}: {name} has {_kind(tensor)}, not {_kind(wanted[name])}"
            for name, tensor in tensors.items()
            if name in wanted and not fits(tensor, wanted[name])
        ]
        if lacking := [name for name in wanted if name not in tensors and not _derived(name)]:
            missing[network] = lacking
    return problems, missing


def _kind(tensor: Tensor) -> str:
    return f"shape {list(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")


def absent_modules(found: Mapping[str, Mapping[str, Tensor]], missing: dict[str, list[str]]) -> list[str]:
    """Remove modules beside the encoders from ``missing`` of which the file has no tensor at all, and return them."""
    there = {name.partition(".")[0] for name in found.get(PREDICTOR, ())}
    lacking = missing.pop(PREDICTOR, [])
    if broken := [name for name in lacking if name.partition(".")[0] in there]:
        missing[PREDICTOR] = broken
    return sorted({name.partition(".")[0] for name in lacking} - there)


def _derived(name: str) -> bool:
    """Whether a tensor outside the encoders follows from others, and official files do not have it."""
    return name.endswith("relative_position_index")


def mismatch(path: Path, method: str, problems: Sequence[str], missing: Mapping[str, Sequence[str]]) -> str:
    listed = [f"{network} lacks {few(names)}" for network, names in missing.items()]
    listed += [few(problems)] if problems else []
    return (
        f"{path}, read as {method}, does not match: {'; '.join(listed)}. Pass --as METHOD if it is of another, "
        "--network to take an encoder alone, or --allow-partial to take what fits"
    )


def few(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
