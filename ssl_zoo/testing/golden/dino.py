"""Golden fixtures of DINO (facebookresearch/dino) and iBOT (bytedance/ibot): a tiny model's run, recomputed by ours."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_zoo.engine.optim import AdamWConfig, Optimization, RateSchedules
from ssl_zoo.interop.official import NameMap, load_official
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, Output, Progress, build_method
from ssl_zoo.methods.dino import DINOConfig
from ssl_zoo.methods.ibot import IBOT, IBOTConfig
from ssl_zoo.nn import Positions, ViTConfig, set_fused_attention
from ssl_zoo.self_distillation import NUM_GLOBAL, SelfDistillation, image_features, project
from ssl_zoo.testing.golden.fixture import (
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
from ssl_zoo.testing.golden.rates import adamw_settings, cosine, learning_rate_of, weight_decay_of

_CENTER = Tolerance(1e-5)


def recognises_dino(fixture: Fixture) -> bool:
    return fixture.config.get("method") == "DINO"


def recognises_ibot(fixture: Fixture) -> bool:
    return fixture.config.get("method") == "iBOT"


def verify(fixture: Fixture) -> list[Finding]:
    """Everything the file stores, recomputed from its weights and crops.

    Raises:
        FixtureError: an input or a setting is missing or does not fit the others.
    """
    method, comparison = _method(fixture), Comparison(fixture)
    _load(fixture, method)
    _train(fixture, method, comparison)
    for network, (backbone, head) in _networks(method).items():
        own = _own(method) if network == "student" else {}
        weights = _named(backbone.state_dict(), head.state_dict()) | {name: p.detach() for name, p in own.items()}
        comparison.add_weights(f"final.{network}", weights, weights, FINAL_WEIGHTS)
    return comparison.findings()


def _method(fixture: Fixture) -> SelfDistillation:
    norm_last_layer = fixture.config.get("norm_last_layer")
    if not isinstance(norm_last_layer, bool):
        raise FixtureError(f"{fixture.path}: config.norm_last_layer={norm_last_layer!r} must be true or false")
    with blame(fixture, "config"):
        settings = {
            "num_prototypes": fixture.count("prototypes"),
            "head_dim": fixture.count("head_hidden"),
            "head_layers": fixture.count("head_layers"),
            "bottleneck_dim": fixture.count("bottleneck"),
            "norm_last_layer": norm_last_layer,
            "student_temperature": fixture.number("student_temp"),
            "center_momentum": fixture.number("center_momentum"),
            "frozen_last_layer": fixture.number("freeze_last_layer") / fixture.count("epochs"),
            "num_local_crops": fixture.count("local_crops"),
            "local_size": fixture.count("local_size"),
        }
        if recognises_ibot(fixture):
            weights = {"image_weight": fixture.number("lambda1"), "patch_weight": fixture.number("lambda2")}
            config = IBOTConfig(**settings, **weights)
        else:
            config = DINOConfig(**settings)
        method = build_method(
            config,
            ViTConfig(
                **fixture.vit_sizes(),
                positions=Positions.learned,
                position_offset=fixture.number("position_offset"),
                class_token=True,
            ),
            None,
            seed=0,  # every weight is replaced
        )
    set_fused_attention(method, False)
    # The reference's temperature changes from epoch to epoch, ours from step to step.
    method.teacher_temperature = lambda fraction: _temperature(fixture, "teacher", fraction)
    method.teacher_patch_temperature = lambda fraction: _temperature(fixture, "patch", fraction)
    return method


def _networks(method: SelfDistillation) -> Mapping[str, tuple[nn.Module, nn.Module]]:
    return {
        "student": (method.encoder, method.head),
        "teacher": (method.teacher_encoder, method.teacher_head),
    }


def _load(fixture: Fixture, method: SelfDistillation) -> None:
    weights = {name: fixture.tensor(f"init.student.{name}") for name in _own(method)}
    backbone_weights = fixture.group("init.student.backbone.")
    backbone_weights = {name: t for name, t in backbone_weights.items() if f"backbone.{name}" not in weights}
    with blame(fixture, "init.student"):
        for backbone, head in _networks(method).values():  # the teacher starts as an exact copy
            load_official(backbone, backbone_weights, NameMap())
            load_official(head, fixture.group("init.student.head."), NameMap())
    with torch.no_grad():
        for name, parameter in _own(method).items():
            parameter.copy_(weights[name])


def _own(method: SelfDistillation) -> dict[str, nn.Parameter]:
    """What the student has beside its networks, by official names."""
    return {"backbone.masked_embed": method.mask_token} if isinstance(method, IBOT) else {}


def _named(backbone: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{name}": t for name, t in backbone.items()} | {f"head.{name}": t for name, t in head.items()}


def _temperature(fixture: Fixture, part: str, fraction: float) -> float:
    """A linear rise over the first epochs, constant within each."""
    epochs, warmup = fixture.count("epochs"), fixture.count("temp_warmup_epochs")
    first, last = fixture.number(f"{part}_temp0"), fixture.number(f"{part}_temp")
    epoch = int(fraction * epochs + 1e-9)
    return first + (last - first) * min(1.0, epoch / max(1, warmup - 1))


def _train(fixture: Fixture, method: SelfDistillation, comparison: Comparison) -> None:
    """The stored steps in the engine's order; each result is compared as soon as it is there."""
    num_steps = fixture.count("epochs") * fixture.count("steps_per_epoch")
    optimization = _optimization(fixture, method, num_steps)
    history: dict[str, list[float]] = defaultdict(list)
    centers = [_centers(method)]
    method.train()
    for step in range(fixture.count("steps")):
        batch, progress = _batch(fixture, step, method.encoder.grid), Progress(step, num_steps, 0)
        lr, decay = learning_rate_of(fixture, step), weight_decay_of(fixture, step)
        for group in optimization.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, decay if group["decay"] else 0.0
        if step == 0:
            (_compare_ibot if isinstance(method, IBOT) else _compare_dino)(comparison, method, batch)
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
        for average in method.emas():
            replace(average, momentum=lambda _, value=momentum: value).update(progress.fraction)
        method.after_step(progress, output.statistics)
        centers.append(_centers(method))
        rates = {"lr": lr, "wd": decay, "momentum": momentum}
        for key, value in {**_losses(method, output), **rates, **_temperatures(method, progress.fraction)}.items():
            history[key].append(value)
    for name in centers[0]:
        comparison.add(f"history.{name}", torch.stack([center[name] for center in centers]), _CENTER)
    comparison.add_history("loss_float64", history["loss"], LOSSES)
    for key, values in history.items():
        comparison.add_history(key, values, LOSSES if key.startswith("loss") else SCHEDULES)


def _centers(method: SelfDistillation) -> dict[str, Tensor]:
    centers = {"center": method.center.clone()}
    return centers | {"center_patch": method.patch_center.clone()} if isinstance(method, IBOT) else centers


def _losses(method: SelfDistillation, output: Output) -> dict[str, float]:
    losses = {"loss": output.loss.item()}
    if isinstance(method, IBOT):  # the stored parts include their weights
        losses["loss_cls"] = method.config.image_weight * output.metrics["image_loss"].item()
        losses["loss_patch"] = method.config.patch_weight * output.metrics["patch_loss"].item()
    return losses


def _temperatures(method: SelfDistillation, fraction: float) -> dict[str, float]:
    temperatures = {"teacher_temp": method.teacher_temperature(fraction)}
    if isinstance(method, IBOT):
        temperatures["patch_temp"] = method.teacher_patch_temperature(fraction)
    return temperatures


def _optimization(fixture: Fixture, method: SelfDistillation, num_steps: int) -> Optimization:
    with blame(fixture, "config"):
        config = AdamWConfig(**adamw_settings(fixture), warmup_epochs=0)
    schedules = RateSchedules(config, num_steps=num_steps, steps_per_epoch=fixture.count("steps_per_epoch"))
    return Optimization(config, method.param_groups(), schedules)


def _batch(fixture: Fixture, step: int, grid: tuple[int, int]) -> Batch:
    sides = [fixture.count("image_size")] * NUM_GLOBAL + [fixture.count("local_size")] * fixture.count("local_crops")
    crops = [fixture.tensor(f"step{step}.crop.{number}") for number in range(len(sides))]
    for number, (crop, side) in enumerate(zip(crops, sides, strict=True)):
        if crop.shape != (len(crops[0]), 3, side, side):
            raise FixtureError(
                f"{fixture.path}: step{step}.crop.{number} has shape {list(crop.shape)}, needs "
                f"{[len(crops[0]), 3, side, side]}"
            )
    if not recognises_ibot(fixture):
        return Batch(tuple(crops), (None,) * len(crops))
    unused, masks = torch.zeros(len(crops[0]), 1, 0, dtype=torch.int64), []
    for number in range(NUM_GLOBAL):
        masked = fixture.tensor(f"step{step}.mask.{number}")
        if masked.shape != (len(crops[0]), *grid) or masked.dtype != torch.bool:
            raise FixtureError(
                f"{fixture.path}: step{step}.mask.{number} is {list(masked.shape)} of {masked.dtype}, needs "
                f"{[len(crops[0]), *grid]} bool"
            )
        masks.append(Masks(unused, unused, masked=masked.flatten(1)))
    return Batch(tuple(crops), (*masks, *[None] * (len(crops) - NUM_GLOBAL)))


@torch.no_grad()
def _compare_ibot(comparison: Comparison, method: IBOT, batch: Batch) -> None:
    images, patches = method.outputs(batch, method.masked_patches(batch))
    teacher_images, teacher_patches = method.teacher_outputs(batch)
    comparison.add("step0.student_cls", images[:NUM_GLOBAL].flatten(0, 1), FEATURES)
    comparison.add("step0.student_local_cls", images[NUM_GLOBAL:].flatten(0, 1), FEATURES)
    comparison.add("step0.student_patch", patches, FEATURES)
    comparison.add("step0.teacher_cls", teacher_images.flatten(0, 1), FEATURES)
    comparison.add("step0.teacher_patch", teacher_patches, FEATURES)


@torch.no_grad()
def _compare_dino(comparison: Comparison, method: SelfDistillation, batch: Batch) -> None:
    for network, (backbone, head) in _networks(method).items():
        views = batch.views if network == "student" else batch.views[:NUM_GLOBAL]
        for number, same in enumerate((views[:NUM_GLOBAL], views[NUM_GLOBAL:])):
            if same:
                name = f"step0.{network}_features"
                features = image_features(backbone, backbone(torch.cat(same)))
                comparison.add(f"{name}.{number}", features, FEATURES, quantity=name)
        comparison.add(f"step0.{network}_output", project(backbone, head, views).flatten(0, 1), FEATURES)


def _gradients(method: SelfDistillation) -> dict[str, Tensor]:
    backbone, head = (
        {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        for network in (method.encoder, method.head)
    )
    return _named(backbone, head) | {name: parameter.grad for name, parameter in _own(method).items()}
