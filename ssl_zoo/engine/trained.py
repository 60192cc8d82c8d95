"""A run opened again: its method with the weights of one of its checkpoints."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
from ssl_zoo.method import Method
from ssl_zoo.nn import ViT


@dataclass(frozen=True)
class TrainedMethod:
    """A method as a checkpoint holds it, on the CPU.

    Attributes:
        checkpoint: the checkpoint's folder, or the file of weights.
        step: steps that it was trained for, None where that is unknown.
    """

    method: Method
    checkpoint: Path
    step: int | None


def open_run(run: Path, config: RunConfig, wanted: str = "last") -> TrainedMethod:
    """The method of a run directory at a checkpoint.

    Args:
        config: of the run, from its ``config.yaml``.
        wanted: as for ``find_checkpoint``.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one, or one of another model.
    """
    path = find_checkpoint(run, wanted)
    checkpoint = read_checkpoint(path, optimizer=False)
    method = build_run_method(config)
    restore(checkpoint, method)
    return TrainedMethod(method, path, checkpoint.step)


def open_weights(file: Path, config: RunConfig, prefix: str = "") -> TrainedMethod:
    """A method whose evaluated encoder has the weights of a safetensors file; its other networks are as initialised.

    Args:
        config: of the method and its backbone.
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
            f"{file} is no safetensors file ({error}); other formats can execute code when read and are refused"
        ) from error
    method = build_run_method(config)
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    load_tensors(method.eval_encoder(), chosen, str(file))
    return TrainedMethod(method, file, None)


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
            first = next((key for key in line if f"{key}_random_init" in line), None)
            if first is not None:
                scores[line["step"]] = line[first]
    return scores
