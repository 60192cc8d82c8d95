"""What a sample is called where people see its image: its name, and its label."""

from pathlib import PurePosixPath

from ssl_zoo.data.sources.base import Source

_PARTS = 3  # last parts of a path that are shown


def caption(source: Source, index: int) -> str:
    """Return the name of a sample and its default label, the latter unless a folder of the name is the class.

    Of a path the last parts are kept. A label without a name is the label set and the number: ``count 3``.
    """
    parts = PurePosixPath(source.sample_name(index)).parts[-_PARTS:]
    name, label = "/".join(parts), _label(source, index)
    return name if not label or label in parts else f"{name}, {label}"


def _label(source: Source, index: int) -> str:
    if source.labels is None:
        return ""
    number = int(source.labels[index])
    if number < len(source.classes):
        return str(source.classes[number])
    return f"{next(iter(source.label_sets))} {number}"
