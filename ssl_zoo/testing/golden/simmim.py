"""Golden fixtures of SimMIM (microsoft/SimMIM, its ViT): a tiny model's run, recomputed by ours."""

import torch
from torch import Tensor

from ssl_zoo.engine.optim import AdamWConfig, Optimization, RateSchedules
from ssl_zoo.interop.official import (
    BEIT_ENCODER,
    NameMap,
    load_official,
    split_simmim,
    to_official,
    to_pixel_shuffle,
)
from ssl_zoo.method import Progress, Step, build_method
from ssl_zoo.methods.simmim import SimMIM, SimMIMConfig
from ssl_zoo.nn import set_fused_attention, unpatchify
from ssl_zoo.targets import PixelsConfig
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
from ssl_zoo.testing.golden.rates import adamw_settings


def recognises(fixture: Fixture) -> bool:
    return str(fixture.config.get("method", "")).startswith("SimMIM")


def verify(fixture: Fixture) -> list[Finding]:
    """Everything the file stores, recomputed from its weights and inputs.

    Raises:
        FixtureError: an input or a setting is missing or does not fit the others.
    """
    method, comparison = _method(fixture), Comparison(fixture)
    _load(fixture, method)
    _train(fixture, method, comparison)
    for part, weights in _official(method).items():
        comparison.add_weights(f"final.{part}", weights, weights, FINAL_WEIGHTS)
    return comparison.findings()


def _method(fixture: Fixture) -> SimMIM:
    with blame(fixture, "config"):
        backbone = beit_backbone(fixture, "init.encoder.")
        method = build_method(SimMIMConfig(), backbone, PixelsConfig(normalize=False), seed=0)  # weights are replaced
    set_fused_attention(method, False)
    return method


def _load(fixture: Fixture, method: SimMIM) -> None:
    encoder, mask_token, head = split_simmim(fixture.group("init."))
    with blame(fixture, "init"):
        load_official(method.encoder, encoder, BEIT_ENCODER)
        load_official(method.head, head, NameMap())
    if mask_token is None or mask_token.shape != method.mask_token.shape:
        raise FixtureError(f"{fixture.path}: init.encoder.mask_token: needs {list(method.mask_token.shape)}")
    with torch.no_grad():
        method.mask_token.copy_(mask_token)


def _train(fixture: Fixture, method: SimMIM, comparison: Comparison) -> None:
    """The stored steps in the engine's order; each result is compared as soon as it is there."""
    num_steps = fixture.count("epochs") * fixture.count("steps_per_epoch")
    optimization = _optimization(fixture, method, num_steps)
    history: dict[str, list[float]] = {key: [] for key in ("loss", "grad_norm", "lr")}
    for step in range(fixture.count("steps")):
        batch, _ = masked_batch(fixture, step, method.encoder.grid)
        rates = optimization.set_rates(step)
        with outputs(encoded=method.encoder, predicted=method.head) as seen:
            loss = method(batch, Step(Progress(step, num_steps, step * batch.num_images))).loss
        if step == 0:
            patches = seen["encoded"][:, method.encoder.num_prefix_tokens :]
            maps = patches.transpose(1, 2).unflatten(2, method.encoder.grid)
            pixels = unpatchify(seen["predicted"], method.encoder.grid, method.encoder.patch_size)
            comparison.add("step0.encoder_output", maps, FEATURES)
            comparison.add("step0.reconstruction", pixels, FEATURES)
        loss.backward()
        comparison.add_gradients(f"step{step}.", _gradients(method))
        grad_norm = optimization.clip()
        optimization.optimizer.step()
        optimization.optimizer.zero_grad()
        for key, value in zip(history, (loss.item(), grad_norm.item(), rates.lr), strict=True):
            history[key].append(value)
    comparison.add_history("loss", history["loss"], LOSSES)
    comparison.add_history("loss_float64", history["loss"], LOSSES)
    comparison.add_history("grad_norm", history["grad_norm"], GLOBAL_GRADIENT_NORM)
    comparison.add_history("lr", history["lr"], SCHEDULES)


def _optimization(fixture: Fixture, method: SimMIM, num_steps: int) -> Optimization:
    milestones = fixture.config.get("milestones")
    if not isinstance(milestones, list):
        raise FixtureError(f"{fixture.path}: config.milestones={milestones!r} must be a list of epochs")
    with blame(fixture, "config"):
        config = AdamWConfig(
            lr=fixture.number("lr"),
            warmup_lr=fixture.number("warmup_lr"),
            warmup_epochs=fixture.number("warmup_epochs"),
            milestones=milestones,
            milestone_factor=fixture.number("gamma"),
            weight_decay=fixture.number("wd"),
            final_weight_decay=fixture.number("wd"),
            schedule_offset=-1,  # the reference updates its schedule after a step, with that step's number
            **adamw_settings(fixture),
        )
    schedules = RateSchedules(config, num_steps=num_steps, steps_per_epoch=fixture.count("steps_per_epoch"))
    return Optimization(config, method.param_groups(), schedules)


def _official(method: SimMIM) -> dict[str, dict[str, Tensor]]:
    """The weights of both parts under official names."""
    head = {f"0.{name}": to_pixel_shuffle(tensor) for name, tensor in method.head.state_dict().items()}
    return {
        "encoder": to_official(method.encoder, BEIT_ENCODER) | {"mask_token": method.mask_token.detach()},
        "decoder": head,
    }


def _gradients(method: SimMIM) -> dict[str, Tensor]:
    encoder = {BEIT_ENCODER.official(name): p.grad for name, p in method.encoder.named_parameters()}
    gradients = {f"encoder.{name}": g for name, g in {**encoder, "mask_token": method.mask_token.grad}.items()}
    head = {f"decoder.0.{name}": to_pixel_shuffle(p.grad) for name, p in method.head.named_parameters()}
    return gradients | head
