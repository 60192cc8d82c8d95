"""Golden fixtures of MSN (facebookresearch/msn): a tiny model's run, recomputed by ours."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_zoo.engine.optim import AdamWConfig
from ssl_zoo.interop.official import NameMap, load_official
from ssl_zoo.losses.info_nce import cosine_logits
from ssl_zoo.losses.self_distillation import entropy, mean_entropy_gap, sinkhorn
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, Output
from ssl_zoo.methods.msn import ANCHOR, MSN, TARGET, MSNConfig
from ssl_zoo.nn import Positions, ViTConfig
from ssl_zoo.nn.batch_norm import BatchNorm
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
from ssl_zoo.testing.golden.training import Replay, adamw, official_gradients, reference_method
from ssl_zoo.world import World

_HEAD_LAYERS = 3
_UNBALANCED_TARGETS = Tolerance(3e-5)  # sharpened; the file's README
_FINAL_PROTOTYPES = Tolerance(5e-6)
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def recognises(fixture: Fixture) -> bool:
    return fixture.config.get("method") == "MSN"


def verify(fixture: Fixture) -> list[Finding]:
    """Recompute everything that the file stores from its weights and crops."""
    method = _method(fixture)
    _load(fixture, method)
    replay = _Replay(fixture, method)
    _compare_first_step(replay)
    norms = {network: _track(fixture, network, parts["fc."]) for network, parts in _networks(method).items()}
    replay.train()
    for network, parts in _networks(method).items():
        weights = {f"{prefix}{name}": t for prefix, m in parts.items() for name, t in m.state_dict().items()}
        for name, norm in norms[network].items():
            weights |= {f"fc.{name}.{buffer}": getattr(norm, buffer) for buffer in _BUFFERS}
        replay.comparison.add_weights(f"final.{network}", weights, weights, FINAL_WEIGHTS)
    replay.comparison.add("final.prototypes", method.prototypes, _FINAL_PROTOTYPES)
    return replay.comparison.findings()


def _method(fixture: Fixture) -> MSN:
    use_sinkhorn = fixture.config.get("use_sinkhorn")
    if not isinstance(use_sinkhorn, bool):
        raise FixtureError(f"{fixture.path}: config.use_sinkhorn={use_sinkhorn!r} must be true or false")
    patch_size, focal_size = fixture.count("patch_size"), fixture.count("focal_size")
    if focal_size % patch_size:
        raise FixtureError(f"{fixture.path}: config.focal_size={focal_size} is no multiple of patch_size={patch_size}")
    with blame(fixture, "config"):
        config = MSNConfig(
            num_prototypes=fixture.count("prototypes"),
            head_dim=fixture.count("head_hidden"),
            head_layers=_HEAD_LAYERS,
            head_batch_norm=True,
            projection_dim=fixture.count("head_out"),
            anchor_temp=fixture.number("temperature"),
            sinkhorn_iterations=fixture.count("sinkhorn_iterations") if use_sinkhorn else 0,
            me_max_weight=fixture.number("memax_weight"),
            entropy_weight=fixture.number("ent_weight"),
        )
        backbone = ViTConfig(
            **fixture.vit_sizes(),
            positions=Positions.learned,
            position_offset=fixture.number("position_offset"),
            class_token=True,
        )
        return reference_method(config, backbone)


def _networks(method: MSN) -> Mapping[str, Mapping[str, nn.Module]]:
    """Return encoder and head of both networks by the prefixes of their official names."""
    return {
        "student": {"": method.encoder, "fc.": method.head},
        "teacher": {"": method.target_encoder.module, "fc.": method.target_head.module},
    }


def _load(fixture: Fixture, method: MSN) -> None:
    for network, parts in _networks(method).items():
        stored = {name: t for name, t in fixture.group(f"init.{network}.").items() if not name.endswith(_BUFFERS)}
        head = {name.removeprefix("fc."): t for name, t in stored.items() if name.startswith("fc.")}
        encoder = {name: t for name, t in stored.items() if not name.startswith("fc.")}
        with blame(fixture, f"init.{network}"):
            load_official(parts[""], encoder, NameMap())
            load_official(parts["fc."], head, NameMap())
    prototypes = fixture.tensor("init.prototypes")
    if prototypes.shape != method.prototypes.shape:
        raise FixtureError(
            f"{fixture.path}: init.prototypes has shape {list(prototypes.shape)}, needs {list(method.prototypes.shape)}"
        )
    with torch.no_grad():
        method.prototypes.copy_(prototypes)


def _track(fixture: Fixture, network: str, head: nn.Module) -> Mapping[str, nn.BatchNorm1d]:
    """Feed the inputs of a head's norms to torch's batch normalization, for the running statistics that ours lacks."""
    trackers = {name: nn.BatchNorm1d(len(m.weight)) for name, m in head.named_children() if isinstance(m, BatchNorm)}
    for name, tracker in trackers.items():
        for buffer in _BUFFERS:
            stored = fixture.tensor(f"init.{network}.fc.{name}.{buffer}")
            if stored.shape != getattr(tracker, buffer).shape:
                raise FixtureError(f"{fixture.path}: init.{network}.fc.{name}.{buffer} is {list(stored.shape)}")
            getattr(tracker, buffer).copy_(stored)

        def follow(_: nn.Module, inputs: tuple[Tensor, World], tracker: nn.BatchNorm1d = tracker) -> None:
            tracker(inputs[0].detach())

        getattr(head, name).register_forward_pre_hook(follow)
    return trackers


def _compare_first_step(replay: "_Replay") -> None:
    """Compare projections, and targets and losses with balanced targets and without."""
    method, comparison, batch = replay.method, replay.comparison, replay.batch(0)
    with torch.no_grad():
        visible, focal = batch.masks[ANCHOR].context[:, 0], batch.group("local")
        tokens = [method.encoder(batch.views[ANCHOR], keep=visible)]
        tokens += [method.encoder(torch.cat(focal))] if focal else []
        anchors = torch.cat([method.head(method.encoder.pooled(of_size), World()) for of_size in tokens])
        full = method.encoder.pooled(method.target_encoder(batch.views[TARGET]))
        projections = method.target_head(full, World())
        comparison.add("step0.anchor_views", anchors, FEATURES)
        comparison.add("step0.target_views", projections, FEATURES)
        log_p = cosine_logits(anchors, method.prototypes, method.config.anchor_temp).log_softmax(dim=-1)
        scores = cosine_logits(projections, method.prototypes, replay.step_values(0)["target_temp"]).log_softmax(dim=-1)
        iterations = replay.fixture.count("sinkhorn_iterations")
        for name, count, tolerance in (("on", iterations, FEATURES), ("off", 0, _UNBALANCED_TARGETS)):
            targets = sinkhorn(scores, World(), count)
            loss = -(targets * log_p.unflatten(0, (-1, len(targets)))).sum(dim=-1).mean()
            prefix = f"step0.sinkhorn_{name}"
            comparison.add(f"{prefix}.targets", targets, tolerance)
            comparison.add(f"{prefix}.loss_prototypes", loss, LOSSES)
            comparison.add(f"{prefix}.loss_memax", mean_entropy_gap(log_p.exp(), World()), LOSSES)
            comparison.add(f"{prefix}.loss_entropy", entropy(log_p.exp()).mean(), LOSSES)


class _Replay(Replay):
    method: MSN

    def __init__(self, fixture: Fixture, method: MSN) -> None:
        super().__init__(fixture, method, Comparison(fixture), _optim(fixture))
        self.stretched = fixture.number("schedule_stretch") * self.num_steps
        self._number, self._encoder_norms = 0, {}  # by step, before clipping

    def batch(self, number: int) -> Batch:
        return _batch(self.fixture, number, self.method)

    def compare_forward(self, number: int, batch: Batch, loss: Tensor, seen: Mapping[str, Tensor]) -> None:
        self._number = number

    def gradients(self) -> dict[str, Tensor]:
        encoder, head = (
            official_gradients(m, NameMap(), part) for part, m in _networks(self.method)["student"].items()
        )
        norm = torch.stack([gradient.norm() for gradient in (*encoder.values(), *head.values())]).norm().item()
        self._encoder_norms.setdefault(self._number, norm)  # asked for again after clipping
        return encoder | head | {"prototypes": self.method.prototypes.grad}

    def step_values(self, number: int) -> Mapping[str, float]:
        return {"target_temp": self.method.config.anchor_temp * self._linear("sharpen0", "sharpen1", number)}

    def momentum(self, number: int) -> float:
        return self._linear("ema0", "ema1", number)

    def _linear(self, first: str, last: str, number: int) -> float:
        start, end = self.fixture.number(first), self.fixture.number(last)
        return start + number * (end - start) / self.stretched

    def end_of_step(self, number: int, output: Output) -> Mapping[str, float]:
        """Return the sharpening, the norm of the encoder's gradient, and the unweighted terms of the loss."""
        return {
            "sharpen": self._linear("sharpen0", "sharpen1", number),
            "grad_norm": self._encoder_norms[number],
            "loss_prototypes": output.losses["prototypes"].item(),
            "loss_memax": output.metrics["me_max_gap"].item(),
            "loss_entropy": output.metrics["anchor_entropy"].item(),
        }


def _optim(fixture: Fixture) -> AdamWConfig:
    """Return the reference's optimizer, whose schedules are a step ahead, over a longer run than there is."""
    return adamw(
        fixture,
        lr=fixture.number("lr"),
        warmup_lr=fixture.number("lr0"),
        min_lr=fixture.number("lr1"),
        warmup_epochs=fixture.number("warmup_epochs"),
        weight_decay=fixture.number("wd"),
        final_weight_decay=fixture.number("wd_end"),
        schedule_stretch=fixture.number("schedule_stretch"),
        schedule_offset=1,
    )


def _batch(fixture: Fixture, step: int, method: MSN) -> Batch:
    size, focal_size, num_images = fixture.count("image_size"), fixture.count("focal_size"), fixture.count("batch")
    names = {TARGET: ("target_image", size), ANCHOR: ("anchor_image", size)}
    num_focal = int(fixture.number("focal_views"))
    names |= {f"local_{number}": (f"focal_image.{number}", focal_size) for number in range(num_focal)}
    views = {}
    for view, (name, side) in names.items():
        views[view] = fixture.tensor(f"step{step}.{name}")
        if views[view].shape != (num_images, 3, side, side):
            raise FixtureError(
                f"{fixture.path}: step{step}.{name} has shape {list(views[view].shape)}, needs "
                f"{[num_images, 3, side, side]}"
            )
    kept, num_patches = fixture.tensor(f"step{step}.kept_patches"), method.encoder.num_patches
    is_index = kept.ndim == 1 and kept.dtype == torch.int64 and len(kept.unique()) == len(kept) > 0
    if not is_index or kept.min() < 0 or kept.max() >= num_patches:
        raise FixtureError(f"{fixture.path}: step{step}.kept_patches: needs different patches of 0..{num_patches - 1}")
    context = kept.expand(num_images, 1, -1)
    return Batch(views, {ANCHOR: Masks(context, context[:, :, :0])})
