"""Golden fixtures of DINO (facebookresearch/dino) and iBOT (bytedance/ibot): a tiny model's run, recomputed by ours."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_zoo.engine.optim import AdamWConfig, Optimization, RateSchedules
from ssl_zoo.interop.official import NameMap, load_official
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, Output, Progress, Step, build_method
from ssl_zoo.methods.dino import DINO, DINOConfig
from ssl_zoo.methods.ibot import IBOT, IBOTConfig
from ssl_zoo.nn import Positions, ViTConfig, set_fused_attention
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

_NUM_GLOBAL = 2  # global crops of every image
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


def _method(fixture: Fixture) -> DINO | IBOT:
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
            "student_temp": fixture.number("student_temp"),
            "center_momentum": fixture.number("center_momentum"),
            "freeze_last_layer_epochs": fixture.number("freeze_last_layer"),
        }
        if recognises_ibot(fixture):
            weights = {"image_weight": fixture.number("lambda1"), "patch_weight": fixture.number("lambda2")}
            config = IBOTConfig(**settings, **weights, mask_start_epoch=_mask_start_epoch(fixture))
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
    return method


def _mask_start_epoch(fixture: Fixture) -> float:
    return fixture.number("mim_start_epoch") if "mim_start_epoch" in fixture.config else 0


def _networks(method: DINO | IBOT) -> Mapping[str, tuple[nn.Module, nn.Module]]:
    return {
        "student": (method.encoder, method.head),
        "teacher": (method.teacher_encoder.module, method.teacher_head.module),
    }


def _load(fixture: Fixture, method: DINO | IBOT) -> None:
    own = _own(method)
    for network, (backbone, head) in _networks(method).items():
        # Without weights of its own the teacher starts as an exact copy.
        stored = fixture.group(f"init.{network}.") or fixture.group("init.student.")
        weights = {name: tensor for name, tensor in stored.items() if name not in own}
        with blame(fixture, f"init.{network}"):
            for part, module in (("backbone.", backbone), ("head.", head)):
                named = {name.removeprefix(part): t for name, t in weights.items() if name.startswith(part)}
                load_official(module, named, NameMap())
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(fixture.tensor(f"init.student.{name}"))


def _own(method: DINO | IBOT) -> dict[str, nn.Parameter]:
    """What the student has beside its networks, by official names."""
    return {"backbone.masked_embed": method.mask_token} if isinstance(method, IBOT) else {}


def _named(backbone: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{name}": t for name, t in backbone.items()} | {f"head.{name}": t for name, t in head.items()}


def _temperature(fixture: Fixture, part: str, step: int, start: float = 0) -> float:
    """Return a temperature of the reference: it rises linearly over epochs, ours over steps."""
    first, last = fixture.number(f"{part}_temp0"), fixture.number(f"{part}_temp")
    warmup = fixture.count("temp_warmup_epochs")
    epochs = max(0, step // fixture.count("steps_per_epoch") - start)
    return first + (last - first) * min(1.0, epochs / max(1, warmup - 1))


def _step(fixture: Fixture, method: DINO | IBOT, step: int, num_steps: int) -> tuple[Step, dict[str, float]]:
    """Return a step with the reference's temperatures, and these once more under the names of histories."""
    step = Step.of(method, Progress(step, num_steps, 0, fixture.count("steps_per_epoch")))
    names = {"teacher_temp": ("teacher_temp", "teacher", 0)}
    if isinstance(method, IBOT):
        names["patch_temp"] = ("teacher_patch_temp", "patch", _mask_start_epoch(fixture))
    history = {name: _temperature(fixture, part, step.progress.step, at) for name, (_, part, at) in names.items()}
    values = {ours: torch.tensor(history[name]) for name, (ours, _, _) in names.items()}
    return replace(step, values={**step.values, **values}), history


def _train(fixture: Fixture, method: DINO | IBOT, comparison: Comparison) -> None:
    """The stored steps in the engine's order; each result is compared as soon as it is there."""
    num_steps = fixture.count("epochs") * fixture.count("steps_per_epoch")
    optimization = _optimization(fixture, method, num_steps)
    history: dict[str, list[float]] = defaultdict(list)
    centers = [_centers(method)]
    method.train()
    for step in range(fixture.count("steps")):
        batch, (now, temperatures) = _batch(fixture, step, method.encoder.grid), _step(fixture, method, step, num_steps)
        lr, decay = learning_rate_of(fixture, step), weight_decay_of(fixture, step)
        for group in optimization.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, decay if group["decay"] else 0.0
        if step == 0:
            _compare_networks(comparison, method, batch)
        output = method(batch, now)
        output.loss.backward()
        comparison.add_gradients(f"step{step}.", _gradients(method))
        optimization.clip()
        for name, gradient in _gradients(method).items():
            quantity = f"step{step}.clipped_grad_norm"
            comparison.add(f"{quantity}.{name}", gradient.norm(), GRADIENT_NORMS, quantity=quantity)
        method.after_backward(now)
        optimization.optimizer.step()
        optimization.optimizer.zero_grad()
        momentum = cosine(fixture.number("momentum"), 1.0, step / num_steps)
        for ema in method.emas():
            replace(ema, momentum=lambda _, value=momentum: value).update(now.progress.fraction)
        method.after_step(now, output.statistics)
        centers.append(_centers(method))
        rates = {"lr": lr, "wd": decay, "momentum": momentum}
        for key, value in {**_losses(output), **rates, **temperatures}.items():
            history[key].append(value)
    for name in centers[0]:
        comparison.add(f"history.{name}", torch.stack([center[name] for center in centers]), _CENTER)
    comparison.add_history("loss_float64", history["loss"], LOSSES)
    for key, values in history.items():
        comparison.add_history(key, values, LOSSES if key.startswith("loss") else SCHEDULES)


def _centers(method: DINO | IBOT) -> dict[str, Tensor]:
    centers = {"center": method.center.clone()}
    return centers | {"center_patch": method.patch_center.clone()} if isinstance(method, IBOT) else centers


def _losses(output: Output) -> dict[str, float]:
    """Return the loss, and for iBOT its two terms, which are stored with their weights."""
    names = {"image": "loss_cls", "patch": "loss_patch"}
    terms = {names[name]: term.item() for name, term in output.losses.items() if name in names}
    return {"loss": output.loss.item(), **terms}


def _optimization(fixture: Fixture, method: DINO | IBOT, num_steps: int) -> Optimization:
    with blame(fixture, "config"):
        config = AdamWConfig(**adamw_settings(fixture), warmup_epochs=0)
    schedules = RateSchedules(config, num_steps=num_steps, steps_per_epoch=fixture.count("steps_per_epoch"))
    return Optimization(config, method.param_groups(), schedules)


def _batch(fixture: Fixture, step: int, grid: tuple[int, int]) -> Batch:
    sides = [fixture.count("image_size")] * _NUM_GLOBAL + [fixture.count("local_size")] * fixture.count("local_crops")
    crops = [fixture.tensor(f"step{step}.crop.{number}") for number in range(len(sides))]
    for number, (crop, side) in enumerate(zip(crops, sides, strict=True)):
        if crop.shape != (len(crops[0]), 3, side, side):
            raise FixtureError(
                f"{fixture.path}: step{step}.crop.{number} has shape {list(crop.shape)}, needs "
                f"{[len(crops[0]), 3, side, side]}"
            )
    names = [f"global_{number}" for number in range(_NUM_GLOBAL)] + [f"local_{number}" for number in range(len(crops))]
    views = dict(zip(names, crops, strict=False))
    if not recognises_ibot(fixture):
        return Batch(views)
    unused, masks = torch.zeros(len(crops[0]), 1, 0, dtype=torch.int64), {}
    for number in range(_NUM_GLOBAL):
        masked = fixture.tensor(f"step{step}.mask.{number}")
        if masked.shape != (len(crops[0]), *grid) or masked.dtype != torch.bool:
            raise FixtureError(
                f"{fixture.path}: step{step}.mask.{number} is {list(masked.shape)} of {masked.dtype}, needs "
                f"{[len(crops[0]), *grid]} bool"
            )
        masks[names[number]] = Masks(unused, unused, masked=masked.flatten(1))
    return Batch(views, masks)


@torch.no_grad()
def _compare_networks(comparison: Comparison, method: DINO | IBOT, batch: Batch) -> None:
    """Compare features and head outputs of both networks for global and local crops."""
    global_crops, local_crops = torch.cat(batch.group("global")), batch.group("local")
    for network, (encoder, head) in _networks(method).items():
        is_student = network == "student"
        masks = {"masked": method.masked_patches(batch), "mask_token": method.mask_token} if batch.masks else {}
        tokens = encoder(global_crops, **(masks if is_student else {}))
        features = [encoder.pooled(tokens)]
        if is_student and local_crops:
            features.append(encoder.pooled(encoder(torch.cat(local_crops))))
        outputs = [head(of_size) for of_size in features]
        for number, of_size in enumerate(features):
            name = f"step0.{network}_features"
            comparison.add(f"{name}.{number}", of_size, FEATURES, quantity=name)
        comparison.add(f"step0.{network}_output", torch.cat(outputs), FEATURES)
        for name, of_size in zip(("cls", "local_cls"), outputs, strict=False):
            comparison.add(f"step0.{network}_{name}", of_size, FEATURES)
        comparison.add(f"step0.{network}_patch", head(encoder.patches(tokens)), FEATURES)


def _gradients(method: DINO | IBOT) -> dict[str, Tensor]:
    backbone, head = (
        {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        for network in (method.encoder, method.head)
    )
    return _named(backbone, head) | {name: parameter.grad for name, parameter in _own(method).items()}
