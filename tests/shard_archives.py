"""Folders of images for tests of shards."""

from collections.abc import Iterable
from pathlib import Path

from ssl_zoo.testing.faults.archives import jpeg


def write_images(folder: Path, names: Iterable[str]) -> Path:
    for shade, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(shade))
    return folder
