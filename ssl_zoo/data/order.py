"""Which sample stands where: an endless stream of shuffled epochs, a pure function of (seed, position).

Nothing here has a state. Exact resume, any number of loader workers and any number of ranks see the same order, since
each asks for the rows of a step instead of advancing an iterator.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_zoo.seeding import generator_for

EpochOrder = Callable[[int, int], Int[Tensor, "n"]]  # (seed, epoch) -> the ids of that epoch; a pure function


def shuffled(seed: int, epoch: int, num_samples: int) -> Int[Tensor, "n"]:
    """All ids in random order."""
    return torch.randperm(num_samples, generator=generator_for(seed, "order", epoch))


@lru_cache(
    maxsize=4
)  # a step touches one or two epochs; 4 keep training and a look-ahead worker from evicting each other
def _epoch(epoch_order: EpochOrder | None, seed: int, epoch: int, num_samples: int) -> Int[Tensor, "n"]:
    return shuffled(seed, epoch, num_samples) if epoch_order is None else epoch_order(seed, epoch)


def indices(
    seed: int, step: int, batch_size: int, num_samples: int, epoch_order: EpochOrder | None = None
) -> Int[Tensor, "G"]:
    """Samples of the global batch of a step: rows step*G .. (step+1)*G of the stream of epochs.

    Every epoch is an exact permutation of the data set; only a mixture with weights has other epochs. A batch may span
    the border of two epochs, or several epochs when the data set is smaller than a batch. Rank r of R takes the
    contiguous rows r*G/R .. (r+1)*G/R.

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
