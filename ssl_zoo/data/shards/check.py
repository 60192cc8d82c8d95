"""Verification of shards against their manifest."""

import re
from pathlib import Path

from ssl_zoo.data.shards.index import Index, scan
from ssl_zoo.data.shards.manifest import FileInfo, file_info
from ssl_zoo.data.shards.place import Shards, default_cache, open_shards

_SHARD = re.compile(r"shard-\d+\.tar|\.shard-\d+\.tar\.partial")


def check_shards(path: str) -> list[str]:
    """Check sizes, hashes, numbers of samples and their offsets; return one line per problem.

    Raises:
        ValueError: there is no readable manifest.
    """
    shards = open_shards(path, default_cache())
    manifest = shards.manifest
    problems, index = _file_problems(shards, manifest.index), None
    if not problems:
        try:
            index = Index.from_bytes(
                shards.local(manifest.index).read_bytes(), [shard.bytes for shard in manifest.shards]
            )
        except ValueError as error:
            problems.append(f"{manifest.index.name}: {error}")
    for number in shards.numbers:
        shard = manifest.shards[number]
        wrong = _file_problems(shards, shard)
        problems += wrong or _content_problems(shards, number, index)
    names = {shard.name for shard in manifest.shards}
    if Path(shards.base).is_dir():
        strangers = sorted(file.name for file in Path(shards.base).iterdir() if _SHARD.fullmatch(file.name))
        problems += [f"{name}: it is not in the manifest" for name in strangers if name not in names]
    return problems


def _file_problems(shards: Shards, file: FileInfo) -> list[str]:
    try:
        found = file_info(shards.local(file))
    except (ValueError, OSError) as error:
        return [f"{file.name}: {error}"]
    if found.sha256 != file.sha256:
        return [f"{file.name}: its content has changed: sha256 {found.sha256[:12]}..., not {file.sha256[:12]}..."]
    return []


def _content_problems(shards: Shards, number: int, index: Index | None) -> list[str]:
    shard = shards.manifest.shards[number]
    try:
        entries, _ = scan(shards.local(shard))
    except ValueError as error:
        return [f"{shard.name}: {error}"]
    if index is None:
        return [] if len(entries) == shard.samples else [f"{shard.name}: {len(entries)} samples, not {shard.samples}"]
    rows = (index.shard == number).nonzero()[:, 0].tolist()
    indexed = {(index.name(row), int(index.offset[row]), int(index.size[row])) for row in rows}
    stored = {(entry.image.name, entry.image.offset, entry.image.size) for entry in entries}
    if len(rows) != shard.samples or not indexed <= stored:
        matching = len(indexed & stored)
        return [f"{shard.name}: {len(stored)} samples, {matching} of them as in the index, which has {shard.samples}"]
    return []
