"""Golden fixtures of I-JEPA (facebookresearch/ijepa): the run of a tiny model, recomputed by our own classes."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_zoo.interop.official import IJEPA_ENCODER, IJEPA_PREDICTOR, load_official, to_official
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, EmaConfig
from ssl_zoo.methods.ijepa import IJEPA, IJEPAConfig
from ssl_zoo.nn import ViTConfig
from ssl_zoo.targets.teacher import TeacherConfig
from ssl_zoo.testing.golden.fixture import (
    FEATURES,
    FINAL_WEIGHTS,
    LOSSES,
    Comparison,
    Finding,
    Fixture,
    FixtureError,
    Tolerance,
    blame,
)
from ssl_zoo.testing.golden.training import NUMBER, Replay, adamw, official_gradients, parsed, reference_method

# The target encoder moves by 2.4e-5 in a run of four steps: at FINAL_WEIGHTS a missing average would go unnoticed.
TARGET_ENCODER = Tolerance(1e-6)
# A constant added to all keys does not change a softmax, so the gradient of a key bias is rounding noise.
ROUNDING_ONLY = ("attn.qkv.bias:key",)


def recognises(fixture: Fixture) -> bool:
    # The files name no method; only this predictor has this table.
    return "init.predictor.predictor_pos_embed" in fixture.tensors


def verify(fixture: Fixture) -> list[Finding]:
    """Recompute everything that the file stores from its weights and inputs."""
    method, comparison = _method(fixture), Comparison(fixture, ROUNDING_ONLY)
    comparison.add("init.encoder.pos_embed", method.encoder.pos_embed, FEATURES)
    comparison.add("init.predictor.predictor_pos_embed", method.predictor.pos_embed, FEATURES)
    _load(fixture, method)
    exact = copy.deepcopy(method).double()
    _Replay(fixture, method, comparison).train()
    _Replay(fixture, exact, Comparison(fixture)).train()
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
    [beta] = parsed(fixture, "loss", rf"smooth_l1\(beta={NUMBER}\), mean", default="smooth_l1(beta=1), mean")
    heads = fixture.count("heads")
    with blame(fixture, "config"):
        return reference_method(
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
            TeacherConfig(ema=EmaConfig(fixture.number("ema0"), fixture.number("ema1"))),
        )


def _load(fixture: Fixture, method: IJEPA) -> None:
    for part, module, names in (
        ("encoder", method.encoder, IJEPA_ENCODER),
        ("encoder", method.eval_encoder(), IJEPA_ENCODER),  # the target encoder starts as an exact copy
        ("predictor", method.predictor, IJEPA_PREDICTOR),
    ):
        with blame(fixture, f"init.{part}"):
            load_official(module, fixture.group(f"init.{part}."), names)


class _Replay(Replay):
    method: IJEPA

    def __init__(self, fixture: Fixture, method: IJEPA, comparison: Comparison) -> None:
        optim = adamw(
            fixture,
            "opt",
            lr=fixture.number("lr"),
            warmup_lr=fixture.number("start_lr"),
            min_lr=fixture.number("final_lr"),
            warmup_epochs=fixture.number("warmup_epochs"),
            weight_decay=fixture.number("wd"),
            final_weight_decay=fixture.number("final_wd"),
            schedule_offset=1,
        )
        super().__init__(fixture, method, comparison, optim, steps_per_epoch="iterations_per_epoch")

    def batch(self, number: int) -> Batch:
        return _batch(self.fixture, number, self.method.encoder.pos_embed.dtype)

    def watched(self) -> Mapping[str, nn.Module]:
        return {"features": self.method.encoder, "targets": self.method.target, "predictions": self.method.predictor}

    def compare_forward(self, number: int, batch: Batch, loss: Tensor, seen: Mapping[str, Tensor]) -> None:
        # The reference joins everything along the batch: (target block, context block, image), features (context,
        # image).
        targets = seen["targets"][:, None].expand_as(seen["predictions"])
        features = seen["features"].transpose(0, 1).flatten(0, 1)
        predictions = seen["predictions"].transpose(0, 2).flatten(0, 2)
        self.comparison.add(f"step{number}.context_features", features, FEATURES)
        self.comparison.add(f"step{number}.targets", targets.transpose(0, 2).flatten(0, 2), FEATURES)
        self.comparison.add(f"step{number}.predictions", predictions, FEATURES)
        self.comparison.add(f"step{number}.loss", loss, LOSSES)

    def gradients(self) -> dict[str, Tensor]:
        predictor = official_gradients(self.method.predictor, IJEPA_PREDICTOR, "predictor/")
        return official_gradients(self.method.encoder, IJEPA_ENCODER) | predictor

    def momentum(self, number: int) -> float:
        [ema] = self.method.emas()
        return ema.momentum(number / self.num_steps)


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
