"""The ranks of a run as a method sees them: collectives with gradient, which are the identity on one process."""

from torch import Tensor


class World:
    """One process alone. The engine hands methods a subclass that communicates where there are more.

    A loss that is a function of gathered or averaged tensors has the value and the gradient of one process that holds
    all images: the engine averages gradients over ranks, and the backward passes here are made for that.
    """

    size: int = 1
    rank: int = 0  # whose rows stand at ``rank * len(rows)`` in what ``gather`` returns

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over ranks, elementwise."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the tensors of all ranks along the first dimension, in the order of ranks.

        Args:
            rows: of one shape on every rank.
        """
        return rows
