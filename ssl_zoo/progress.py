"""Where a run stands, and values that depend on it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """Where the run stands when a step begins."""

    step: int  # optimizer steps completed before this one
    num_steps: int
    samples: int  # images that all ranks together have consumed before this step
    steps_per_epoch: int = 1

    @property
    def fraction(self) -> float:
        return self.step / self.num_steps

    @property
    def epoch(self) -> float:
        """Epochs completed, with their fraction."""
        return self.step / self.steps_per_epoch


Schedule = Callable[[Progress], float | Tensor]
