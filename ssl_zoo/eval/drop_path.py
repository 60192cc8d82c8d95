"""Drop path whose decisions are sampled for the batch of all ranks, so that they don't depend on their number."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_zoo.nn import ViT
from ssl_zoo.seeding import generator_for


class Decisions:
    """Which branches run for which images: a function of (seed, step).

    Args:
        rates: probability of each branch to be dropped.
    """

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self._kept: Bool[Tensor, "branches b"] | None = None

    def sample(self, seed: int, step: int, batch_size: int) -> Bool[Tensor, "branches B"]:
        """Sample the decisions of a step, True where a branch runs."""
        samples = torch.rand(len(self.rates), batch_size, generator=generator_for(seed, "drop_path", step))
        return samples >= torch.tensor(self.rates)[:, None]

    def use(self, kept: Bool[Tensor, "branches b"]) -> None:
        """Set the decisions of the images that come next."""
        self._kept = kept

    def of(self, branch: int) -> Bool[Tensor, "b"]:
        assert self._kept is not None
        return self._kept[branch]


class SharedDropPath(nn.Module):
    """Drops a residual branch for some images and scales it for the others (arXiv 1603.09382)."""

    def __init__(self, decisions: Decisions, branch: int) -> None:
        super().__init__()
        self.decisions, self.branch = decisions, branch

    def forward(self, values: Float[Tensor, "b *_"]) -> Float[Tensor, "b *_"]:
        if not self.training:
            return values
        kept = self.decisions.of(self.branch).to(values.dtype) / (1 - self.decisions.rates[self.branch])
        return values * kept.view(-1, *[1] * (values.ndim - 1))


def set_drop_path(encoder: ViT, rate: float) -> Decisions:
    """Give each block a drop-path rate, which grows linearly to ``rate`` at the last block."""
    rates: list[float] = []
    decisions = Decisions(rates)
    for number, block in enumerate(encoder.blocks):
        block_rate = rate * number / max(1, len(encoder.blocks) - 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, SharedDropPath(decisions, len(rates)) if block_rate else nn.Identity())
            if block_rate:
                rates.append(block_rate)
    return decisions
