"""Nearest neighbours of images among others: those that the k-NN evaluator finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.data.captions import caption
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.image_list import ImageList
from ssl_zoo.data.sources import Source
from ssl_zoo.eval.features import Features, extract
from ssl_zoo.eval.knn import KNNConfig, nearest_neighbours
from ssl_zoo.plotting import Column, Figure
from ssl_zoo.visualization.subject import Subject


@dataclass(frozen=True)
class Bank:
    """Images among which neighbours are looked for.

    Attributes:
        samples: ids of the images in ``source``.
        name: what the images are, in words.
    """

    source: Source
    samples: Int[Tensor, "n"]
    name: str


def plot_neighbours(subject: Subject, bank: Bank, config: KNNConfig, num_neighbours: int) -> Figure:
    """Return a figure with each image and its nearest neighbours, the nearest first, with their cosine similarity.

    An image of the bank that is the query itself, by its place, is no neighbour of it.

    Args:
        config: of the run's k-NN evaluator; its pooling, layers and standardization are used.

    Raises:
        ValueError: the bank has fewer images than neighbours.
    """
    own = _own_rows(subject, bank)
    features = bank_features(subject, bank.source, bank.samples, config)
    queries = bank_features(subject, subject.source, torch.tensor(subject.samples), config)
    available = len(features.values) - any(row is not None for row in own)
    if num_neighbours > available:
        raise ValueError(f"--num-neighbours {num_neighbours}: {bank.name} has {available} other images")
    k = min(num_neighbours + 1, len(features.values))
    similarity, rows = nearest_neighbours(features, queries, config, k, device=subject.device)
    kept = [
        [place for place, row in enumerate(found) if int(features.index[row]) != self_id][:num_neighbours]
        for found, self_id in zip(rows.tolist(), own, strict=True)
    ]
    order = torch.tensor(kept)
    similarity, rows = similarity.gather(1, order), rows.gather(1, order)
    columns = [Column("query", subject.pixels)]
    for place in range(num_neighbours):
        samples = features.index[rows[:, place]].tolist()
        images = subject.rendering.pixels([bank.source.image(sample) for sample in samples])
        captions = [
            f"{value:.3f}  {caption(bank.source, sample)}"
            for value, sample in zip(similarity[:, place].tolist(), samples, strict=True)
        ]
        columns.append(Column(f"neighbour {place + 1}", images, captions))
    return Figure(
        f"Nearest neighbours: the most similar of {len(features.values):,} images ({bank.name})",
        columns,
        note="The number is the cosine similarity of the images' features, at most 1. A k-NN classifier lets these "
        "neighbours vote for the class of the query.",
    )


def bank_features(subject: Subject, source: Source, samples: Int[Tensor, "n"], config: KNNConfig) -> Features:
    """Return the features of images as the k-NN evaluator extracts them; those that can't be decoded are left out."""
    rendering = subject.rendering
    data = EvaluationData(source, samples, size=rendering.size, mean=rendering.mean, std=rendering.std)
    return extract(
        subject.encoder,
        data,
        pooling=config.pooling,
        num_layers=config.num_layers,
        final_norm=config.final_norm,
        device=subject.device,
        autocast=subject.autocast,
    )


def _own_rows(subject: Subject, bank: Bank) -> Sequence[int | None]:
    """Return the id that each query has in the bank's source; None where it is not there."""
    if subject.source is bank.source:
        in_bank = set(bank.samples.tolist())
        return [sample if sample in in_bank else None for sample in subject.samples]
    if isinstance(subject.source, ImageList) and isinstance(bank.source, ImageList):
        by_place = {bank.source.place(sample): sample for sample in bank.samples.tolist()}
        return [by_place.get(subject.source.place(sample)) for sample in subject.samples]
    return [None] * len(subject.samples)
