"""From a path to an encoder: runs, checkpoints, exported and imported folders, files of weights."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from ssl_zoo.api.encoder import Encoder, Origin
from ssl_zoo.api.transform import Transform
from ssl_zoo.config import Composed, Config, compose
from ssl_zoo.data.decode import PixelFormat
from ssl_zoo.data.sources import SOURCES, SourceConfig
from ssl_zoo.data.sources.imagefolder import LimitedConfig
from ssl_zoo.engine.build import build_views
from ssl_zoo.engine.checkpoint.folders import step_of
from ssl_zoo.engine.checkpoint.state import load_tensors
from ssl_zoo.engine.settings import Precision
from ssl_zoo.engine.trained import choose_network, encoders, open_run
from ssl_zoo.eval.features import Pooling
from ssl_zoo.interop.manifest import MANIFEST, Manifest, ManifestError, Preprocessing, backbone_values
from ssl_zoo.method import Method
from ssl_zoo.nn import BACKBONES, ViT, resize_vit
from ssl_zoo.plugins import discover

_NETWORKS = ("evaluated", "encoder", "target_encoder")


def load(
    source: str | os.PathLike[str],
    *,
    checkpoint: str | int = "last",
    network: str = "evaluated",
    device: torch.device | str = "auto",
    image_size: int | tuple[int, int] | None = None,
    precision: str = "fp32",
) -> Encoder:
    """Load a trained encoder.

    Args:
        source: a run directory or one of its checkpoints, a folder of ``export_weights.py`` or ``import_weights.py``,
            or a safetensors file in such a folder.
        checkpoint: of a run: ``last``, ``best`` (highest first score of its probe) or a step.
        network: ``evaluated``, the one that the method evaluates, ``encoder`` or ``target_encoder``.
        device: ``auto`` takes a GPU where there is one.
        image_size: height, or (height, width), of the images in pixels, where they are not those of the training.
            Sin-cos positions are recomputed, learned and relative ones interpolated.
        precision: of matmuls, ``fp32`` or ``bf16``.

    Raises:
        ValueError: nothing that can be loaded; the message has the path and the remedy.
    """
    discover()
    path, network = Path(source), _network(network)
    options = {"device": _device(device), "precision": _precision(precision)}
    if (path / "config.yaml").is_file():
        return _of_run(path, str(checkpoint), network, image_size, options)
    if (path / "state.json").is_file() and (path.parent.parent / "config.yaml").is_file():
        return _of_run(path.parent.parent, str(step_of(path)), network, image_size, options)
    if (path / MANIFEST).is_file():
        return _of_folder(path, network, image_size, options)
    if path.suffix == ".safetensors" and (path.parent / MANIFEST).is_file():
        return _of_folder(path.parent, _network(path.stem), image_size, options)
    raise ManifestError(_explanation(path))


def preprocessing_of(config: Config) -> Preprocessing:
    """Return how evaluations of a run render images: the size of its backbone, the normalisation of its first view."""
    view = build_views(config.views, config.backbone)[0]
    backbone = config.backbone
    pixels = config.data.pixels(backbone.in_channels) if isinstance(config.data, LimitedConfig) else PixelFormat()
    return Preprocessing(
        list(backbone.image_shape),
        list(view.mean),
        list(view.std),
        channels=backbone.in_channels,
        intensity_range=pixels.intensity_range and list(pixels.intensity_range),
        background=list(pixels.background),
    )


def pooling_of(config: Config) -> Pooling:
    """Return the class token where the run's k-NN evaluator takes it, as recipes of DINO set, else the average."""
    pooling = config.probe.evaluator_config("knn").pooling
    return pooling if pooling is Pooling.class_token else Pooling.average


def manifest_of(composed: Composed, run: Path, method: Method, checkpoint: Path, step: int, network: str) -> Manifest:
    """Describe a run's weights as ``manifest.json`` does, without files.

    Args:
        network: as for ``load``.
    """
    config = composed.config
    named, chosen = encoders(method), choose_network(method, network)
    return Manifest(
        kind="export",
        method=composed.choices["method"],
        evaluated=next(name for name, candidate in named.items() if candidate is chosen),
        backbone=backbone_values(config.backbone),
        transform=preprocessing_of(config),
        pooling=pooling_of(config).value,
        source={"run": run.resolve().name, "checkpoint": checkpoint.name, "seed": config.seed},
        step=step,
        config={"choices": dict(composed.choices), **composed.plain()},
        details={"training_image_size": _image_size(config.data)},
    )


def _image_size(data: SourceConfig) -> list[int] | None:
    """Return height and width of a source's images where all share them and no data need be opened to know."""
    size = SOURCES.get(SOURCES.name_of(data)).image_size or getattr(data, "image_size", None)
    return [size, size] if isinstance(size, int) else size and list(size)


def _of_run(
    run: Path, checkpoint: str, network: str, image_size: int | tuple[int, int] | None, options: dict
) -> Encoder:
    composed = compose(run / "config.yaml")
    trained = open_run(run, composed.config, checkpoint)
    chosen = choose_network(trained.method, network)
    config = {"choices": dict(composed.choices), **composed.plain()}
    name = next((name for name, candidate in encoders(trained.method).items() if candidate is chosen), network)
    origin = Origin(trained.checkpoint, composed.choices["method"], name, trained.step, run, config)
    encoder, preprocessing = _resized(chosen, preprocessing_of(composed.config), image_size)
    return Encoder(encoder, Transform(preprocessing), origin, pooling=pooling_of(composed.config), **options)


def _of_folder(folder: Path, network: str, image_size: int | tuple[int, int] | None, options: dict) -> Encoder:
    manifest = Manifest.read(folder)
    name = manifest.evaluated if network == "evaluated" else network
    if not any(file.endswith(".safetensors") and file != "model.safetensors" for file in manifest.files):
        how = manifest.details.get("load", "its own library").replace("FOLDER", str(folder))
        raise ManifestError(f"{folder} is an export for another library; load it with {how}")
    file = manifest.verified_file(folder, f"{name}.safetensors")
    config = manifest.backbone_config()
    encoder: ViT = BACKBONES.build(config)
    load_tensors(encoder, load_file(file), str(file))
    origin = Origin(file, manifest.method, name, manifest.step, None, manifest.config)
    encoder, preprocessing = _resized(encoder, manifest.transform, image_size)
    return Encoder(encoder, Transform(preprocessing), origin, pooling=Pooling(manifest.pooling), **options)


def _resized(
    encoder: ViT, preprocessing: Preprocessing, image_size: int | tuple[int, int] | None
) -> tuple[ViT, Preprocessing]:
    """Return the encoder and its preprocessing for images of another size; positions change as in ``resize_vit``."""
    if image_size is None:
        return encoder, preprocessing
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    config = replace(encoder.config, image_size=height, image_width=None if width == height else width)
    resized: ViT = BACKBONES.build(config)
    resized.load_state_dict(resize_vit(encoder.state_dict(), encoder.grid, config))
    return resized, replace(preprocessing, size=[height, width])


def _network(network: str) -> str:
    if network not in _NETWORKS:
        raise ValueError(f"network={network!r} must be one of {', '.join(_NETWORKS)}")
    return network


def _device(device: torch.device | str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but torch finds no CUDA device; use 'auto' or 'cpu'")
    return device


def _precision(precision: str) -> Precision:
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision={precision!r} must be fp32 or bf16")
    return Precision(precision)


def _explanation(path: Path) -> str:
    if not path.exists():
        return f"there is no {path}"
    if path.is_dir():
        return (
            f"{path} is neither a run (with config.yaml) nor a folder of weights (with {MANIFEST}); export a run with "
            "tools/export_weights.py"
        )
    if path.suffix == ".safetensors":
        return f"{path} has no {MANIFEST} beside it, which describes the encoder; give the complete exported folder"
    return f"{path} is no run and no folder of weights; import it first:\n  python tools/import_weights.py {path}"
