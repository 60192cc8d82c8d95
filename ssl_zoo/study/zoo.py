"""The model zoo: a table of trained runs, made from their own records, and the same facts for a model card."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_zoo.config import ConfigError
from ssl_zoo.engine.checkpoint.folders import list_checkpoints
from ssl_zoo.engine.status import recipe_of
from ssl_zoo.engine.trained import find_checkpoint
from ssl_zoo.planning.plan import Plan
from ssl_zoo.scores import Score
from ssl_zoo.study.record import RunRecord
from ssl_zoo.study.report import duration, quantity

_NOTHING = "–"  # noqa: RUF001


@dataclass(frozen=True)
class ZooScore:
    """A recorded score of one checkpoint.

    Attributes:
        random_init: the score of the network before its first step; None where it was not measured.
        protocol_hash: scores with equal hashes are comparable.
    """

    name: str
    value: float
    random_init: float | None
    protocol_hash: str
    is_fraction: bool

    def text(self, value: float | None) -> str:
        if value is None:
            return _NOTHING
        return f"{value:.1%}".replace("%", " %") if self.is_fraction else f"{value:.4g}"

    def row(self) -> dict[str, str]:
        """Return the score as text, by the keys of a model card."""
        values = {"value": self.text(self.value), "random_init": self.text(self.random_init)}
        return {"name": self.name, **values, "protocol_hash": self.protocol_hash}


@dataclass(frozen=True)
class ZooEntry:
    """One checkpoint of a run with everything that reproducing it needs.

    Attributes:
        weights: name and SHA-256 of the file of weights: that of an export, else that of the checkpoint.
    """

    record: RunRecord
    checkpoint: Path
    step: int
    scores: Sequence[ZooScore]
    weights: tuple[str, str]

    @classmethod
    def read(cls, run: Path, checkpoint: str = "last") -> "ZooEntry":
        """Read a run directory.

        Args:
            checkpoint: ``last``, ``best`` or a step.

        Raises:
            ValueError: no run, no such checkpoint, or a damaged record.
        """
        record = RunRecord.read(run)
        path = find_checkpoint(run, checkpoint)
        manifest = _json(path / "manifest.json")
        step = manifest["step"]
        scores = [*_evaluated(run, path), *_probed(path)]
        unique = {(score.name, score.protocol_hash): score for score in reversed(scores)}
        return cls(record, path, step, list(unique.values())[::-1], _weights(run, path, manifest))

    @property
    def recipe(self) -> str:
        """Folder and name of the recipe, such as ``ijepa/vitb16.yaml``."""
        return recipe_of(self.record.path) or _NOTHING

    def facts(self) -> dict[str, str]:
        """Return what the table and model cards state, by heading; counting FLOPs takes seconds."""
        composed, record = self.record.composed, self.record
        config, environment = composed.config, record.environment
        images = self.step * record.batch_size
        flops = images * Plan.of(config).step_flops
        speed = record.images_per_second
        machine = environment.get("device") or "unknown device"
        count = environment.get("world_size", 1)
        return {
            "method": composed.choices["method"],
            "recipe": f"`{self.recipe}`",
            "data": str(composed.choices["data"]),
            "training": f"{self.step:,} steps, {images:,} images",
            "cost": f"{quantity(flops)}, {duration(speed and images / speed)} on {count} x {machine}",
            "seed": str(config.seed),
            "commit": _commit(environment),
            "weights": f"{self.weights[0]}, SHA-256 `{self.weights[1]}`",
        }


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the runs with checkpoints among the paths, and in the folders below them.

    Raises:
        ConfigError: a path holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        runs = [config.parent for config in sorted(path.rglob("config.yaml")) if list_checkpoints(config.parent)]
        if not runs:
            raise ConfigError(f"{path} holds no run with a checkpoint; give run directories or a folder of them")
        found |= dict.fromkeys(runs)
    return list(found)


def zoo_page(entries: Sequence[ZooEntry]) -> str:
    """Return a Markdown page with a row per checkpoint."""
    rows = [_row(entry) for entry in entries]
    headings = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    note = "Scores with equal protocol hashes are comparable. FLOPs are those of forward and backward passes."
    return "\n".join(["# Model zoo", "", *lines, "", note, ""])


def _row(entry: ZooEntry) -> dict[str, str]:
    facts = entry.facts()
    shown = [
        f"{s.name} {s.text(s.value)} (random init {s.text(s.random_init)}) `{s.protocol_hash}`" for s in entry.scores
    ]
    order = ("recipe", "data", "training", "cost")
    row = {name: facts[name] for name in order} | {"scores": "<br>".join(shown) or _NOTHING}
    return row | {name: facts[name] for name in ("seed", "commit", "weights")}


def _evaluated(run: Path, checkpoint: Path) -> list[ZooScore]:
    """Return the scores of ``tools/eval_net.py`` on the network that the method evaluates, at this checkpoint."""
    found = []
    for path in sorted((run / "eval").glob("*/*.json")):
        content = _json(path)
        if Path(content["weights"]).name == checkpoint.name and content["network"] == "evaluated":
            label = f"{content['label']}/" if content.get("label") else ""
            found += [
                ZooScore(
                    label + score["name"],
                    score["value"],
                    score["random_init"],
                    score["protocol_hash"],
                    score.get("is_fraction", 0 <= score["value"] <= 1),
                )
                for score in content["scores"]
            ]
    return found


def _probed(checkpoint: Path) -> list[ZooScore]:
    """Return the scores of the run's own probe, if it ran at this step."""
    state = _json(checkpoint / "state.json").get("evaluation", {})
    scores = [Score(**score) for score in state.get("scores", [])]
    return [ZooScore(s.name, s.value, s.baseline, s.protocol_hash, s.is_fraction) for s in scores]


def _weights(run: Path, checkpoint: Path, manifest: Mapping[str, Any]) -> tuple[str, str]:
    exported = run / "export" / checkpoint.name / "manifest.json"
    if exported.is_file():
        content = _json(exported)
        name = f"{content['evaluated']}.safetensors"
        if name in content["files"]:
            return name, content["files"][name]["sha256"]
    name = next(name for name in sorted(manifest["files"]) if name.startswith("method"))
    return name, manifest["files"][name]["sha256"]


def _commit(environment: Mapping[str, Any]) -> str:
    commit = environment.get("commit")
    if commit is None:
        return f"ssl_zoo {environment.get('ssl_zoo', 'of unknown version')}, no commit"
    return f"`{commit[:12]}`" + (" with uncommitted changes" if environment.get("dirty") else "")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
