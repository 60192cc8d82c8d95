"""Ranks as threads of one process: collectives with gradient, to compare functions of a ``World`` with one process."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from ssl_zoo.world import World

T = TypeVar("T")


class _Thread(World):
    def __init__(self, rank: int, slots: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.size, self.rank, self._slots, self._barrier = len(slots), rank, slots, barrier

    def _all(self, values: Tensor) -> list[Tensor]:
        self._slots[self.rank] = values
        self._barrier.wait(timeout=60)
        found = list(self._slots)
        self._barrier.wait(timeout=60)  # nobody writes the next values before all have read these
        return found

    def mean(self, values: Tensor) -> Tensor:
        return torch.stack(self._all(values)).mean(dim=0)

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat(self._all(rows))


def on_ranks(size: int, function: Callable[[World], T]) -> Sequence[T]:
    """Call a function on every rank at once; their mean loss has the gradient that the engine computes."""
    slots, barrier = [None] * size, threading.Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: function(_Thread(rank, slots, barrier)), range(size)))
