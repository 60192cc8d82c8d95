"""The folder of imported weights: files, manifest and model card as exports have them, and a recipe that fits them."""

import dataclasses
import shutil
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from ssl_zoo.data.batch import IMAGENET_MEAN
from ssl_zoo.engine.checkpoint.storage import fingerprint, save_tensors
from ssl_zoo.interop.importing import ImportedWeights
from ssl_zoo.interop.manifest import Manifest, backbone_values
from ssl_zoo.interop.model_card import import_card
from ssl_zoo.interop.released import LICENCES, UNKNOWN_LICENCE
from ssl_zoo.io import publish_directory
from ssl_zoo.method import METHODS
from ssl_zoo.nn import ViTConfig

RECIPE = "recipe.yaml"
# Augmentations of presets with several views, each with a normalisation of its own.
_CROPS = {"simclr": ("global_crop", "second_global_crop")}
_CROPS |= dict.fromkeys(("dino", "ibot", "lejepa", "msn"), (*_CROPS["simclr"], "local_crop"))


def write_import(imported: ImportedWeights, out: Path, origin: Mapping[str, str] | None = None) -> Manifest:
    """Write one safetensors file per network, ``manifest.json``, ``recipe.yaml`` and a model card into a new folder.

    The folder is complete or missing.

    Args:
        origin: further entries of the manifest's ``source``, e.g. the address of a download.

    Raises:
        ValueError: ``out`` exists.
    """
    if out.exists():
        raise ValueError(f"--out {out} exists; name a folder that does not")
    temporary = out.with_name(f".{out.name}.unfinished")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        for network, tensors in imported.networks.items():
            contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
            save_tensors(contiguous, temporary / f"{network}.safetensors", metadata={"format": "pt"})
        draft = manifest_of(imported, origin or {})
        (temporary / RECIPE).write_text(recipe_of(imported, draft.source["file"]), encoding="utf-8")
        manifest = draft.write(temporary)
        (temporary / "README.md").write_text(import_card(imported, manifest), encoding="utf-8")
        publish_directory(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def manifest_of(imported: ImportedWeights, origin: Mapping[str, str]) -> Manifest:
    """Describe imported weights, with the SHA-256 of the files that they come from."""
    files = [{"name": file.name, **fingerprint(file)} for file in imported.file.files]
    source = {
        "file": imported.file.path.name,
        **({"sha256": files[0]["sha256"], "bytes": files[0]["bytes"]} if len(files) == 1 else {"files": files}),
        "licence": LICENCES.get(imported.method, UNKNOWN_LICENCE),
        "matched": f"{imported.num_matched} of {imported.num_tensors} tensors",
        "left_out": {reason: len(names) for reason, names in imported.left_out.items()},
        **origin,
    }
    return Manifest(
        kind="import",
        method=imported.method,
        evaluated=imported.evaluated,
        backbone=backbone_values(imported.backbone),
        transform=imported.transform,
        pooling=imported.pooling,
        source=source,
        details={
            "format": "safetensors",
            "load": 'ssl_zoo.load("FOLDER")',
            "method_settings": dict(imported.method_settings),
        },
    )


def recipe_of(imported: ImportedWeights, source: str) -> str:
    """Return a recipe of the method with networks of these sizes, to evaluate and to continue from the weights.

    Args:
        source: name of the file or repository.
    """
    normalization = {"mean": list(imported.transform.mean), "std": list(imported.transform.std)}
    crops = _CROPS.get(METHODS.get(imported.registered).default_views)
    views = normalization if crops is None else dict.fromkeys(crops, normalization)
    is_usual = normalization["mean"] == IMAGENET_MEAN
    values = {
        "method": dict(imported.method_settings),
        "backbone": _changed(imported.backbone),
        "views": {} if is_usual else views,
        "targets": dict(imported.target_settings),
    }
    defaults = [{"method": imported.registered}, {"backbone": "vit"}, {"data": "imagenet1k"}]
    document = {"defaults": defaults, **{section: settings for section, settings in values.items() if settings}}
    title = f"# {imported.method}, weights imported from {source}"
    if imported.method != imported.registered:
        title += f"; {imported.registered} stands in for the method, which is not one of this library"
    return f"{title}\n{yaml.safe_dump(document, sort_keys=False)}"


def _changed(config: ViTConfig) -> dict[str, Any]:
    """Return the values of a config that differ from their defaults."""
    defaults = ViTConfig()
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
    return {name: value.name if isinstance(value, Enum) else value for name, value in changed.items()}
