"""Golden fixtures of data2vec 1.0 (facebookresearch/data2vec_vision): a tiny model's run, recomputed by ours."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_zoo.interop.official import BEIT_ENCODER, NameMap, load_official, split_data2vec, to_official
from ssl_zoo.method import Batch
from ssl_zoo.methods.data2vec import Data2vec, Data2vecConfig
from ssl_zoo.targets import TopKTeacherConfig
from ssl_zoo.testing.golden.beit import beit_backbone, load_mask_token, masked_batch
from ssl_zoo.testing.golden.fixture import FEATURES, FINAL_WEIGHTS, Comparison, Finding, Fixture, FixtureError, blame
from ssl_zoo.testing.golden.training import Replay, adamw, official_gradients, reference_method, reference_rates


def recognises(fixture: Fixture) -> bool:
    return str(fixture.config.get("method", "")).startswith("data2vec 1")


def verify(fixture: Fixture) -> list[Finding]:
    """Recompute everything that the file stores from its weights and inputs."""
    method = _method(fixture)
    _load(fixture, method)
    replay = _Replay(fixture, method)
    replay.train()
    for network, encoder, own in (
        ("student", method.encoder, replay.own),
        ("teacher", method.target.encoder.module, replay.own_averaged),
    ):
        computed = to_official(encoder, BEIT_ENCODER) | {name: tensor.detach() for name, tensor in own.items()}
        replay.comparison.add_weights(f"final.{network}", computed, computed, FINAL_WEIGHTS)
    return replay.comparison.findings()


def _method(fixture: Fixture) -> Data2vec:
    depth = fixture.count("depth")
    layers = fixture.config.get("target_layers")
    if not isinstance(layers, list) or not layers or not set(layers) <= set(range(depth)):
        raise FixtureError(f"{fixture.path}: config.target_layers={layers!r}: needs some of the {depth} blocks")
    with blame(fixture, "config"):
        config = Data2vecConfig(smooth_l1_beta=fixture.number("l1_beta"))
        return reference_method(config, beit_backbone(fixture, "init.student."), TopKTeacherConfig(layers=layers))


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
    load_mask_token(fixture, "init.student.mask_token", own.get("mask_token"), method.mask_token)


class _Replay(Replay):
    """The reference averages mask token and head too, though its teacher uses neither."""

    method: Data2vec

    def __init__(self, fixture: Fixture, method: Data2vec) -> None:
        super().__init__(fixture, method, Comparison(fixture), adamw(fixture), reference_rates(fixture))
        self.own = {"mask_token": method.mask_token, "lm_head.weight": method.head.weight}
        self.own["lm_head.bias"] = method.head.bias
        stored = fixture.tensors
        self.own_averaged = {n: stored.get(f"init.teacher.{n}", t).detach().clone() for n, t in self.own.items()}

    def batch(self, number: int) -> Batch:
        return masked_batch(self.fixture, number, self.method.encoder.grid)

    def watched(self) -> Mapping[str, nn.Module]:
        return {"targets": self.method.target, "predictions": self.method.head}

    @torch.no_grad()
    def compare_forward(self, number: int, batch: Batch, loss: Tensor, seen: Mapping[str, Tensor]) -> None:
        if number > 0:
            return
        teacher, masked = self.method.target.encoder.module, batch.masks["image"].masked
        for i, block in enumerate(teacher(batch.views["image"], layers=range(len(teacher.blocks)))):
            name = "step0.teacher_block"
            self.comparison.add(f"{name}.{i}", teacher.patches(block), FEATURES, quantity=name)
        self.comparison.add("step0.targets", seen["targets"][:, 0][masked], FEATURES)
        self.comparison.add("step0.predictions", seen["predictions"][masked], FEATURES)

    def gradients(self) -> dict[str, Tensor]:
        own = {name: parameter.grad for name, parameter in self.own.items()}
        return official_gradients(self.method.encoder, BEIT_ENCODER) | own

    def momentum(self, number: int) -> float:
        """Linear from ``ema_init`` to ``ema`` over ``ema_start_at`` steps; ``ema`` itself from the next epoch on."""
        last, start_at = self.fixture.number("ema"), self.fixture.number("ema_start_at")
        if number // self.steps_per_epoch * self.steps_per_epoch >= start_at:
            return last
        first, annealed = self.fixture.number("ema_init"), min(number, math.ceil(start_at) - 1)
        return first + annealed * (last - first) / start_at

    def update_emas(self, number: int, momentum: float) -> None:
        """Update EMA weights as the engine does, and then the index table, which the reference averages too.

        Differs from ours: with unlucky momenta the rounded product falls below the whole number that it should be, and
        is truncated, so that the reference's teacher reads wrong rows of its bias table.
        """
        online, averaged = (
            encoder.rel_pos_bias.relative_position_index
            for encoder in (self.method.encoder, self.method.target.encoder.module)
        )
        before = averaged.clone()
        super().update_emas(number, momentum)
        averaged.copy_(momentum * before + (1.0 - momentum) * online)
        for name, parameter in self.own.items():
            self.own_averaged[name].lerp_(parameter.detach(), 1 - momentum)
