"""Manifests for existing shards, which are neither moved nor changed."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ssl_zoo.data.shards.index import Entry, Index, scan
from ssl_zoo.data.shards.manifest import INDEX_NAME, MANIFEST_NAME, LabelSet, Manifest, ShardInfo, file_info
from ssl_zoo.data.shards.place import default_cache, expand, fetch
from ssl_zoo.io import PATHS, write_atomic


def index_shards(
    patterns: Sequence[str],
    folder: Path,
    *,
    label_keys: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write manifest and index of shards into a folder, theirs or another one.

    Args:
        patterns: paths or addresses of shards, with braces or without.
        label_keys: integers in the samples' ``.json`` that are labels.

    Raises:
        ValueError: the folder already has a manifest; a shard is missing, damaged or refused; there is no usable
            sample; only some samples have labels.
    """
    if (folder / MANIFEST_NAME).exists():
        raise ValueError(f"{folder} has a {MANIFEST_NAME} already; delete it first to write it again")
    shards: list[ShardInfo] = []
    entries: list[tuple[int, Entry]] = []
    for number, place in enumerate(place for pattern in patterns for place in expand(pattern)):
        path, file = fetch(place, default_cache())
        found, left_out = scan(path, label_keys)
        if PATHS.is_remote(place):
            name = place
        else:
            name = path.name if path.parent.resolve() == folder.resolve() else str(path.resolve())
        shards.append(ShardInfo.of(replace(file, name=name), len(found), left_out))
        entries += [(number, entry) for entry in found]
        first = f", e.g. {left_out[0].name}: {left_out[0].reason}" if left_out else ""
        report(f"{place}: {len(found)} samples, {len(left_out)} left out{first}")
    if not entries:
        raise ValueError(f"{' '.join(patterns)}: no usable sample in {len(shards)} shards")
    manifest = replace(_describe(entries, folder), shards=tuple(shards), source=f"{len(shards)} existing shards")
    write_atomic(folder / MANIFEST_NAME, manifest.text())
    return manifest


def _describe(entries: Sequence[tuple[int, Entry]], folder: Path) -> Manifest:
    label_sets = list(dict.fromkeys(name for _, entry in entries for name in entry.labels))
    unlabelled = sum(len(entry.labels) < len(label_sets) for _, entry in entries)
    if unlabelled:
        raise ValueError(f"{unlabelled} of {len(entries)} samples have no label {' or '.join(label_sets)}, others do")
    index = Index.of(entries, label_sets)
    write_atomic(folder / INDEX_NAME, index.to_bytes())
    return Manifest(
        source="",
        plan=hashlib.sha256(index.to_bytes()).hexdigest(),
        shards=(),
        index=file_info(folder / INDEX_NAME),
        label_sets={name: LabelSet(int(values.max()) + 1) for name, values in index.labels.items()},
    )
