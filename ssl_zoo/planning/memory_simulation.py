"""A step of a run on fake tensors of a GPU: what one rank holds, and when that is most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig, build_generators, build_run_method, build_views
from ssl_zoo.engine.device import autocast, prepare_method, resolve_precision
from ssl_zoo.engine.optim import Optimization, RateSchedules
from ssl_zoo.masks import MaskGenerator
from ssl_zoo.method import Method
from ssl_zoo.planning.allocation_tracker import GRADIENTS, Ledger
from ssl_zoo.planning.fake_gpu import WithoutDriver, fake_gpu
from ssl_zoo.planning.plan import plan_batch, plan_step
from ssl_zoo.seeding import generator_for

_DRAWS = 16  # of masks, of which the largest counts


@dataclass(frozen=True)
class Rehearsal:
    """Bytes of a rank that holds all parameters.

    Attributes:
        trained: of the parameters with a gradient; as much again are all gradients, and the copies that DDP reduces.
        fixed: of all others, the averages among them.
        optimizer: its state after the first step.
        batch: images of this step, and of the next one that is copied meanwhile.
        backward: by kind, what forward and backward passes add at their peak.
        update: what clipping, optimizer and averages add at their peak, gradients included.
    """

    trained: int
    fixed: int
    optimizer: int
    batch: int
    backward: Mapping[str, int]
    update: int


def rehearse(config: RunConfig, images_per_rank: int) -> Rehearsal:
    """Run forward and backward passes and the update of one rank's step, without numbers, in seconds.

    Two micro-batches stand for all, since gradients live from the first one on. Masks are the largest of some draws.

    Args:
        images_per_rank: images of the step that this rank has.
    """
    images = images_per_rank // config.trainer.gradient_accumulation_steps
    method = build_run_method(config, device="meta")
    method = prepare_method(method, config.trainer, torch.device("meta"))
    batch = _largest_batch(config, images)
    with fake_gpu() as device:
        method = method.to_empty(device=device)
        batch = batch.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        parameters = [*method.parameters(), *method.buffers()]
        ledger = Ledger([*parameters, *batch.tensors()])
        for parameter in trainable(method):
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.reassign(p.grad, GRADIENTS))
        with ledger:
            for _ in range(min(2, config.trainer.gradient_accumulation_steps)):
                _forward_backward(method, batch, config)
            backward = ledger.peak
            optimizer, update = _update(method, ledger, config)
        trained = num_bytes(trainable(method))
        share = images_per_rank / images
        return Rehearsal(
            trained,
            num_bytes(parameters) - trained,
            optimizer,
            round(2 * share * num_bytes([*batch.views.values()])),
            backward,
            update,
        )


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def num_bytes(tensors: Sequence[Tensor]) -> int:
    """Their elements' bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _forward_backward(method: Method, batch: Batch, config: RunConfig) -> None:
    [device] = {view.device for view in batch.views.values()}
    with WithoutDriver(trainable(method)) as autograd:
        with autocast(resolve_precision(config.trainer.precision, device), device):
            loss = method(batch, plan_step(method, device)).loss
        autograd.backward(loss)


def _update(method: Method, ledger: Ledger, config: RunConfig) -> tuple[int, int]:
    """Bytes of the optimizer's state, and the peak of a later step beside that state."""
    schedules = RateSchedules(config.optim, num_steps=1, steps_per_epoch=1)
    optimization = Optimization(config.optim, method.param_groups(), schedules)
    gradients = [(parameter, parameter.grad) for parameter in trainable(method)]
    state = 0
    for _ in range(2):
        for parameter, gradient in gradients:
            parameter.grad = gradient
        optimization.set_rates(0)
        ledger.reset_peak()
        optimization.clip()
        optimization.optimizer.step()
        for ema in method.emas():
            ema.update(0.0)
        update = sum(ledger.peak.values()) - state
        state = num_bytes([t for s in optimization.optimizer.state.values() for t in s.values()])
    return state, update


def _largest_batch(config: RunConfig, num_images: int) -> Batch:
    """Images of one micro-batch, with the masks of that draw that give networks the most to do."""
    views = build_views(config.views, config.backbone)
    generators = build_generators(views, config.masks, config.backbone)
    count = config.trainer.batch_size
    draw = max(range(_DRAWS), key=lambda number: _num_indices(generators, count, number))
    return plan_batch(views, generators, count, draw, num_images=num_images)


def _num_indices(generators: Mapping[str, MaskGenerator], num_images: int, draw: int) -> int:
    drawn = [generator(num_images, generator_for("plan", draw)) for generator in generators.values()]
    return sum(masks.context.shape[1:].numel() + masks.targets.shape[1:].numel() for masks in drawn)
