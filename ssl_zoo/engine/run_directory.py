"""The run directory: the files of a run, and the checkpoint that it resumes from."""

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import ssl_zoo
from ssl_zoo.engine.checkpoint.folders import list_checkpoints, step_of
from ssl_zoo.engine.checkpoint.state import Checkpoint, CheckpointError, read_checkpoint
from ssl_zoo.engine.device import cpu_capabilities
from ssl_zoo.engine.distributed import Processes
from ssl_zoo.engine.precision import PrecisionChoice
from ssl_zoo.io import write_atomic

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "numpy", "safetensors")

# Keys that may differ when a run resumes: none changes a number of the training, except that trainer.parallel changes
# the order of sums.
_FREE_KEYS = (
    "output_dir",
    "loader.",
    "monitor.",
    "probe.",
    "data.root",
    "data.path",
    "data.cache",
    "trainer.device",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.keep_every",
    "trainer.async_checkpoints",
    "trainer.activation_checkpointing",
    "trainer.cuda_graphs",
    "trainer.parallel",
    "trainer.reshard_after_forward",
    "trainer.timeout_minutes",
)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run and the rules of resuming it.

    Attributes:
        config: the resolved config as plain values, which every checkpoint contains too.
        defaults: the defaults of all keys, which hold for a checkpoint of a version without a key.
    """

    path: Path
    config: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"output_dir={str(self.path)!a} is no valid UTF-8, which safetensors needs; choose another"
            ) from None

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def unfinished_probe(self) -> Path:
        """Where a probe's own trainings are saved until it is done."""
        return self.path / "unfinished" / "probe"

    @property
    def corrupt_samples(self) -> Path:
        return self.path / "corrupt_samples.txt"

    def find_checkpoint(self, resume: str) -> Checkpoint | None:
        """Return the verified checkpoint to resume from, or None for a fresh start.

        Args:
            resume: ``auto`` takes the newest one in the directory, ``never`` starts from step 0, anything else is the
                path of a checkpoint or of a run.

        Raises:
            CheckpointError: the checkpoint is damaged or of a run with other settings, or ``never`` finds checkpoints.
        """
        own = list_checkpoints(self.path)
        if resume == "never":
            if own:
                raise CheckpointError(
                    f"{self.path} holds checkpoints up to {own[-1].name}, which --resume never would overwrite; "
                    "choose another output_dir=... or remove the directory"
                )
            return None
        if resume == "auto":
            path = own[-1] if own else None
        else:
            path = Path(resume)
            if not (path / "manifest.json").is_file():
                found = list_checkpoints(path)
                if not found:
                    raise CheckpointError(f"--resume {resume}: neither a checkpoint nor a run with checkpoints")
                path = found[-1]
        if path is None:
            return None
        checkpoint = read_checkpoint(path)
        self._require_same_run(checkpoint)
        return checkpoint

    def recorded(self, key: str, checkpoint: Checkpoint) -> Any:
        """Return an entry of ``environment.json`` of the run that a checkpoint is of; None where there is none."""
        file = checkpoint.path.parent.parent / "environment.json"
        try:
            return json.loads(file.read_text()).get(key) if file.is_file() else None
        except ValueError:
            log.warning("%s can't be read; its record of %s is lost", file, key)
            return None

    def set_aside_after(self, checkpoint: Checkpoint) -> None:
        """Move checkpoints of later steps than the resumed one into ``checkpoints/replaced``.

        As the newest ones they would pass for the state of the run and outlive every checkpoint written after this.
        """
        resumed = checkpoint.path.resolve()
        for path in list_checkpoints(self.path):
            step = step_of(path)
            if step > checkpoint.step or (step == checkpoint.step and path.resolve() != resumed):
                place = path.parent / "replaced" / path.name
                place.parent.mkdir(exist_ok=True)
                if place.exists():
                    shutil.rmtree(place)
                os.replace(path, place)
                log.warning("%s is moved to %s, since the run resumes from step %d", path, place, checkpoint.step)

    def write_start(self, config_text: str, environment: Mapping[str, Any]) -> None:
        """Write ``config.yaml``, which is itself a recipe, and ``environment.json``."""
        write_atomic(self.path / "config.yaml", config_text)
        write_atomic(self.path / "environment.json", json.dumps(environment, indent=1) + "\n")

    def _require_same_run(self, checkpoint: Checkpoint) -> None:
        there, here = flatten(checkpoint.manifest["config"]), flatten(self.config)
        there = {**{key: value for key, value in flatten(self.defaults).items() if key in here}, **there}
        method_there, method_here = checkpoint.manifest["method"], self.config["choices"]["method"]
        if method_there != method_here:
            raise CheckpointError(
                f"{checkpoint.path} was written by method {method_there!r}, this run uses {method_here!r}; "
                "choose another output_dir=... to train it"
            )
        changed = [
            f"{key}: {there.get(key)} in the checkpoint, {here.get(key)} in this run"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key) and not key.startswith(_FREE_KEYS)
        ]
        if changed:
            listing = "\n  ".join(changed)
            raise CheckpointError(
                f"{checkpoint.path} belongs to a run with other settings:\n  {listing}\n"
                f"Resume it with its own settings (--config {checkpoint.path.parent.parent / 'config.yaml'}), "
                "or choose another output_dir=... for these"
            )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def environment(ranks: Processes, precision: PrecisionChoice) -> dict[str, Any]:
    """Return versions, commit and machine, which reproducing a number requires."""
    return {
        "ssl_zoo": ssl_zoo.__version__,
        **_git_state(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": _device_name(ranks.device),
        **precision.plain(),
        "num_threads": torch.get_num_threads(),
        "world_size": ranks.world_size,
    }


def _device_name(device: torch.device) -> object:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return f"MPS of {name}" if device.type == "mps" else name


def _git_state() -> dict[str, Any]:
    folder = Path(ssl_zoo.__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder:
            return {"commit": None, "dirty": None}  # installed inside somebody else's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}  # no git, or no checkout
