"""The order of samples: an endless stream of shuffled epochs, a pure function of (seed, position).

Nothing here has a state. The order is the same after a resume and for any number of loader workers and ranks, since
each computes the rows of a step instead of advancing an iterator.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.seeding import generator_for

EpochOrder = Callable[[int, int], Int[Tensor, "n"]]  # (seed, epoch) -> the ids of that epoch; a pure function


def shuffled(seed: int, epoch: int, num_samples: int) -> Int[Tensor, "n"]:
    """Return all ids in random order."""
    return torch.randperm(num_samples, generator=generator_for(seed, "order", epoch))


@lru_cache(maxsize=4)  # a step needs one or two epochs, and a prefetching worker may be one epoch ahead
def _epoch(epoch_order: EpochOrder | None, seed: int, epoch: int, num_samples: int) -> Int[Tensor, "n"]:
    return shuffled(seed, epoch, num_samples) if epoch_order is None else epoch_order(seed, epoch)


def indices(
    seed: int, step: int, batch_size: int, num_samples: int, epoch_order: EpochOrder | None = None
) -> Int[Tensor, "G"]:
    """Return the ids of a step's global batch: rows step*G .. (step+1)*G of the stream of epochs.

    Every epoch is an exact permutation of the data set, except in a mixture with weights. A batch may span two epochs,
    or more when the data set is smaller than a batch. Rank r of R takes the rows r*G/R .. (r+1)*G/R.

    Args:
        epoch_order: the order of an epoch's ``num_samples`` ids; ``shuffled`` when None.
    """
    rows, position, stop = [], step * batch_size, (step + 1) * batch_size
    while position < stop:
        epoch, offset = divmod(position, num_samples)
        taken = min(stop - position, num_samples - offset)
        rows.append(_epoch(epoch_order, seed, epoch, num_samples)[offset : offset + taken])
        position += taken
    return torch.cat(rows)
