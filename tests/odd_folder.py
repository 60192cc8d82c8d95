"""A folder of two hundred odd files: formats, sizes, names, links, junk and the outputs of runs, all at once."""

import io
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from PIL import Image

FORMATS = {"jpg": "JPEG", "JPG": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
FORMATS |= {"tif": "TIFF", "tiff": "TIFF", "gif": "GIF", "ppm": "PPM", "pgm": "PPM"}
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F")
NAMES = (
    *("new\nline.png", "tab\t.png", "escape\x1b[31m.png", "-rf.png", " space .png", "per%cent%s.png", "'quotes\".png"),
    *(
        "cat.1.jpg",
        "cat.2.jpg",
        "#hash.png",
        "$HOME.png",
        "ünïcode.png",
        "日本語.png",
        "[brackets].png",
        "back\\slash.png",
    ),
    *("caf\u00e9.png", "cafe\u0301.png", "Case.png", "case.png", "n" * 251 + ".png", "{0}.png", "*.png", "a.png.png"),
)
JUNK = (
    *("notes.txt", "labels.csv", "README", "photo.heic", "photo.avif", "drawing.svg", "array.npy", "scan.dcm"),
    *("texture.tga", "movie.mp4", "archive.zip", "model.pt", "photo.jpg.txt", "img.jpg~", "img.png.part"),
)


@dataclass
class OddFolder:
    """What was written, by relative name: images that must decode, files that can't, and files that may do either."""

    good: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    either: set[str] = field(default_factory=set)


def write_odd_folder(root: Path) -> OddFolder:
    odd = OddFolder()
    number = 0

    def put(name: str | bytes, content: bytes) -> str:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        return os.fsdecode(name)

    def image(size: tuple[int, int] = (40, 36), mode: str = "RGB", kind: str = "PNG") -> bytes:
        nonlocal number
        number += 1
        grey = numpy.random.default_rng(number).integers(0, 255, (size[1], size[0]))
        if mode in ("I;16", "I", "F"):
            made = Image.fromarray((grey * 200).astype({"I;16": "uint16", "I": "int32", "F": "float32"}[mode]))
        else:
            made = Image.fromarray(grey.astype("uint8")).convert(mode)
        buffer = io.BytesIO()
        made.save(buffer, kind)
        return buffer.getvalue()

    for index in range(75):
        odd.good.add(put(f"cat/{index:03}.png", image()))
    for index, (ending, kind) in enumerate(FORMATS.items()):
        odd.good.add(put(f"dog/{index}.{ending}", image(kind=kind)))
    for index, size in enumerate([(8, 8), (9, 300), (300, 9), (64, 64), (333, 77)]):
        odd.good.add(put(f"dog/size{index}.png", image(size)))
    for mode in MODES:
        kind = "TIFF" if mode in ("CMYK", "I", "F") else "PNG"
        odd.either.add(put(f"dog/mode_{mode.replace(';', '_')}.{kind.lower()}", image(mode=mode, kind=kind)))
    for name in NAMES:
        odd.good.add(put(f"names/{name}", image(kind="JPEG" if name.endswith("jpg") else "PNG")))
    odd.good.add(put(b"names/caf\xe9.png", image()))
    odd.good.add(put("dog/folder.png/inside.png", image()))
    odd.good.add(put("dog/really_a_png.jpg", image()))
    odd.bad.add(put(b"names/broken_\xff\xfe.png", b"junk"))
    odd.bad.add(put("names/broken\n\t.png", b"junk"))
    for index in range(4):
        odd.bad.add(put(f"cat/empty{index}.png", b""))
        odd.bad.add(put(f"cat/cut{index}.jpg", image((200, 200), kind="JPEG")[: 900 + 100 * index]))
        odd.bad.add(put(f"dog/text{index}.png", b"This is no image. " * 9))
        odd.bad.add(put(f"dog/small{index}.png", image((3, 5))))
    odd.bad.add(put("dog/locked.png", image()))
    for index, name in enumerate((*JUNK, *JUNK)):
        put(f"{'cat' if index < len(JUNK) else 'dog'}/{name}", b"junk")
    for index in range(5):
        put(f"stray{index}.png", image())
    _write_links(root)
    _write_outputs(put, image)
    (root / "locked_folder").mkdir()
    put("locked_folder/a.png", image())
    (root / "dog" / "empty_folder.jpg").mkdir()
    return odd


def _write_links(root: Path) -> None:
    for name, target in {
        "cat/broken.png": "nowhere.png",
        "cat/itself.png": "itself.png",
        "dog/loop": "..",
        "dog/again": "../cat",
        "cat/zero.png": "/dev/zero",
        "cat/good_link.png": "000.png",
    }.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "cat" / "pipe.png")
    listener = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(root / "cat")  # the path of a socket may have 108 bytes
    listener.bind("socket.jpg")
    os.chdir(before)
    listener.close()


def _write_outputs(put, image) -> None:
    for run in ("runs/one", "dog/nested/run"):
        put(f"{run}/config.yaml", b"a: 1")
        put(f"{run}/metrics.jsonl", b"{}")
        put(f"{run}/figures/masks_step_00000001.png", image())
    for name in (".git/x.png", ".ipynb_checkpoints/000-checkpoint.png", "@eaDir/000.png/thumb.jpg", "__MACOSX/000.png"):
        put(name, image())
    for name in ("cat/._000.png", "cat/.hidden.png", "cat/Thumbs.db", ".DS_Store"):
        put(name, b"junk")
