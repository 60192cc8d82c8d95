"""Golden fixtures of DINO (facebookresearch/dino): a tiny model's run, recomputed by ours."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_zoo.engine.optim import AdamWConfig, Optimization, RateSchedules
from ssl_zoo.interop.golden import (
    FEATURES,
    FINAL_WEIGHTS,
    GRADIENT_NORMS,
    LOSSES,
    SCHEDULES,
    Comparison,
    Finding,
    Fixture,
    FixtureError,
    Tolerance,
    blame,
)
from ssl_zoo.interop.golden_rates import adamw_settings, cosine, learning_rate_of, weight_decay_of
from ssl_zoo.interop.official import NameMap, load_official
from ssl_zoo.method import Batch, Progress, build_method
from ssl_zoo.methods.dino import DINO, NUM_GLOBAL, DINOConfig, embedding, project
from ssl_zoo.nn import Positions, ViTConfig, set_fused_attention

_CENTER = Tolerance(1e-5)


def recognises(fixture: Fixture) -> bool:
    return fixture.config.get("method") == "DINO"


def verify(fixture: Fixture) -> list[Finding]:
    """Everything the file stores, recomputed from its weights and crops.

    Raises:
        FixtureError: an input or a setting is missing or does not fit the others.
    """
    method, comparison = _method(fixture), Comparison(fixture)
    _load(fixture, method)
    _train(fixture, method, comparison)
    for network, (backbone, head) in _networks(method).items():
        weights = _named(backbone.state_dict(), head.state_dict())
        comparison.add_weights(f"final.{network}", weights, weights, FINAL_WEIGHTS)
    return comparison.findings()


def _method(fixture: Fixture) -> DINO:
    norm_last_layer = fixture.config.get("norm_last_layer")
    if not isinstance(norm_last_layer, bool):
        raise FixtureError(f"{fixture.path}: config.norm_last_layer={norm_last_layer!r} must be true or false")
    with blame(fixture, "config"):
        method = build_method(
            DINOConfig(
                num_prototypes=fixture.count("prototypes"),
                head_dim=fixture.count("head_hidden"),
                head_layers=fixture.count("head_layers"),
                bottleneck_dim=fixture.count("bottleneck"),
                norm_last_layer=norm_last_layer,
                student_temperature=fixture.number("student_temp"),
                center_momentum=fixture.number("center_momentum"),
                frozen_last_layer=fixture.number("freeze_last_layer") / fixture.count("epochs"),
                num_local_crops=fixture.count("local_crops"),
                local_size=fixture.count("local_size"),
            ),
            ViTConfig(
                image_size=fixture.count("image_size"),
                patch_size=fixture.count("patch_size"),
                embed_dim=fixture.count("dim"),
                depth=fixture.count("depth"),
                num_heads=fixture.count("heads"),
                mlp_ratio=fixture.number("mlp_ratio"),
                norm_eps=fixture.number("norm_eps"),
                positions=Positions.learned,
                position_offset=fixture.number("position_offset"),
                class_token=True,
            ),
            None,
            seed=0,  # every weight is replaced
        )
    set_fused_attention(method, False)
    # The reference's temperature changes from epoch to epoch, ours from step to step.
    method.teacher_temperature = lambda fraction: _teacher_temperature(fixture, fraction)
    return method


def _networks(method: DINO) -> Mapping[str, tuple[nn.Module, nn.Module]]:
    return {
        "student": (method.encoder, method.head),
        "teacher": (method.teacher_encoder, method.teacher_head),
    }


def _load(fixture: Fixture, method: DINO) -> None:
    with blame(fixture, "init.student"):
        for backbone, head in _networks(method).values():  # the teacher starts as an exact copy
            load_official(backbone, fixture.group("init.student.backbone."), NameMap())
            load_official(head, fixture.group("init.student.head."), NameMap())


def _named(backbone: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{name}": t for name, t in backbone.items()} | {f"head.{name}": t for name, t in head.items()}


def _teacher_temperature(fixture: Fixture, fraction: float) -> float:
    """A linear rise over the first epochs, constant within each."""
    epochs, warmup = fixture.count("epochs"), fixture.count("temp_warmup_epochs")
    first, last = fixture.number("teacher_temp0"), fixture.number("teacher_temp")
    epoch = int(fraction * epochs + 1e-9)
    return first + (last - first) * min(1.0, epoch / max(1, warmup - 1))


def _train(fixture: Fixture, method: DINO, comparison: Comparison) -> None:
    """The stored steps in the engine's order; each result is compared as soon as it is there."""
    num_steps = fixture.count("epochs") * fixture.count("steps_per_epoch")
    optimization = _optimization(fixture, method, num_steps)
    history: dict[str, list[float]] = {key: [] for key in ("loss", "lr", "wd", "momentum", "teacher_temp")}
    centers = [method.center.clone()]
    method.train()
    for step in range(fixture.count("steps")):
        batch, progress = _batch(fixture, step), Progress(step, num_steps, 0)
        learning_rate, decay = learning_rate_of(fixture, step), weight_decay_of(fixture, step)
        for group in optimization.optimizer.param_groups:
            group["lr"], group["weight_decay"] = learning_rate, decay if group["decay"] else 0.0
        if step == 0:
            _compare_forward(comparison, method, batch)
        output = method(batch, progress)
        output.loss.backward()
        comparison.add_gradients(f"step{step}.", _gradients(method))
        optimization.clip()
        for name, gradient in _gradients(method).items():
            quantity = f"step{step}.clipped_grad_norm"
            comparison.add(f"{quantity}.{name}", gradient.norm(), GRADIENT_NORMS, quantity=quantity)
        method.before_step(progress)
        optimization.optimizer.step()
        optimization.optimizer.zero_grad()
        momentum = cosine(fixture.number("momentum"), 1.0, step / num_steps)
        for average in method.averages():
            replace(average, momentum=lambda _, value=momentum: value).update(progress.fraction)
        method.after_step(progress, output.statistics)
        centers.append(method.center.clone())
        temperature = method.teacher_temperature(progress.fraction)
        for key, value in zip(history, (output.loss.item(), learning_rate, decay, momentum, temperature), strict=True):
            history[key].append(value)
    comparison.add("history.center", torch.stack(centers), _CENTER)
    comparison.add_history("loss", history["loss"], LOSSES)
    comparison.add_history("loss_float64", history["loss"], LOSSES)
    for key in ("lr", "wd", "momentum", "teacher_temp"):
        comparison.add_history(key, history[key], SCHEDULES)


def _optimization(fixture: Fixture, method: DINO, num_steps: int) -> Optimization:
    with blame(fixture, "config"):
        config = AdamWConfig(**adamw_settings(fixture), warmup_epochs=0)
    schedules = RateSchedules(config, num_steps=num_steps, steps_per_epoch=fixture.count("steps_per_epoch"))
    return Optimization(config, method.param_groups(), schedules)


def _batch(fixture: Fixture, step: int) -> Batch:
    sides = [fixture.count("image_size")] * NUM_GLOBAL + [fixture.count("local_size")] * fixture.count("local_crops")
    crops = [fixture.tensor(f"step{step}.crop.{number}") for number in range(len(sides))]
    for number, (crop, side) in enumerate(zip(crops, sides, strict=True)):
        if crop.shape != (len(crops[0]), 3, side, side):
            raise FixtureError(
                f"{fixture.path}: step{step}.crop.{number} has shape {list(crop.shape)}, needs "
                f"{[len(crops[0]), 3, side, side]}"
            )
    return Batch(tuple(crops), (None,) * len(crops))


@torch.no_grad()
def _compare_forward(comparison: Comparison, method: DINO, batch: Batch) -> None:
    for network, (backbone, head) in _networks(method).items():
        views = batch.views if network == "student" else batch.views[:NUM_GLOBAL]
        for number, same in enumerate((views[:NUM_GLOBAL], views[NUM_GLOBAL:])):
            if same:
                name = f"step0.{network}_features"
                comparison.add(f"{name}.{number}", embedding(backbone, torch.cat(same)), FEATURES, quantity=name)
        comparison.add(f"step0.{network}_output", project(backbone, head, views).flatten(0, 1), FEATURES)


def _gradients(method: DINO) -> dict[str, Tensor]:
    backbone, head = (
        {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        for network in (method.encoder, method.head)
    )
    return _named(backbone, head)
