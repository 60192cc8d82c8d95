"""A strict reader of tar headers for untrusted archives.

Only regular files under relative names are accepted. tarfile reads extended headers of any size, follows chains of them
recursively, and supports sparse files, links and devices; here each of these is an error with the member's name.
Nothing is extracted: a member is a name and an offset in the archive.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssl_zoo.data.names import printable

BLOCK = 512
MAX_MEMBERS = 1_000_000  # of one archive; bounds the time and memory that its headers can take
_MAX_EXTENDED_BYTES = 16 << 10  # of a long name or a pax header
_MAX_EXTENDED_IN_A_ROW = 4
_MAX_NAME_BYTES = 1024
_REGULAR, _DIRECTORY = (b"0", b"\0"), b"5"
_LONG_NAME, _PAX, _PAX_GLOBAL = b"L", b"x", b"g"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_KINDS |= {b"S": "a sparse file", b"K": "a link with a long name", b"7": "a contiguous file"}
_OCTAL = re.compile(rb"[0-7]{1,12}")


class RefusedArchive(ValueError):
    """An archive is damaged, or contains a member that no shard of images needs."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file: its name, and the location of its bytes in the archive."""

    name: bytes
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """Yield the regular files of an uncompressed archive in order.

    Raises:
        RefusedArchive: the archive is truncated, damaged or no tar; it has links, devices, sparse files, absolute
            names, ``..``, endless extended headers or more than ``MAX_MEMBERS`` members.
    """
    with open(path, "rb", buffering=0) as file:
        archive_size = os.fstat(file.fileno()).st_size
        position, count, in_a_row, extended = 0, 0, 0, {}
        while True:
            header = os.pread(file.fileno(), BLOCK, position)
            if len(header) < BLOCK:
                raise RefusedArchive(f"{path} is truncated: it ends after {archive_size} bytes without an end mark")
            if not any(header):
                return
            count += 1
            if count > MAX_MEMBERS:
                raise RefusedArchive(f"{path} has more than {MAX_MEMBERS} members; split it into several shards")
            name, size, kind = _parse(header, path, position)
            is_extended = kind in (_LONG_NAME, _PAX, _PAX_GLOBAL)
            if not is_extended:
                name, size = extended.get("path", name), extended.get("size", size)
            start = position + BLOCK
            if start + size > archive_size:
                raise RefusedArchive(f"{path} is truncated: it ends in the middle of member {printable(name)}")
            position = start + -(-size // BLOCK) * BLOCK
            if is_extended:
                in_a_row += 1
                if size > _MAX_EXTENDED_BYTES or in_a_row > _MAX_EXTENDED_IN_A_ROW:
                    raise RefusedArchive(f"{path}: the extended headers at byte {start} are longer than any name needs")
                if kind != _PAX_GLOBAL:
                    extended |= _extended(os.pread(file.fileno(), size, start), kind, path)
                continue
            in_a_row, extended = 0, {}
            if kind == _DIRECTORY or (kind in _REGULAR and name.endswith(b"/")):
                if size:
                    raise RefusedArchive(f"{path}: folder {printable(name)} claims to have {size} bytes of its own")
                continue
            _check(name, kind, path)
            yield Member(name, start, size)


def _parse(header: bytes, path: Path, position: int) -> tuple[bytes, int, bytes]:
    """Parse name, size and type from a header block (POSIX.1-1988, and GNU's numbers of base 256)."""
    checksum = _number(header[148:156], path, position)
    # The checksum counts its own field as eight spaces.
    if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise RefusedArchive(
            f"{path} is no tar archive or is damaged: the header at byte {position} has a wrong checksum"
        )
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return name, _number(header[124:136], path, position), header[156:157]


def _number(field: bytes, path: Path, position: int) -> int:
    if field[0] == 0x80:  # base 256, positive
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not _OCTAL.fullmatch(digits):
        raise RefusedArchive(f"{path} is no tar archive or is damaged: no number in the header at byte {position}")
    return int(digits, 8)


def _extended(data: bytes, kind: bytes, path: Path) -> dict[str, bytes | int]:
    """Parse name and size from an extended header; all other pax records are ignored."""
    if kind == _LONG_NAME:
        return {"path": data.split(b"\0", 1)[0]}
    found: dict[str, bytes | int] = {}
    while data:
        length = data.split(b" ", 1)[0]
        if not length.isdigit() or len(length) > 9 or not len(length) + 2 < int(length) <= len(data):
            raise RefusedArchive(f"{path} has a broken pax header")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        data = data[int(length) :]
        if key.startswith(b"GNU.sparse"):
            raise RefusedArchive(f"{path} contains a sparse file; shards may only contain regular files")
        if key == b"path":
            found["path"] = value
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise RefusedArchive(f"{path} has a broken pax header: size={printable(value[:40])}")
            found["size"] = int(value)
    return found


def _check(name: bytes, kind: bytes, path: Path) -> None:
    if kind not in _REGULAR:
        what = _KINDS.get(kind, f"a member of type {kind!r}")
        raise RefusedArchive(f"{path}: {printable(name)} is {what}; shards may only contain regular files")
    parts = name.split(b"/")
    if not name or name.startswith(b"/") or b".." in parts or b"\0" in name or len(name) > _MAX_NAME_BYTES:
        raise RefusedArchive(
            f"{path}: {printable(name[:200])!r} is no name for a member: it must be relative, without .., at most "
            f"{_MAX_NAME_BYTES} bytes long"
        )
