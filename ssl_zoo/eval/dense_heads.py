"""Linear maps of patch tokens, one per learning rate, trained on the same batches by all ranks."""

import copy
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_zoo.eval.ranks import sum_over_ranks
from ssl_zoo.seeding import generator_for


class Heads:
    """Linear maps of tokens that are trained on the same batches, each with a learning rate of its own.

    Args:
        mean, std: of each dimension of the tokens.
        lrs: learning rates, one per head.
        weight_decay: of AdamW.
        seed: of the initial weights, the same for all heads.
    """

    def __init__(
        self,
        mean: Float[Tensor, "D"],
        std: Float[Tensor, "D"],
        num_outputs: int,
        *,
        lrs: Sequence[float],
        weight_decay: float,
        seed: int,
    ) -> None:
        self.mean, self.std = mean, std
        initial = 0.01 * torch.randn(len(mean), num_outputs, generator=generator_for(seed, "dense"))
        self.weights = [nn.Parameter(initial.clone().to(mean.device)) for _ in lrs]
        self.biases = [nn.Parameter(torch.zeros(num_outputs, device=mean.device)) for _ in lrs]
        groups = [
            {"params": pair, "lr": lr, "peak": lr} for *pair, lr in zip(self.weights, self.biases, lrs, strict=True)
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)

    @property
    def num_heads(self) -> int:
        return len(self.weights)

    def only(self, head: int) -> "Heads":
        """Return one of the heads, for scoring."""
        chosen = copy.copy(self)
        chosen.weights, chosen.biases = self.weights[head : head + 1], self.biases[head : head + 1]
        return chosen

    def standardized(self, tokens: Float[Tensor, "B h w D"]) -> Float[Tensor, "B h w D"]:
        return (tokens - self.mean) / self.std

    def __call__(self, tokens: Float[Tensor, "B h w D"]) -> Iterator[Float[Tensor, "B outputs h w"]]:
        """Compute the outputs of every head with one matmul, without gradient."""
        weights, biases = torch.cat(self.weights, dim=1).detach(), torch.cat(self.biases).detach()
        outputs = (tokens @ weights + biases).chunk(self.num_heads, dim=-1)
        yield from (part.permute(0, 3, 1, 2).contiguous() for part in outputs)

    def step(
        self,
        tokens: Float[Tensor, "B h w D"],
        gradients: Sequence[Float[Tensor, "B outputs h w"]],
        count: Tensor,
        factor: float,
    ) -> None:
        """Take one optimizer step on the mean loss over all ranks.

        Args:
            gradients: of the sum of this rank's losses, with respect to each head's outputs.
            count: number of this rank's losses.
            factor: of the learning rates, from the schedule.
        """
        of_outputs = torch.cat(list(gradients), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        of_weights, of_biases = tokens.flatten(0, 2).T @ of_outputs, of_outputs.sum(dim=0)
        of_weights, of_biases, count = sum_over_ranks(of_weights, of_biases, count.to(of_biases.dtype))
        of_weights, of_biases = (gradient / count.clamp(min=1) for gradient in (of_weights, of_biases))
        for parameters, gradient in ((self.weights, of_weights), (self.biases, of_biases)):
            for parameter, part in zip(parameters, gradient.chunk(self.num_heads, dim=-1), strict=True):
                parameter.grad = part
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        self._optimizer.step()
