"""Golden fixtures with something changed."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file


def changed(published: Path, folder: Path, tensors: dict | None = None, config: dict | None = None) -> str:
    """Path of a copy in ``folder`` with other tensors (None leaves one out) and other settings."""
    with safe_open(str(published), "pt") as file:
        settings = json.loads(file.metadata()["config"])
    path = folder / "fixture.safetensors"
    kept = {n: t for n, t in {**load_file(published), **(tensors or {})}.items() if t is not None}
    save_file(kept, path, {"config": json.dumps(settings | (config or {}))})
    return str(path)
