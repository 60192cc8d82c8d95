"""A run opened again: its method with the weights of one of its checkpoints."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ssl_zoo.engine.build import RunConfig, build_run_method
from ssl_zoo.engine.checkpoint.folders import checkpoint_path, list_checkpoints, step_of
from ssl_zoo.engine.checkpoint.state import (
    CheckpointError,
    load_tensors,
    read_checkpoint,
    restore,
)
from ssl_zoo.engine.precision import recorded_precision
from ssl_zoo.engine.settings import Precision
from ssl_zoo.method import Method
from ssl_zoo.nn import BackboneConfig, NarrowViT, Positions, ViT, resize_vit, source_grid
from ssl_zoo.scores import BASELINE_SUFFIX

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedMethod:
    """A method as a checkpoint holds it, on the CPU.

    Attributes:
        checkpoint: the checkpoint's folder, or the file of weights.
        step: steps that it was trained for, None where that is unknown.
        grid: rows and columns of patches of the images that its encoder was trained on, None where that is unknown.
        precision: that the run was started with, None where that is unknown.
        not_resized: tensors outside of the encoders that depend on the size of the images in a way that is not known.
            Where the config has another size than the run, they are as initialised.
    """

    method: Method
    checkpoint: Path
    step: int | None
    grid: tuple[int, int] | None = None
    precision: Precision | None = None
    not_resized: Sequence[str] = ()


def open_run(run: Path, config: RunConfig, wanted: str = "last") -> TrainedMethod:
    """The method of a run directory at a checkpoint.

    Args:
        config: of the run, from its ``config.yaml``. Where the size of its images is another, positions are recomputed
            or interpolated by ``resize_vit``.
        wanted: as for ``find_checkpoint``.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one, or one of another model.
    """
    path = find_checkpoint(run, wanted)
    checkpoint = read_checkpoint(path, optimizer=False)
    recorded = checkpoint.manifest["config"].get("backbone", {})
    sizes = {key: recorded[key] for key in ("image_size", "image_width") if key in recorded}
    patch_size = recorded.get("patch_size", config.backbone.patch_size)
    if patch_size != config.backbone.patch_size:
        raise CheckpointError(
            f"backbone.patch_size={config.backbone.patch_size}: {run} was trained with {patch_size}, which is fixed; "
            "to use images of another size, set backbone.image_size alone"
        )
    trained = replace(config, backbone=replace(config.backbone, **sizes))
    method = build_run_method(trained)
    restore(checkpoint, method)
    grid, not_resized = trained.backbone.grid, ()
    if grid != config.backbone.grid:
        _log.info(
            "%s was trained on images of %dx%d px and is used at %dx%d px: positions are %s",
            *(run, *trained.backbone.image_shape, *config.backbone.image_shape, _how(config.backbone)),
        )
        original, method = method, build_run_method(config)
        not_resized = load_resized(original, method)
    return TrainedMethod(method, path, checkpoint.step, grid, recorded_precision(checkpoint), not_resized)


def _how(backbone: BackboneConfig) -> str:
    is_sincos = getattr(backbone, "positions", None) is Positions.sincos
    return "recomputed (sin-cos)" if is_sincos else "interpolated (bicubic)"


def load_resized(trained: Method, method: Method) -> Sequence[str]:
    """Load the weights of a method into one for another size of images.

    Returns:
        Names of tensors of ``method`` that keep their values, since they depend on the size in a way that is not known.

    Raises:
        CheckpointError: such a tensor belongs to an encoder.
    """
    state, initial = trained.state_dict(), method.state_dict()
    for name, module in method.named_modules():
        prefix = f"{name}."
        if isinstance(module, ViT):
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            resized = resize_vit(own, trained.get_submodule(name).grid, module.config)
            state |= {f"{prefix}{key}": tensor for key, tensor in resized.items()}
        elif isinstance(module, NarrowViT):
            state[f"{prefix}pos_embed"] = initial[f"{prefix}pos_embed"]  # fixed, and computed for its own grid
    left = [name for name, tensor in initial.items() if name not in state or state[name].shape != tensor.shape]
    networks = {*encoders(method).values(), method.eval_encoder()}
    of_encoders = tuple(f"{name}." for name, module in method.named_modules() if module in networks)
    if lost := [name for name in left if name.startswith(of_encoders)]:
        raise CheckpointError(
            f"{type(method.encoder).__name__} can't be used at another size of images than it was trained on: "
            f"{', '.join(lost[:3])} would have other shapes; leave out backbone.image_size and backbone.image_width"
        )
    method.load_state_dict({**state, **{name: initial[name] for name in left}})
    return left


def open_weights(file: Path, config: RunConfig, prefix: str = "") -> TrainedMethod:
    """A method whose evaluated encoder has the weights of a safetensors file; its other networks are as initialised.

    Args:
        config: of the method and its backbone. Where the weights are of a square grid for another size of images,
            positions are recomputed or interpolated by ``resize_vit``.
        prefix: beginning of the names that are taken, and removed from them; names are those of timm.

    Raises:
        CheckpointError: no safetensors file, or one of another encoder.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is no safetensors file ({error}). Import it first, which executes nothing in it:\n"
            f"  python tools/import_weights.py {file}"
        ) from error
    method = build_run_method(config)
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    encoder, grid = method.eval_encoder(), None
    if isinstance(encoder, ViT):
        try:
            grid = source_grid(chosen, encoder.config)
            chosen = resize_vit(chosen, grid or encoder.grid, encoder.config)
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}") from error
    load_tensors(encoder, chosen, str(file))
    return TrainedMethod(method, file, None, grid)


def encoders(method: Method) -> Mapping[str, ViT]:
    """Return ``encoder``, and its EMA weights as ``target_encoder`` where the method has any."""
    found = {"encoder": method.encoder}
    for ema in method.emas():
        if ema.online is method.encoder:
            found["target_encoder"] = ema.copy.module
    return found


def choose_network(method: Method, name: str) -> ViT:
    """One of a method's encoders.

    Args:
        name: ``evaluated`` as the method decides, ``encoder`` as it is trained, ``target_encoder`` with EMA weights.

    Raises:
        ValueError: the method has no EMA weights of its encoder.
    """
    if name == "evaluated":
        return method.eval_encoder()
    found = encoders(method)
    if name not in found:
        raise ValueError(
            f"--network {name}: {type(method).__name__} with these targets has no EMA weights of its encoder; take "
            "--network encoder"
        )
    return found[name]


def find_checkpoint(run: Path, wanted: str) -> Path:
    """The folder of a run's checkpoint.

    Args:
        wanted: ``last``; ``best``, the one with the highest first score of the run's probe; or the number of a step.

    Raises:
        CheckpointError: there is none; the message names those that are there.
    """
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(f"{run} holds no checkpoint; give the directory of a run that has saved one")
    if wanted == "last":
        return found[-1]
    if wanted == "best":
        return _best(run, found)
    path = checkpoint_path(run, int(wanted)) if wanted.isdecimal() else None
    if path not in found:
        steps = ", ".join(str(step_of(path)) for path in found)
        raise CheckpointError(f"--checkpoint {wanted}: {run} has last, best and the steps {steps}")
    return path


def _best(run: Path, found: list[Path]) -> Path:
    by_step = {step_of(path): path for path in found}
    scores = {step: score for step, score in _probe_scores(run).items() if step in by_step}
    if not scores:
        raise CheckpointError(
            f"--checkpoint best: no checkpoint of {run} was probed when it was saved; set probe.every_steps to a "
            "multiple of trainer.checkpoint_every, or take --checkpoint last"
        )
    return by_step[max(scores, key=lambda step: (scores[step], step))]


def _probe_scores(run: Path) -> Mapping[int, float]:
    """The first probe score of every step that has one, from ``metrics.jsonl``."""
    scores = {}
    with open(run / "metrics.jsonl") as lines:
        for line in map(json.loads, lines):
            first = next((key for key in line if f"{key}{BASELINE_SUFFIX}" in line), None)
            if first is not None:
                scores[line["step"]] = line[first]
    return scores
