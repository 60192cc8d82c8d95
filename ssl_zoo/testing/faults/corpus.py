"""A hostile corpus: archives that must be refused, images that must be replaced, odd images that must be read.

No payload may be executed, memory and time must stay bounded, and a run must continue without the bad samples. An
executed payload leaves a file ``CANARY`` in the working directory.
"""

import struct
import tarfile
import zlib
from functools import partial
from pathlib import Path

from PIL import Image

from ssl_zoo.testing.faults.archives import encoded, jpeg, member, write_tar


def _headers(count: int, size: int = 0, kind: bytes = b"x", payload: bytes = b"") -> bytes:
    """Build consecutive extended headers, which tarfile would not write."""
    info = member("pax", type=kind, size=size or len(payload))
    block = info.tobuf(tarfile.USTAR_FORMAT)
    return (block + payload + b"\0" * (-len(payload) % 512)) * count


def _pax(key: str, value: object) -> bytes:
    record = f" {key}={value}\n"
    length = len(record) + len(str(len(record) + 2))
    return f"{length}{record}".encode()


def _write(content: bytes | list, path: Path) -> None:
    """Write a file of these bytes, or an archive of these members."""
    path.write_bytes(content) if isinstance(content, bytes) else write_tar(path, content)


_PICKLE = b"cos\nsystem\n(S'touch CANARY'\ntR."
_END = b"\0" * 1024
# Name -> (members or bytes of the archive, pattern of the expected error).
_CONTENTS = {
    "a pickle .pyd": ([("0.jpg", jpeg(0)), ("0.pyd", _PICKLE)], r"0\.pyd is of a type"),
    "a pickle .pkl": ([("0.jpg", jpeg(0)), ("0.pkl", _PICKLE)], r"0\.pkl is of a type"),
    "a pickle .pickle": ([("0.pickle", _PICKLE)], r"0\.pickle is of a type"),
    "a torch file": ([("0.pth", _PICKLE)], r"0\.pth is of a type"),
    "an array": ([("0.npy", b"\x93NUMPY")], r"0\.npy is of a type"),
    "a compressed member": ([("0.txt.gz", b"\x1f\x8b")], r"0\.txt\.gz is of a type"),
    "a script": ([("setup.py", b"")], r"setup\.py is of a type"),
    "no ending": ([("README", b"")], "README is of a type"),
    "a way out": ([("../../out.jpg", jpeg(0))], r"'../../out\.jpg' is no name"),
    "an inner way out": ([("a/../../out.jpg", jpeg(0))], "is no name"),
    "an absolute name": ([("/etc/x.jpg", jpeg(0))], r"'/etc/x\.jpg' is no name"),
    "an endless name": ([("a/" * 2000 + "b.jpg", jpeg(0))], "is no name"),
    "a symbolic link": (
        [(member("0.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")],
        r"0\.jpg is a symbolic link",
    ),
    "a hard link": ([(member("0.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")], r"0\.jpg is a hard link"),
    "a device": ([(member("0.jpg", type=tarfile.CHRTYPE), b"")], r"0\.jpg is a device"),
    "a pipe": ([(member("0.jpg", type=tarfile.FIFOTYPE), b"")], r"0\.jpg is a pipe"),
    "a GNU sparse file": ([(member("0.jpg", type=tarfile.GNUTYPE_SPARSE), b"")], r"0\.jpg is a sparse file"),
    "a pax sparse file": (_headers(1, payload=_pax("GNU.sparse.realsize", 1 << 40)) + _END, "sparse file"),
    "endless pax headers": (_headers(20_000, payload=_pax("comment", "x")) + _END, "longer than any"),
    "a huge pax header": (_headers(1, payload=_pax("comment", "x" * 2**23)) + _END, "longer than"),
    "a pax header that lies": (_headers(1, payload=b"99 path=x\n") + _END, "broken pax header"),
    "a pax length without end": (_headers(1, payload=b"9" * 5000 + b" path=x\n") + _END, "broken"),
    "a negative pax size": (_headers(1, payload=_pax("size", -1)) + _END, "broken pax header"),
    "a huge size": (
        member("0.jpg", size=1 << 60).tobuf(tarfile.GNU_FORMAT) + _END,
        r"ends in the middle of member 0\.jpg",
    ),
    "a folder with content": (
        member("a/", type=tarfile.DIRTYPE, size=512).tobuf() + b"\0" * 512 + _END,
        "folder a/? claims to have 512 bytes",
    ),
    "a gzip": (b"\x1f\x8b" + b"x" * 2000, "no tar archive"),
    "an empty file": (b"", "is truncated"),
    "a wrong checksum": (b"1" + member("0.jpg").tobuf()[1:] + _END, "wrong checksum"),
}
# Name -> (function that writes the archive, pattern of the expected error).
ARCHIVES = {name: (partial(_write, content), complaint) for name, (content, complaint) in _CONTENTS.items()}


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    """Build a PNG whose header declares that size, with compressed zeros as content."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data or zlib.compress(b"\0" * (1 << 22)))


_ROTATED = Image.Exif()
_ROTATED[0x0112] = 6  # rotate clockwise for display
# Name -> (content, text expected in the report of its replacement). "large.jpg" is above 150,000 bytes.
BAD_IMAGES = {
    "bomb.png": (_png(50_000, 50_000), "more pixels than data.max_image_pixels"),
    "large.jpg": (jpeg(0) + b"\0" * 200_000, "bytes are more than data.max_image_bytes"),
    "empty.jpg": (b"", "the file is empty"),
    "cut.jpg": (jpeg(3, (64, 64))[:-60], ""),
    "text.jpg": (b"import os; os.system('touch CANARY')", "not an image"),
    "pickle.png": (_PICKLE, "not an image"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(touch CANARY) run\n", "not an image"),
    "zip.webp": (b"PK\x03\x04" + b"\0" * 100, "not an image"),
    "small.png": (_png(2, 2), "pixels are below data.min_image_side"),
}
# Decoded, all have 24x16 pixels.
ODD_IMAGES = {
    "cmyk.jpg": encoded(Image.new("CMYK", (24, 16)), "JPEG"),
    "sixteen.png": encoded(Image.new("I;16", (24, 16), 40_000), "PNG"),
    "rotated.jpg": encoded(Image.new("RGB", (16, 24)), "JPEG", exif=_ROTATED),
    "profile.jpg": encoded(Image.new("RGB", (24, 16)), "JPEG", icc_profile=b"\0" * 90_000),
}
