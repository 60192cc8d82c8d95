"""Subsets of a labelled train split: held-out images for choosing settings, and few images per class."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.eval.features import Features
from ssl_zoo.seeding import generator_for


def take_rows(features: Features, rows: Int[Tensor, "k"]) -> Features:
    """Return the features at ``rows``."""
    labels = None if features.labels is None else features.labels[rows]
    return Features(features.values[rows], labels, features.index[rows])


def stratified_rows(labels: Int[Tensor, "n"], fraction: float, images_per_class: int, seed: int) -> Int[Tensor, "k"]:
    """Return the sorted rows of a random subset that is stratified by class.

    Args:
        fraction: fraction of each class's images to take, rounded, at least one image.
        images_per_class: number of images to take instead of a fraction; 0 means the fraction.

    Raises:
        ValueError: a class has fewer images than ``images_per_class``.
    """
    order = torch.randperm(len(labels), generator=generator_for(seed, "few"))
    chosen = []
    for label in labels.unique().tolist():
        rows = order[labels[order] == label]
        count = images_per_class or max(1, round(fraction * len(rows)))
        if count > len(rows):
            raise ValueError(f"class {label} has {len(rows)} train images, fewer than images_per_class={count}")
        chosen.append(rows[:count])
    return torch.cat(chosen).sort().values


def listed_rows(file: str, index: Int[Tensor, "n"], name_of: Callable[[int], str]) -> Int[Tensor, "k"]:
    """Return the sorted rows of the samples named in a file, such as a published split.

    Each line holds a sample's name or the last part of its path.

    Args:
        index: sample ids of the rows.
        name_of: returns the name of a sample id.

    Raises:
        ValueError: the file is missing or empty, or a name in it is not among the train images.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"split file {file} does not exist")
    listed = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not listed:
        raise ValueError(f"split file {file} names no image")
    names = [name_of(sample) for sample in index.tolist()]
    row_of = {full.rpartition("/")[2]: row for row, full in enumerate(names)}
    row_of |= {full: row for row, full in enumerate(names)}
    unknown = [entry for entry in listed if entry not in row_of]
    if unknown:
        raise ValueError(
            f"split file {file} names {len(unknown)} images that are not among the {len(names)} train images, "
            f"such as {unknown[0]!r}; train images have names like {names[0]!r}"
        )
    return torch.tensor([row_of[entry] for entry in listed]).unique()


def train_validation_rows(num_rows: int, fraction: float, seed: int) -> tuple[Int[Tensor, "k"], Int[Tensor, "m"]]:
    """Split rows at random into train rows and validation rows, at least one of each."""
    order = torch.randperm(num_rows, generator=generator_for(seed, "held_out"))
    count = min(max(1, round(fraction * num_rows)), num_rows - 1)
    return order[count:], order[:count]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation; the latter is None for a single value."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.mean().item(), tensor.std().item() if len(values) > 1 else None
