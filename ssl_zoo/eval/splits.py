"""Parts of a labelled train set: a held-out share for choosing settings, and few images per class."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.eval.features import Features
from ssl_zoo.seeding import generator_for


def rows_of(features: Features, rows: Int[Tensor, "k"]) -> Features:
    """The features at ``rows``."""
    labels = None if features.labels is None else features.labels[rows]
    return Features(features.values[rows], labels, features.index[rows])


def per_class(labels: Int[Tensor, "n"], fraction: float, images_per_class: int, seed: int) -> Int[Tensor, "k"]:
    """Sorted rows of a random subset with its share of every class.

    Args:
        fraction: of each class's images, rounded, at least one.
        images_per_class: replaces ``fraction`` unless 0.

    Raises:
        ValueError: a class has fewer images than ``images_per_class``.
    """
    order = torch.randperm(len(labels), generator=generator_for(seed, "few"))
    chosen = []
    for label in labels.unique().tolist():
        rows = order[labels[order] == label]
        wanted = images_per_class or max(1, round(fraction * len(rows)))
        if wanted > len(rows):
            raise ValueError(f"class {label} has {len(rows)} train images, fewer than images_per_class={wanted}")
        chosen.append(rows[:wanted])
    return torch.cat(chosen).sort().values


def published(file: str, index: Int[Tensor, "n"], name: Callable[[int], str]) -> Int[Tensor, "k"]:
    """Sorted rows of the samples that a list names, one a line, by their name or the last part of it.

    Args:
        index: sample ids of the rows.
        name: of a sample id.

    Raises:
        ValueError: the file is missing or empty, or a name in it is not among the train images.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"split file {file} does not exist")
    wanted = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not wanted:
        raise ValueError(f"split file {file} names no image")
    names = [name(sample) for sample in index.tolist()]
    row_of = {full.rpartition("/")[2]: row for row, full in enumerate(names)}
    row_of |= {full: row for row, full in enumerate(names)}
    lost = [entry for entry in wanted if entry not in row_of]
    if lost:
        raise ValueError(
            f"split file {file} names {len(lost)} images that are not among the {len(names)} train images, "
            f"such as {lost[0]!r}; these are named like {names[0]!r}"
        )
    return torch.tensor([row_of[entry] for entry in wanted]).unique()


def held_out(num_rows: int, fraction: float, seed: int) -> tuple[Int[Tensor, "k"], Int[Tensor, "m"]]:
    """Random rows to learn from and to choose settings by; at least one of each."""
    order = torch.randperm(num_rows, generator=generator_for(seed, "held_out"))
    count = min(max(1, round(fraction * num_rows)), num_rows - 1)
    return order[count:], order[:count]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for a single value."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.mean().item(), tensor.std().item() if len(values) > 1 else None
