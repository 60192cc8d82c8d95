"""Optimizers of stacked heads: the first dimension of every parameter is the head, and each head has its own rates."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LARS_TRUST = 0.001


class StackedOptimizer(torch.optim.Optimizer):
    """Base of the optimizers here.

    Args:
        lrs, weight_decays: of each head.

    Attributes:
        factor: multiplies all learning rates; the schedule sets it before each step.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lrs: Sequence[float], weight_decays: Sequence[float]
    ) -> None:
        super().__init__(list(parameters), {})
        device = self.param_groups[0]["params"][0].device
        self.lrs, self.weight_decays = torch.tensor(lrs, device=device), torch.tensor(weight_decays, device=device)
        self.factor = 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, self.state[parameter])

    def _update(self, parameter: nn.Parameter, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def _rates(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
        """Return learning rates and weight decays in a shape that broadcasts over a parameter."""
        shape = [-1] + [1] * (parameter.ndim - 1)
        return self.factor * self.lrs.view(shape), self.weight_decays.view(shape)


class StackedSGD(StackedOptimizer):
    """SGD with momentum; with ``lars`` each update is scaled by the norm of the weights over that of their gradient.

    Biases, which are parameters of two dimensions, have neither weight decay nor scaling (LARS, arXiv 1708.03888).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lrs: Sequence[float],
        weight_decays: Sequence[float],
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        lars: bool = False,
    ) -> None:
        super().__init__(parameters, lrs, weight_decays)
        self.momentum, self.nesterov, self.lars = momentum, nesterov, lars

    def _update(self, parameter: nn.Parameter, state: dict[str, Any]) -> None:
        rate, decay = self._rates(parameter)
        gradient = parameter.grad
        if parameter.ndim > 2:
            gradient = gradient + decay * parameter
            if self.lars:
                gradient = gradient * _trust(parameter, gradient)
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        velocity = state["momentum"].mul_(self.momentum).add_(gradient)
        parameter.sub_(rate * (gradient + self.momentum * velocity if self.nesterov else velocity))


def _trust(weights: Tensor, gradient: Tensor) -> Tensor:
    inner = tuple(range(1, weights.ndim))
    norm, gradient_norm = (tensor.square().sum(inner, keepdim=True).sqrt() for tensor in (weights, gradient))
    return torch.where((norm > 0) & (gradient_norm > 0), LARS_TRUST * norm / gradient_norm, 1.0)


class StackedAdamW(StackedOptimizer):
    """AdamW (arXiv 1711.05101), whose weight decay holds for all parameters, as torch's."""

    betas, eps = (0.9, 0.999), 1e-8

    def _update(self, parameter: nn.Parameter, state: dict[str, Any]) -> None:
        rate, decay = self._rates(parameter)
        if not state:
            state["step"] = torch.zeros(())  # on the CPU, where reading it waits for nothing
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = (1 - beta ** state["step"].item() for beta in self.betas)
        state["mean"].lerp_(parameter.grad, 1 - self.betas[0])
        state["square"].mul_(self.betas[1]).addcmul_(parameter.grad, parameter.grad, value=1 - self.betas[1])
        parameter.mul_(1 - rate * decay)
        parameter.sub_(rate / first * state["mean"] / ((state["square"] / second).sqrt() + self.eps))
