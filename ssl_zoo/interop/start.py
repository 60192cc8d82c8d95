"""``backbone.init_from``: a new run starts from the weights of a run, an export, an import or an official file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file
from torch import Tensor

from ssl_zoo.ema import Ema
from ssl_zoo.engine.checkpoint.folders import list_checkpoints
from ssl_zoo.engine.checkpoint.state import read_checkpoint, read_tensors
from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.engine.trained import encoders
from ssl_zoo.interop.fit import UnfitWeights, fit_encoder
from ssl_zoo.interop.foreign_file import ForeignFileError
from ssl_zoo.interop.importing import import_weights
from ssl_zoo.interop.manifest import MANIFEST, Manifest
from ssl_zoo.interop.networks import ENCODERS, PREDICTOR
from ssl_zoo.interop.weights import predictor
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.nn import BACKBONES, BackboneConfig, NarrowViT, ViT, ViTConfig
from ssl_zoo.targets import TARGETS

_log = logging.getLogger(__name__)

KEY = "backbone.init_from"
_PATCH_EMBED = "patch_embed.proj.weight"


class InitError(ValueError):
    """``backbone.init_from`` that can't be used; the message has the path, the reason and the key to set."""


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        kind: ``run``, ``export``, ``import`` or ``file``.
        method: that trained them.
        networks: ``encoder``, ``target_encoder`` and ``predictor`` as far as they are there.
        evaluated: the encoder that stands for all where a new run needs one alone.
        method_settings: keys of ``method``, as far as they are known.
        sha256: by name of the file.
    """

    path: Path
    kind: str
    method: str
    backbone: BackboneConfig
    networks: Mapping[str, Mapping[str, Tensor]]
    evaluated: str
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """What a method takes from a source, checked and converted, before any of it is loaded.

    Attributes:
        record: what comes from where, as plain values.
        encoders: weights of ``encoder`` and ``target_encoder``.
        beside: tensors of other networks by their names in the method.
        copied: names of EMA weights that start from their network.
    """

    record: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Tensor]]
    beside: Mapping[str, Tensor]
    copied: Sequence[str]

    @torch.no_grad()
    def load(self, method: Method) -> None:
        """Load the weights into the method."""
        for name, network in encoders(method).items():
            network.load_state_dict(self.encoders[name])
        own = method.state_dict()
        for name, tensor in self.beside.items():
            own[name].copy_(tensor)
        for name, (ema, _) in _emas(method).items():
            if name in self.copied:
                ema.copy.module.load_state_dict(ema.online.state_dict())


def start_from(method: Method, path: str | Path) -> Mapping[str, Any]:
    """Load the weights at a path into a new method, and return what came from where; as ``plan_start``."""
    start = plan_start(method, path)
    start.load(method)
    _log.info("%s", described(start.record))
    return start.record


@torch.no_grad()
def plan_start(method: Method, path: str | Path) -> Start:
    """Read and convert the weights at a path for a new method, which stays as it is and may be on the meta device.

    The encoder and its EMA weights start from their counterparts, or both from the evaluated network of the source
    where one of the two is missing on either side. Networks beside the encoder start from those of the same method that
    fit. Everything else stays as initialised.

    Args:
        path: a run, one of its checkpoints, a folder of an export or import or a file in it, or a file or folder that
            ``tools/import_weights.py`` imports.

    Raises:
        InitError: nothing usable at the path, or an encoder that does not fit.
    """
    source = open_source(Path(path))
    own = encoders(method)
    both = all(name in source.networks and name in own for name in ENCODERS)
    origins = {name: name if both else source.evaluated for name in own}
    fitted, notes = {}, []
    for name, network in own.items():
        fitted[name], changes = _fitted(source, origins[name], network.config, _initial(network))
        notes += changes
    beside, fresh = _beside(method, source)
    taken = list(dict.fromkeys(name.partition(".")[0] for name in beside))
    copied = [copy for copy, (_, online) in _emas(method).items() if online in taken and copy in fresh]
    loaded = {**origins, **dict.fromkeys([*taken, *copied], PREDICTOR)}
    record = {
        "path": str(path),
        "kind": source.kind,
        "method": source.method,
        "step": source.step,
        "loaded": loaded,
        "fresh": [name for name in fresh if name not in copied],
        "changes": list(dict.fromkeys(notes)),
        "sha256": dict(source.sha256),
    }
    return Start(record, fitted, beside, copied)


def _initial(network: ViT) -> Mapping[str, Tensor]:
    """Return the state dict; zeros without memory for a network on the meta device, whose values nobody needs."""
    return {
        name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) if tensor.is_meta else tensor
        for name, tensor in network.state_dict().items()
    }


def described(record: Mapping[str, Any]) -> str:
    """Return one line that says what came from where."""
    origin = f"{record['kind']} of {record['method']}"
    if record["step"] is not None:
        origin += f", step {record['step']}"
    loaded = [
        name if place in (name, PREDICTOR) else f"{name} (its {place})" for name, place in record["loaded"].items()
    ]
    parts = [f"{', '.join(loaded)} from {record['path']} ({origin})"]
    if record["fresh"]:
        parts.append(f"{', '.join(record['fresh'])} fresh")
    return f"{KEY}: {'; '.join([*parts, *record['changes']])}"


def open_source(path: Path) -> Source:
    """Read weights to start from, of whatever kind they are.

    Raises:
        InitError: nothing usable at the path.
    """
    if not path.exists():
        raise InitError(f"{KEY}={path}: there is no such file or folder")
    try:
        if path.is_dir() and list_checkpoints(path):
            return _of_checkpoint(list_checkpoints(path)[-1])
        if (path / "state.json").is_file():
            return _of_checkpoint(path)
        folder = path if path.is_dir() else path.parent
        if (folder / MANIFEST).is_file():
            manifest = Manifest.read(folder)
            wanted = [path.stem] if path.is_file() else [*ENCODERS, PREDICTOR]
            names = [name for name in wanted if f"{name}.safetensors" in manifest.files]
            if names:
                return _of_folder(folder, manifest, names, path)
        return _of_foreign(path)
    except ForeignFileError as error:
        raise InitError(
            f"{KEY}={path}: {error}\nOptions for a file are those of: python tools/import_weights.py {path}"
        ) from error
    except ValueError as error:
        raise InitError(f"{KEY}={path}: {error}") from error


def _of_checkpoint(path: Path) -> Source:
    checkpoint = read_checkpoint(path, optimizer=False)
    config, tensors = checkpoint.manifest["config"], read_tensors(checkpoint)
    starts = [name.removesuffix(_PATCH_EMBED) for name in tensors if name.endswith(f".{_PATCH_EMBED}")]
    others = [start for start in starts if start != "encoder."]
    prefixes = {"encoder": "encoder.", **({"target_encoder": others[0]} if others else {})}
    networks = {
        name: {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        for name, start in prefixes.items()
    }
    beside = {key: tensor for key, tensor in tensors.items() if not key.startswith(tuple(prefixes.values()))}
    method, backbone = checkpoint.manifest["method"], _backbone_of_run(config)
    return Source(
        path,
        "run",
        method,
        backbone,
        {**networks, **({PREDICTOR: beside} if beside else {})},
        _evaluated(method, config, backbone) or list(networks)[-1],
        config["method"],
        checkpoint.step,
        {name: marks["sha256"] for name, marks in checkpoint.manifest["files"].items() if name.startswith("method")},
    )


def _typed(config_class: type, values: Mapping[str, Any]) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config_class), values))
    except OmegaConfBaseException as error:
        raise ValueError(f"its configuration is not one of this version: {error}") from error


def _backbone_of_run(config: Mapping[str, Any]) -> BackboneConfig:
    """Return the typed backbone of a run; of presets, the registered class that they set the values of."""
    chosen = config.get("choices", {}).get("backbone", "vit")
    return _typed(BACKBONES.config_of(chosen if chosen in BACKBONES else "vit"), config["backbone"])


def _evaluated(method: str, config: Mapping[str, Any], backbone: BackboneConfig) -> str | None:
    """Return the encoder that the method of a run evaluates; None where the method is not registered here."""
    if method not in METHODS:
        return None
    target = config.get("choices", {}).get("targets")
    targets = None if target is None else _typed(TARGETS.config_of(target), config["targets"])
    own = _typed(METHODS.config_of(method), config["method"])
    built = build_method(own, backbone, targets, seed=0, device="meta")
    return next(name for name, network in encoders(built).items() if network is built.eval_encoder())


def _of_folder(folder: Path, manifest: Manifest, names: Sequence[str], path: Path) -> Source:
    networks = {name: load_file(manifest.verified_file(folder, f"{name}.safetensors")) for name in names}
    of_encoders = [name for name in names if name in ENCODERS]
    if not of_encoders:
        raise ValueError(f"it is the {names[0]} alone; give the folder, or the file of an encoder")
    return Source(
        path,
        manifest.kind,
        manifest.method,
        manifest.backbone_config(),
        networks,
        manifest.evaluated if manifest.evaluated in names else of_encoders[0],
        (manifest.config or {}).get("method") or manifest.details.get("method_settings", {}),
        manifest.step,
        {f"{name}.safetensors": manifest.files[f"{name}.safetensors"]["sha256"] for name in names},
    )


def _of_foreign(path: Path) -> Source:
    imported = import_weights(path)
    return Source(
        path,
        "file",
        imported.method,
        imported.backbone,
        imported.networks,
        imported.evaluated,
        imported.method_settings,
        sha256={file.name: fingerprint(file)["sha256"] for file in imported.file.files},
    )


def _fitted(
    source: Source, network: str, config: BackboneConfig, initial: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], list[str]]:
    state = source.networks[network]
    if isinstance(config, ViTConfig) and isinstance(source.backbone, ViTConfig):
        try:
            state, notes = fit_encoder(state, source.backbone, config, initial)
        except UnfitWeights as error:
            raise InitError(f"{KEY}={source.path}: {error}") from error
    else:
        notes = []
    wrong = [name for name in initial if name not in state or state[name].shape != initial[name].shape]
    wrong += [name for name in state if name not in initial]
    if wrong:
        raise InitError(f"{KEY}={source.path}: its {network} is of another network: {', '.join(wrong[:5])} do not fit")
    return state, notes


def _beside(method: Method, source: Source) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the tensors of networks beside the encoder, each taken as a whole, and the names of those not taken."""
    own, there = predictor(method), source.networks.get(PREDICTOR, {})
    is_same = METHODS.name_of(method.config) == source.method and _same_heads(method, source)
    fixed = {f"{name}.pos_embed" for name, part in method.named_modules() if isinstance(part, NarrowViT)}
    taken, fresh = {}, []
    for module in dict.fromkeys(name.partition(".")[0] for name in own):
        names = [name for name in own if name.partition(".")[0] == module]
        # The fixed positions of another grid are those that the network has computed for its own.
        wanted = [name for name in names if not (name in fixed and _shape(there, name) != own[name].shape)]
        if is_same and wanted and all(_shape(there, name) == own[name].shape for name in wanted):
            taken |= {name: there[name] for name in wanted}
        else:
            fresh.append(module)
    return taken, fresh


def _emas(method: Method) -> Mapping[str, tuple[Ema, str]]:
    """Return EMAs and the names of their networks, by the names of the EMA weights."""
    names = {id(part): name for name, part in method.named_modules()}
    return {names[id(ema.copy)]: (ema, names[id(ema.online)]) for ema in method.emas()}


def _same_heads(method: Method, source: Source) -> bool:
    """Whether predictors or decoders have equally many attention heads, which the shapes of weights do not show."""
    names = [name for name in vars(method.config) if name.endswith("_heads")]
    default = getattr(method.encoder.config, "num_heads", None)
    return all(
        (source.method_settings.get(name) or default) == (getattr(method.config, name) or default) for name in names
    )


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
