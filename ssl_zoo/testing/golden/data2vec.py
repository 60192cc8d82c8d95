"""Golden fixtures of data2vec 1.0 (facebookresearch/data2vec_vision): a tiny model's run, recomputed by ours."""

import math
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from ssl_zoo.engine.optim import AdamWConfig, Optimization, RateSchedules
from ssl_zoo.interop.official import BEIT_ENCODER, NameMap, load_official, split_data2vec, to_official
from ssl_zoo.method import Batch, Ema, Progress, Step, build_method
from ssl_zoo.methods.data2vec import Data2vec, Data2vecConfig
from ssl_zoo.nn import set_fused_attention
from ssl_zoo.targets import TopKTeacherConfig
from ssl_zoo.testing.golden.beit import beit_backbone, masked_batch
from ssl_zoo.testing.golden.fixture import (
    FEATURES,
    FINAL_WEIGHTS,
    GLOBAL_GRADIENT_NORM,
    LOSSES,
    SCHEDULES,
    Comparison,
    Finding,
    Fixture,
    FixtureError,
    blame,
    outputs,
)
from ssl_zoo.testing.golden.rates import adamw_settings, learning_rate_of, weight_decay_of


def recognises(fixture: Fixture) -> bool:
    return str(fixture.config.get("method", "")).startswith("data2vec 1")


def verify(fixture: Fixture) -> list[Finding]:
    """Everything the file stores, recomputed from its weights and inputs.

    Raises:
        FixtureError: an input or a setting is missing or does not fit the others.
    """
    method, comparison = _method(fixture), Comparison(fixture)
    _load(fixture, method)
    own = _Own(method, fixture)
    _train(fixture, method, own, comparison)
    encoders = {"student": method.encoder, "teacher": method.target.encoder.module}
    for network, weights in (("student", own.trained), ("teacher", own.averaged)):
        computed = to_official(encoders[network], BEIT_ENCODER) | weights
        comparison.add_weights(f"final.{network}", computed, computed, FINAL_WEIGHTS)
    return comparison.findings()


class _Own:
    """Mask token and head, and their EMA weights: the reference averages them too, though its teacher uses neither."""

    def __init__(self, method: Data2vec, fixture: Fixture) -> None:
        self.method = method
        stored = {name: fixture.tensors.get(f"init.teacher.{name}", tensor) for name, tensor in self.trained.items()}
        self.averaged = {name: tensor.clone() for name, tensor in stored.items()}

    @property
    def trained(self) -> dict[str, Tensor]:
        named = {"mask_token": self.method.mask_token, "lm_head.weight": self.method.head.weight}
        return {name: t.detach() for name, t in {**named, "lm_head.bias": self.method.head.bias}.items()}

    def update(self, momentum: float) -> None:
        for name, tensor in self.trained.items():
            self.averaged[name].lerp_(tensor, 1 - momentum)


def _method(fixture: Fixture) -> Data2vec:
    depth = fixture.count("depth")
    layers = fixture.config.get("target_layers")
    if not isinstance(layers, list) or not layers or not set(layers) <= set(range(depth)):
        raise FixtureError(f"{fixture.path}: config.target_layers={layers!r}: needs some of the {depth} blocks")
    with blame(fixture, "config"):
        method = build_method(
            Data2vecConfig(smooth_l1_beta=fixture.number("l1_beta")),
            beit_backbone(fixture, "init.student."),
            TopKTeacherConfig(layers=layers),
            seed=0,  # every weight is replaced
        )
    set_fused_attention(method, False)
    return method


def _load(fixture: Fixture, method: Data2vec) -> None:
    encoder, own = split_data2vec(fixture.group("init.student."))
    # Without weights of its own the teacher starts as an exact copy.
    teacher, _ = split_data2vec(fixture.group("init.teacher.") or fixture.group("init.student."))
    with blame(fixture, "init.teacher"):
        load_official(method.target.encoder.module, teacher, BEIT_ENCODER)
    with blame(fixture, "init.student"):
        load_official(method.encoder, encoder, BEIT_ENCODER)
        head = {name.removeprefix("lm_head."): tensor for name, tensor in own.items() if name != "mask_token"}
        load_official(method.head, head, NameMap())
        if "mask_token" not in own or own["mask_token"].shape != method.mask_token.shape:
            raise FixtureError(f"{fixture.path}: init.student.mask_token: needs {list(method.mask_token.shape)}")
    with torch.no_grad():
        method.mask_token.copy_(own["mask_token"])


def _train(fixture: Fixture, method: Data2vec, own: _Own, comparison: Comparison) -> None:
    """The stored steps in the engine's order; each result is compared as soon as it is there."""
    num_steps = fixture.count("epochs") * fixture.count("steps_per_epoch")
    with blame(fixture, "config"):
        config = AdamWConfig(**adamw_settings(fixture), warmup_epochs=0)
    schedules = RateSchedules(config, num_steps=num_steps, steps_per_epoch=fixture.count("steps_per_epoch"))
    optimization = Optimization(config, method.param_groups(), schedules)
    history: dict[str, list[float]] = {key: [] for key in ("loss", "grad_norm", "lr", "weight_decay", "ema_decay")}
    [ema] = method.emas()
    for step in range(fixture.count("steps")):
        batch, masked = masked_batch(fixture, step, method.encoder.grid)
        lr, decay = learning_rate_of(fixture, step), weight_decay_of(fixture, step)
        for group in optimization.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, decay if group["decay"] else 0.0
        with outputs(targets=method.target, predictions=method.head) as seen:
            loss = method(batch, Step(Progress(step, num_steps, step * batch.num_images))).loss
        if step == 0:
            _compare_forward(comparison, method, batch, masked, seen)
        loss.backward()
        comparison.add_gradients(f"step{step}.", _gradients(method))
        grad_norm = optimization.clip()
        optimization.optimizer.step()
        optimization.optimizer.zero_grad()
        momentum = _momentum(fixture, step)
        _update(ema, momentum)
        own.update(momentum)
        values = (loss.item(), grad_norm.item(), lr, decay, momentum)
        for key, value in zip(history, values, strict=True):
            history[key].append(value)
    comparison.add_history("loss", history["loss"], LOSSES)
    comparison.add_history("loss_float64", history["loss"], LOSSES)
    comparison.add_history("grad_norm", history["grad_norm"], GLOBAL_GRADIENT_NORM)
    for key in ("lr", "weight_decay", "ema_decay"):
        comparison.add_history(key, history[key], SCHEDULES)


def _momentum(fixture: Fixture, step: int) -> float:
    """Linear from ``ema_init`` to ``ema`` over ``ema_start_at`` steps; ``ema`` itself from the next epoch on."""
    last, start_at, per_epoch = fixture.number("ema"), fixture.number("ema_start_at"), fixture.count("steps_per_epoch")
    if step // per_epoch * per_epoch >= start_at:
        return last
    first, annealed = fixture.number("ema_init"), min(step, math.ceil(start_at) - 1)
    return first + annealed * (last - first) / start_at


def _update(ema: Ema, momentum: float) -> None:
    """Update EMA weights as the engine does, and then the index table, which the reference averages too.

    Differs from ours: with unlucky momenta the rounded product falls below the whole number that it should be, and is
    truncated, so that the reference's teacher reads wrong rows of its bias table.
    """
    index = ema.copy.module.rel_pos_bias.relative_position_index
    before = index.clone()
    replace(ema, momentum=lambda _: momentum).update(0.0)
    index.copy_(momentum * before + (1.0 - momentum) * ema.online.rel_pos_bias.relative_position_index)


def _compare_forward(
    comparison: Comparison, method: Data2vec, batch: Batch, masked: Bool[Tensor, "B N"], seen: dict[str, Tensor]
) -> None:
    teacher = method.target.encoder.module
    with torch.no_grad():
        blocks = teacher(batch.views["image"], layers=range(len(teacher.blocks)))
    for number, block in enumerate(blocks):
        name = f"step0.teacher_block.{number}"
        comparison.add(name, block[:, teacher.num_prefix_tokens :], FEATURES, quantity="step0.teacher_block")
    comparison.add("step0.targets", seen["targets"][:, 0][masked], FEATURES)
    comparison.add("step0.predictions", seen["predictions"][masked], FEATURES)


def _gradients(method: Data2vec) -> dict[str, Tensor]:
    gradients = {BEIT_ENCODER.official(n): p.grad for n, p in method.encoder.named_parameters() if p.grad is not None}
    own = {"mask_token": method.mask_token, "lm_head.weight": method.head.weight, "lm_head.bias": method.head.bias}
    return gradients | {name: parameter.grad for name, parameter in own.items()}
