"""Simulation of one step's memory on fake tensors of a GPU: what one rank holds, and its peak."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig, build_generators, build_run_method, build_views
from ssl_zoo.engine.device import autocast, prepare_method
from ssl_zoo.engine.optim import Optimization, RateSchedules
from ssl_zoo.engine.precision import choose_precision
from ssl_zoo.masks import MaskGenerator
from ssl_zoo.method import Method
from ssl_zoo.planning.allocation_tracker import GRADIENTS, AllocationTracker
from ssl_zoo.planning.fake_gpu import WithoutDriver, fake_gpu
from ssl_zoo.planning.plan import plan_batch, plan_step
from ssl_zoo.seeding import generator_for

_NUM_MASK_SAMPLES = 16  # the largest one counts


@dataclass(frozen=True)
class SimulatedMemory:
    """Bytes of a rank that holds all parameters.

    Attributes:
        trained: parameters with a gradient; all gradients take the same again, and so do the buckets that DDP reduces.
        fixed: all other parameters, EMA weights included, and buffers.
        optimizer: state after the first step.
        batch: images of this step, and of the next one that is copied in parallel.
        backward: by kind, what forward and backward passes add at their peak.
        update: what clipping, optimizer and EMA add at their peak, gradients included.
    """

    trained: int
    fixed: int
    optimizer: int
    batch: int
    backward: Mapping[str, int]
    update: int


def simulate_memory(config: RunConfig, images_per_rank: int) -> SimulatedMemory:
    """Run one rank's forward and backward passes and update on fake tensors, which takes seconds.

    Two micro-batches stand for all, since gradients live from the first one on. Masks are the largest of 16 samples.

    Args:
        images_per_rank: this rank's images of one step.
    """
    images = images_per_rank // config.trainer.gradient_accumulation_steps
    method = build_run_method(config, device="meta")
    method = prepare_method(method, config.trainer, torch.device("meta"))
    batch = _largest_batch(config, images)
    with fake_gpu() as device:
        method = method.to_empty(device=device)
        batch = batch.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        parameters = [*method.parameters(), *method.buffers()]
        tracker = AllocationTracker([*parameters, *batch.tensors()])
        for parameter in trainable(method):
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.reassign(p.grad, GRADIENTS))
        with tracker:
            for _ in range(min(2, config.trainer.gradient_accumulation_steps)):
                _forward_backward(method, batch, config)
            backward = tracker.peak
            optimizer, update = _update(method, tracker, config)
        trained = num_bytes(trainable(method))
        fixed = num_bytes(parameters) - trained
        batch_bytes = round(2 * images_per_rank / images * num_bytes([*batch.views.values()]))
        return SimulatedMemory(trained, fixed, optimizer, batch_bytes, backward, update)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _forward_backward(method: Method, batch: Batch, config: RunConfig) -> None:
    [device] = {view.device for view in batch.views.values()}
    with WithoutDriver(trainable(method)) as autograd:
        with _autocast(config, device):
            loss = method(batch, plan_step(method, device)).loss
        autograd.backward(loss)


def _update(method: Method, tracker: AllocationTracker, config: RunConfig) -> tuple[int, int]:
    """Bytes of the optimizer's state, and the peak of a later update on top of that state."""
    schedules = RateSchedules(config.optim, num_steps=1, steps_per_epoch=1)
    optimization = Optimization(config.optim, method.param_groups(), schedules)
    gradients = [(parameter, parameter.grad) for parameter in trainable(method)]
    state, device = 0, gradients[0][0].device
    for _ in range(2):
        for parameter, gradient in gradients:
            parameter.grad = gradient
        optimization.set_rates(0)
        tracker.reset_peak()
        optimization.clip()
        with _autocast(config, device):
            optimization.optimizer.step()
        for ema in method.emas():
            ema.update(0.0)
        update = sum(tracker.peak.values()) - state
        state = num_bytes([t for s in optimization.optimizer.state.values() for t in s.values()])
    return state, update


def _autocast(config: RunConfig, device: torch.device) -> AbstractContextManager[None]:
    return autocast(choose_precision(config.trainer.precision, device).precision, device)


def _largest_batch(config: RunConfig, num_images: int) -> Batch:
    """Images of one micro-batch, with the sample of masks that has most patches for the networks."""
    views = build_views(config.views, config.backbone)
    generators = build_generators(views, config.masks, config.backbone)
    count = config.trainer.batch_size
    sample = max(range(_NUM_MASK_SAMPLES), key=lambda number: _num_indices(generators, count, number))
    return plan_batch(views, generators, count, sample, num_images=num_images)


def _num_indices(generators: Mapping[str, MaskGenerator], num_images: int, sample: int) -> int:
    sampled = [generator(num_images, generator_for("plan", sample)) for generator in generators.values()]
    return sum(masks.context.shape[1:].numel() + masks.targets.shape[1:].numel() for masks in sampled)
