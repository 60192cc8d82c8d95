"""Folders of checkpoints by their names, without torch: tasks of a cluster only ask which steps are saved."""

import re
from pathlib import Path

STEP_FOLDER = re.compile(r"step_(\d{8,})")


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def step_of(path: Path) -> int:
    """Parse the step from the name of a checkpoint's folder."""
    return int(STEP_FOLDER.fullmatch(path.name)[1])


def list_checkpoints(run: Path) -> list[Path]:
    """List the published checkpoints of a run, oldest first."""
    folders = (run / "checkpoints").glob("step_*")
    return sorted((path for path in folders if STEP_FOLDER.fullmatch(path.name) and path.is_dir()), key=step_of)
