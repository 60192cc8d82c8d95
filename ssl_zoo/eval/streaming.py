"""Training inside an evaluator: step by step on all ranks, with checkpoints from which it resumes bit by bit."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_zoo.data.evaluation import NothingDecoded
from ssl_zoo.eval.ranks import rank_and_size, sum_over_ranks
from ssl_zoo.eval.split import EvaluationSplit

log = logging.getLogger(__name__)
_REPORT_EVERY_S = 60.0

Gradients = Callable[[int], Iterator[None]]
"""From a first step on, yields once per step, when each parameter's ``grad`` is this rank's share of the gradient.

The gradient is the sum of the shares of all ranks."""


class Checkpoints(Protocol):
    """Keeps the state of trainings under their names."""

    def restore(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest state into both and return the number of steps done; 0 if there is none."""

    def save(self, name: str, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Save the state after ``step`` steps; all ranks call this."""

    def remove(self) -> None:
        """Remove all states; all ranks call this when no training will be resumed any more."""


def training_name(*parts: Mapping[str, object] | str) -> str:
    """Return a name for a training that all that defines it determines."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    gradients: Gradients,
    num_steps: int,
    *,
    before_update: Callable[[int], None],
    checkpoints: Checkpoints | None = None,
    name: str = "",
    checkpoint_every: int = 0,
) -> None:
    """Run the remaining steps, all of them without checkpoints.

    Args:
        before_update: called with the step when gradients are summed; sets learning rates.
        name: of the training among those of ``checkpoints``.
        checkpoint_every: steps between two checkpoints, of which the last step is one as well; 0 = none.
    """
    keeps = checkpoints is not None and checkpoint_every > 0
    start = checkpoints.restore(name, module, optimizer) if keeps else 0
    if start >= num_steps:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    report = _Report(start, num_steps)
    for step, _ in zip(range(start, num_steps), gradients(start), strict=False):
        sum_in_place([parameter.grad for parameter in parameters if parameter.grad is not None])
        before_update(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if keeps and (done % checkpoint_every == 0 or done == num_steps):
            checkpoints.save(name, done, module, optimizer)
        report(done)


class _Report:
    """Logs how far a training is, once a minute."""

    def __init__(self, start: int, num_steps: int) -> None:
        self.start, self.num_steps, self.began = start, num_steps, time.monotonic()
        self.last = self.began

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last < _REPORT_EVERY_S or rank_and_size()[0] != 0:
            return
        self.last = now
        left = (now - self.began) / (done - self.start) * (self.num_steps - done)
        log.info("probe: step %d of %d, %.1f minutes left", done, self.num_steps, left / 60)


def length_of(epochs: float, num_images: int, batch_size: int) -> int:
    """Return the steps in which ``epochs`` times all images are seen, up to rounding."""
    return max(1, round(epochs * num_images / batch_size))


@torch.no_grad()
def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype by their sums over ranks."""
    for tensor, total in zip(tensors, sum_over_ranks(*tensors), strict=True):
        if total is not tensor:
            tensor.copy_(total)


def summed(values: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks, with gradient.

    The backward pass sums the gradients of all ranks, so that the gradient of the sum of the ranks' losses is right.
    """
    return values if rank_and_size()[1] == 1 else _Summed.apply(values)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return _all_reduced(values)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@torch.no_grad()
def accuracies(
    logits: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "heads B classes"]],
    split: EvaluationSplit,
    num_heads: int,
    device: torch.device,
) -> Sequence[float]:
    """Return the accuracy of each head on the images of a split; every image counts once on one rank.

    Raises:
        NothingDecoded: no image of the split could be decoded.
    """
    counts = torch.zeros(num_heads + 1, dtype=torch.int64, device=device)  # correct images of each head, all images
    for images, index in split.of_rank(*rank_and_size()):
        if len(index):
            counts[:-1] += _correct(logits(images.to(device)), split.labels[index].to(device))
            counts[-1] += len(index)
    sum_in_place([counts])
    *correct, total = counts.cpu().tolist()
    if total == 0:
        raise NothingDecoded(split.num_images, split.corrupt)
    return [number / total for number in correct]


def _correct(logits: Float[Tensor, "heads B classes"], labels: Int[Tensor, "B"]) -> Int[Tensor, "heads"]:
    return (logits.argmax(dim=-1) == labels).sum(dim=1)
