"""What a run was trained on: recorded in its directory and its checkpoints, compared when it resumes."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.data.names import printable
from ssl_zoo.data.sources import Source, Splits
from ssl_zoo.data.summary import summary
from ssl_zoo.engine.checkpoint.state import Checkpoint, CheckpointError
from ssl_zoo.io import write_atomic

log = logging.getLogger(__name__)

FILE_NAME = "data.json"
_MAX_NAMES, _MAX_CLASSES = 10_000, 1_000  # larger lists are recorded by number and digest alone
_SHOWN = 3


def data_record(splits: Splits) -> dict[str, Any]:
    """Return what identifies the data of a run, as plain JSON values; its place is no part of it.

    Each split has its number of samples and a digest of their names in their order. Classes have their number and a
    digest of their names.
    """
    classes = "\0".join(splits.train.classes).encode("utf-8", "surrogateescape")
    return {
        "train": _split_record(splits.train),
        "test": None if splits.test is None else _split_record(splits.test),
        "num_classes": splits.train.num_classes,
        "classes_digest": hashlib.blake2b(classes, digest_size=16).hexdigest(),
    }


def write_record(path: Path, splits: Splits) -> None:
    """Write ``data.json``: the record, names and classes where they are few, and what is left out."""
    listing = splits.train.listing
    content = {
        "summary": summary(splits),
        **data_record(splits),
        "classes": list(splits.train.classes) if len(splits.train.classes) <= _MAX_CLASSES else None,
        "names": {name: _names(source) for name, source in _by_name(splits).items()},
        "left_out": {
            reason.plural: {"count": group.count, "names": sorted(group.names)}
            for reason, group in (listing.left_out.items() if listing is not None else ())
        },
    }
    write_atomic(path / FILE_NAME, json.dumps(content, indent=1) + "\n")


def require_same_data(checkpoint: Checkpoint, splits: Splits, *, is_evaluated: bool = True) -> None:
    """Refuse to resume a run on other images than it was started on.

    Args:
        is_evaluated: whether the run uses the test split.

    Raises:
        CheckpointError: images or classes differ; the message says how.
    """
    there = checkpoint.manifest.get("data")
    if there is None:
        log.info("%s does not record its data, so that nothing can be compared", checkpoint.path)
        return
    changes = _changes(there, splits, _recorded(checkpoint.path.parent.parent), is_evaluated)
    if changes:
        raise CheckpointError(
            f"{checkpoint.path} was trained on other data than this: {'; '.join(changes)}. Give the run its data back; "
            "or start a new one with another output_dir=...; or go on with the data as it is now: --accept-changed-data"
        )


def compare_with_run(run: Path, splits: Splits) -> str:
    """Return how the data differs from that recorded in a run's directory; empty if it does not."""
    recorded = _recorded(run)
    return "; ".join(_changes(recorded, splits, recorded, True)) if recorded.get("train") else ""


def _changes(
    there: Mapping[str, Any], splits: Splits, recorded: Mapping[str, Any], is_evaluated: bool
) -> Sequence[str]:
    """Describe the changes; ``recorded`` is the content of ``data.json``, from which the names come."""
    here, changes = data_record(splits), []
    for name, source in _by_name(splits).items() if is_evaluated else [("train", splits.train)]:
        before, after = there[name], here[name]
        if before == after:
            continue
        counts = [0 if record is None else record["samples"] for record in (before, after)]
        if counts[0] != counts[1]:
            changes.append(f"{counts[0]:,} {name} images then, {counts[1]:,} now")
        is_known = recorded.get(name) == before
        changes += _difference(f"{name} images", recorded["names"][name] if is_known else None, _names(source))
    if (there["num_classes"], there["classes_digest"]) != (here["num_classes"], here["classes_digest"]):
        if there["num_classes"] != here["num_classes"]:
            changes.append(f"{there['num_classes']:,} classes then, {here['num_classes']:,} now")
        is_known = recorded.get("classes_digest") == there["classes_digest"]
        changes += _difference("classes", recorded["classes"] if is_known else None, list(splits.train.classes))
    return changes


def _by_name(splits: Splits) -> Mapping[str, Source | None]:
    return {"train": splits.train, "test": splits.test}


def _split_record(source: Source) -> dict[str, Any]:
    return {"samples": len(source), "fingerprint": source.fingerprint()}


def _difference(what: str, before: Sequence[str] | None, after: Sequence[str] | None) -> list[str]:
    if before is None or after is None:
        return [f"other names of {what}"]
    parts = []
    for word, names in (("added", set(after) - set(before)), ("removed", set(before) - set(after))):
        if names:
            more = ", ..." if len(names) > _SHOWN else ""
            parts.append(f"{what} {word}: {', '.join(sorted(names)[:_SHOWN])}{more}")
    return parts or [f"another order of the {what}"]


def _names(source: Source | None) -> list[str] | None:
    if source is None:
        return []
    names = source.names() if len(source) <= _MAX_NAMES else None
    return None if names is None else [printable(name) for name in names]


def _recorded(run: Path) -> Mapping[str, Any]:
    """Read ``data.json``; a run of an earlier version has none, and a damaged one only costs details of a message."""
    try:
        content = json.loads((run / FILE_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
