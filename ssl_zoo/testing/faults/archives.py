"""Tar archives for faults and tests, written member by member with arbitrary headers."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(shade: int, size: tuple[int, int] = (16, 16)) -> bytes:
    return encoded(Image.new("RGB", size, (shade % 256, 10, 200)), "JPEG")


def member(name: str | bytes, **settings: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
    for key, value in settings.items():
        setattr(info, key, value)
    return info


def write_tar(path: Path, files: Iterable[tuple[str | bytes | tarfile.TarInfo, bytes]], **options: object) -> Path:
    """Write an archive of names, or complete headers, and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files:
            info = name if isinstance(name, tarfile.TarInfo) else member(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
