"""Golden fixtures of I-JEPA (facebookresearch/ijepa): the run of a tiny model, recomputed by our own classes."""

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssl_zoo.engine.optim import AdamWConfig, Optimization, RateSchedules
from ssl_zoo.interop.official import IJEPA_ENCODER, IJEPA_PREDICTOR, load_official, to_official
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, EmaConfig, Progress, Step, build_method
from ssl_zoo.methods.ijepa import IJEPA, IJEPAConfig
from ssl_zoo.nn import ViTConfig, set_fused_attention
from ssl_zoo.targets.teacher import TeacherConfig
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
    Tolerance,
    blame,
    outputs,
)

# The target encoder moves by 2.4e-5 in a run of four steps: at FINAL_WEIGHTS a missing average would go unnoticed.
TARGET_ENCODER = Tolerance(1e-6)
# A constant added to all keys does not change a softmax, so the gradient of a key bias is rounding noise.
ROUNDING_ONLY = ("attn.qkv.bias:key",)

_NUMBER = r"([-+.\de]+)"
_LOSS = re.compile(rf"smooth_l1\(beta={_NUMBER}\), mean")
_OPTIMIZER = re.compile(rf"AdamW betas \({_NUMBER}, {_NUMBER}\) eps {_NUMBER}")


def recognises(fixture: Fixture) -> bool:
    # The files name no method; only this predictor has this table.
    return "init.predictor.predictor_pos_embed" in fixture.tensors


def verify(fixture: Fixture) -> list[Finding]:
    """Everything the file stores, recomputed from its weights and inputs.

    Raises:
        FixtureError: an input or a setting is missing or does not fit the others.
    """
    method, comparison = _method(fixture), Comparison(fixture, ROUNDING_ONLY)
    comparison.add("init.encoder.pos_embed", method.encoder.pos_embed, FEATURES)
    comparison.add("init.predictor.predictor_pos_embed", method.predictor.pos_embed, FEATURES)
    _load(fixture, method)
    exact = copy.deepcopy(method).double()
    _train(fixture, method, comparison)
    _train(fixture, exact, Comparison(fixture))
    exact_weights = _final_weights(exact)
    for group, weights in _final_weights(method).items():
        tolerance = TARGET_ENCODER if group == "final.target_encoder" else FINAL_WEIGHTS
        comparison.add_weights(group, weights, exact_weights[group], tolerance)
    return comparison.findings()


def _final_weights(method: IJEPA) -> dict[str, dict[str, Tensor]]:
    return {
        "final.encoder": to_official(method.encoder, IJEPA_ENCODER),
        "final.target_encoder": to_official(method.eval_encoder(), IJEPA_ENCODER),
        "final.predictor": to_official(method.predictor, IJEPA_PREDICTOR),
    }


def _method(fixture: Fixture) -> IJEPA:
    [beta] = _parsed(fixture, "loss", _LOSS, default="smooth_l1(beta=1), mean")
    heads = fixture.count("heads")
    with blame(fixture, "config"):
        method = build_method(
            IJEPAConfig(
                predictor_dim=fixture.count("pdim"),
                predictor_depth=fixture.count("pdepth"),
                predictor_heads=heads,  # the reference has one number for both
                smooth_l1_beta=beta,
            ),
            ViTConfig(
                image_size=fixture.count("img"),
                patch_size=fixture.count("patch"),
                embed_dim=fixture.count("dim"),
                depth=fixture.count("depth"),
                num_heads=heads,
            ),
            TeacherConfig(EmaConfig(fixture.number("ema0"), fixture.number("ema1"))),
            seed=0,  # every weight is replaced
        )
    set_fused_attention(method, False)
    return method


def _load(fixture: Fixture, method: IJEPA) -> None:
    for part, module, names in (
        ("encoder", method.encoder, IJEPA_ENCODER),
        ("encoder", method.eval_encoder(), IJEPA_ENCODER),  # the target encoder starts as an exact copy
        ("predictor", method.predictor, IJEPA_PREDICTOR),
    ):
        with blame(fixture, f"init.{part}"):
            load_official(module, fixture.group(f"init.{part}."), names)


def _optimization(fixture: Fixture, method: IJEPA, num_steps: int) -> Optimization:
    *betas, eps = _parsed(fixture, "opt", _OPTIMIZER, default="AdamW betas (0.9, 0.999) eps 1e-8")
    with blame(fixture, "config"):
        config = AdamWConfig(
            lr=fixture.number("lr"),
            warmup_lr=fixture.number("start_lr"),
            min_lr=fixture.number("final_lr"),
            warmup_epochs=fixture.number("warmup_epochs"),
            weight_decay=fixture.number("wd"),
            final_weight_decay=fixture.number("final_wd"),
            betas=betas,
            eps=eps,
            schedule_offset=1,
        )
    steps_per_epoch = fixture.count("iterations_per_epoch")
    schedules = RateSchedules(config, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    return Optimization(config, method.param_groups(), schedules)


def _train(fixture: Fixture, method: IJEPA, comparison: Comparison) -> None:
    """The stored steps in the engine's order; each result is compared as soon as it is there."""
    num_steps = fixture.count("iterations_per_epoch") * fixture.count("epochs")
    optimization = _optimization(fixture, method, num_steps)
    history: dict[str, list[float]] = {key: [] for key in ("loss", "grad_norm", "lr", "wd", "momentum")}
    for step in range(fixture.count("steps")):
        batch = _batch(fixture, step, method.encoder.pos_embed.dtype)
        progress = Progress(step, num_steps, samples=step * batch.num_images)
        rates = optimization.set_rates(step)
        with outputs(features=method.encoder, targets=method.target, predictions=method.predictor) as seen:
            loss = method(batch, Step(progress)).loss
        _compare_forward(comparison, step, loss, seen)
        loss.backward()
        _compare_gradients(comparison, step, method)
        grad_norm = optimization.clip()
        optimization.optimizer.step()
        optimization.optimizer.zero_grad()
        [momentum] = [ema.update(progress.fraction) for ema in method.emas()]
        values = (loss.item(), grad_norm.item(), rates.lr, rates.weight_decay, momentum)
        for key, value in zip(history, values, strict=True):
            history[key].append(value)
    comparison.add_history("loss", history["loss"], LOSSES)
    comparison.add_history("loss_float64", history["loss"], LOSSES)
    comparison.add_history("grad_norm", history["grad_norm"], GLOBAL_GRADIENT_NORM)
    for key in ("lr", "wd", "momentum"):
        comparison.add_history(key, history[key], SCHEDULES)


def _batch(fixture: Fixture, step: int, dtype: torch.dtype) -> Batch:
    size, num_images = fixture.count("img"), fixture.count("B")
    images = fixture.tensor(f"step{step}.images")
    if images.shape != (num_images, 3, size, size):
        raise FixtureError(
            f"{fixture.path}: step{step}.images has shape {list(images.shape)}; B={num_images}, img={size}"
        )
    context = _indices(fixture, step, "context_idx", fixture.count("nenc"))
    targets = _indices(fixture, step, "target_idx", fixture.count("npred"))
    return Batch({"image": images.to(dtype)}, {"image": Masks(context, targets)})


def _indices(fixture: Fixture, step: int, kind: str, count: int) -> Tensor:
    """The patch indices of ``count`` blocks, stacked to (B, blocks, patches).

    The reference's collator cuts all blocks of one kind to one length, and its predictor joins them along the batch.
    """
    blocks = [fixture.tensor(f"step{step}.{kind}.{block}") for block in range(count)]
    shapes = sorted({tuple(block.shape) for block in blocks})
    if len(shapes) > 1 or len(shapes[0]) != 2 or shapes[0][0] != fixture.count("B") or shapes[0][1] < 1:
        raise FixtureError(f"{fixture.path}: step{step}.{kind}.*: needs one shape [B, patches] for all, not {shapes}")
    stacked = torch.stack(blocks, dim=1)
    num_patches = (fixture.count("img") // fixture.count("patch")) ** 2
    if stacked.dtype != torch.int64 or stacked.min() < 0 or stacked.max() >= num_patches:
        raise FixtureError(f"{fixture.path}: step{step}.{kind}.*: needs int64 patch indices in 0..{num_patches - 1}")
    return stacked


def _compare_forward(comparison: Comparison, step: int, loss: Tensor, seen: Mapping[str, Tensor]) -> None:
    # The reference joins everything along the batch: (target block, context block, image), features (context, image).
    targets = seen["targets"][:, None].expand_as(seen["predictions"])
    comparison.add(f"step{step}.context_features", seen["features"].transpose(0, 1).flatten(0, 1), FEATURES)
    comparison.add(f"step{step}.targets", targets.transpose(0, 2).flatten(0, 2), FEATURES)
    comparison.add(f"step{step}.predictions", seen["predictions"].transpose(0, 2).flatten(0, 2), FEATURES)
    comparison.add(f"step{step}.loss", loss, LOSSES)


def _compare_gradients(comparison: Comparison, step: int, method: IJEPA) -> None:
    for prefix, module, names in (
        ("", method.encoder, IJEPA_ENCODER),
        ("predictor/", method.predictor, IJEPA_PREDICTOR),
    ):
        gradients = {prefix + names.official(n): p.grad for n, p in module.named_parameters() if p.grad is not None}
        comparison.add_gradients(f"step{step}.", gradients)


def _parsed(fixture: Fixture, key: str, pattern: re.Pattern[str], *, default: str) -> Sequence[float]:
    """The numbers in a setting that the file gives in words."""
    text = fixture.config.get(key, default)
    match = pattern.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise FixtureError(f"{fixture.path}: config.{key}={text!r} is not known; this verifier knows {default!r}")
    return [float(number) for number in match.groups()]
