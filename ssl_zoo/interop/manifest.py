"""The manifest of a folder of weights: what the files are, and everything that using them needs.

Exports of runs and imports of foreign files have the same ``manifest.json``. Beside it lies one safetensors file per
network, with the parameter names of ``ViT``. A folder is read without the recipe and without the code of its method.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import safe_open

import ssl_zoo
from ssl_zoo.engine.checkpoint.storage import fingerprint
from ssl_zoo.io import write_atomic
from ssl_zoo.nn import BACKBONES, BackboneConfig

MANIFEST = "manifest.json"
FORMAT = 1
_PACKAGES = ("torch", "timm", "safetensors")


class ManifestError(ValueError):
    """A folder of weights that can't be used; the message has the file and the remedy."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the encoder's input; ``ssl_zoo.data.transforms.evaluation_view`` and then normalisation.

    Attributes:
        size: height and width in pixels.
        mean, std: per channel, for pixels in 0..1.
        crop_fraction: side of the centre crop over the shorter side of a resized image. An image that is no larger
            than ``size`` is shown whole.
        channels: colour channels of the input.
        intensity_range: the stored values that become 0 and 255 in files of more than 8 bits; None scales each file by
            a range of its own.
        background: RGB, 0..255, shown where an image is transparent.
    """

    size: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = "bicubic"
    crop_fraction: float = 224 / 256
    channels: int = 3
    intensity_range: Sequence[float] | None = None
    background: Sequence[int] = field(default_factory=lambda: [255, 255, 255])


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        kind: ``export`` of a run, or ``import`` of a foreign file.
        method: name of the method that trained the weights.
        evaluated: name of the network that is used by default, e.g. ``target_encoder``.
        backbone: registered name of the backbone under ``name``, and the values of its config.
        pooling: how tokens become a feature by default: ``average`` or ``class_token``.
        source: where the weights come from: ``run``, ``checkpoint``, ``seed``, ``commit`` of an export; ``file``,
            ``sha256``, ``licence`` of an import.
        step: optimizer steps of the training; None where that is unknown.
        files: by name: ``bytes``, ``sha256``, and of safetensors the number of ``values``.
        config: configuration of the run as plain values; None of an import.
        details: entries of a format of its own, such as the call that loads it, and how it was verified.
    """

    kind: str
    method: str
    evaluated: str
    backbone: Mapping[str, Any]
    transform: Preprocessing
    pooling: str = "average"
    source: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> "Manifest":
        """Write ``manifest.json`` with the sizes and SHA-256 of the folder's files, and return it with these."""
        complete = replace(
            self, files={path.name: _marks(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
        )
        versions = {"ssl_zoo": ssl_zoo.__version__, **{package: version(package) for package in _PACKAGES}}
        content = {"format": FORMAT, **asdict(complete), "versions": versions}
        write_atomic(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
        return complete

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder.

        Raises:
            ManifestError: there is none, or it is of another format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ManifestError(f"{folder} has no {MANIFEST}; export a run with tools/export_weights.py")
        try:
            content = json.loads(path.read_text())
            values = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            values["transform"] = Preprocessing(**content["transform"])
            manifest = cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{path} is no manifest of weights ({error}); export the run again") from error
        if content.get("format") != FORMAT:
            raise ManifestError(f"{path} has format {content.get('format')}, this version reads {FORMAT}")
        return manifest

    def backbone_config(self) -> BackboneConfig:
        """Return the typed config of the backbone.

        Raises:
            ManifestError: an unknown backbone, key or value.
        """
        values = dict(self.backbone)
        try:
            structured = OmegaConf.structured(BACKBONES.config_of(values.pop("name", "vit")))
            return OmegaConf.to_object(OmegaConf.merge(structured, values))
        except (OmegaConfBaseException, ValueError, LookupError) as error:
            raise ManifestError(f"the backbone of {MANIFEST} can't be built: {error}") from error

    def verified_file(self, folder: Path, name: str) -> Path:
        """Return the path of a file whose size and SHA-256 are those of the manifest.

        Raises:
            ManifestError: the file is missing or altered; the message lists the networks that are there.
        """
        if name not in self.files:
            raise ManifestError(f"{folder} has no {name}; it has {', '.join(self.files)}")
        path, expected = folder / name, self.files[name]
        if not path.is_file():
            raise ManifestError(f"{path} is missing, but {MANIFEST} lists it; copy the whole folder again")
        if any(expected.get(mark) != value for mark, value in fingerprint(path).items()):
            raise ManifestError(f"{path} is not the file that {MANIFEST} describes; copy the whole folder again")
        return path


def backbone_values(config: BackboneConfig) -> dict[str, Any]:
    """Return a backbone's registered name and config as plain values, as ``Manifest.backbone`` has them."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    values.pop("init_from", None)  # a path of this machine, and of the run alone
    return {"name": BACKBONES.name_of(config), **values}


def _marks(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return fingerprint(path)
    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return {**fingerprint(path), "values": sum(math.prod(shape) for shape in shapes)}
