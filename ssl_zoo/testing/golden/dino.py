"""Golden fixtures of DINO (facebookresearch/dino) and iBOT (bytedance/ibot): a tiny model's run, recomputed by ours."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_zoo.interop.official import NameMap, load_official
from ssl_zoo.masks import Masks
from ssl_zoo.method import Batch, Output
from ssl_zoo.methods.dino import DINO, DINOConfig
from ssl_zoo.methods.ibot import IBOT, IBOTConfig
from ssl_zoo.nn import Positions, ViTConfig
from ssl_zoo.testing.golden.fixture import (
    FEATURES,
    FINAL_WEIGHTS,
    Comparison,
    Finding,
    Fixture,
    FixtureError,
    Tolerance,
    blame,
)
from ssl_zoo.testing.golden.training import Replay, adamw, cosine, official_gradients, reference_method, reference_rates

_NUM_GLOBAL = 2  # global crops of every image
_CENTER = Tolerance(1e-5)


def recognises_dino(fixture: Fixture) -> bool:
    return fixture.config.get("method") == "DINO"


def recognises_ibot(fixture: Fixture) -> bool:
    return fixture.config.get("method") == "iBOT"


def verify(fixture: Fixture) -> list[Finding]:
    """Recompute everything that the file stores from its weights and crops."""
    method = _method(fixture)
    _load(fixture, method)
    replay = _Replay(fixture, method)
    replay.train()
    for network, modules in _networks(method).items():
        weights = {f"{part}{name}": t for part, m in modules.items() for name, t in m.state_dict().items()}
        if network == "student":
            weights |= {name: parameter.detach() for name, parameter in _own(method).items()}
        replay.comparison.add_weights(f"final.{network}", weights, weights, FINAL_WEIGHTS)
    replay.compare_centers()
    return replay.comparison.findings()


def _method(fixture: Fixture) -> DINO | IBOT:
    norm_last_layer = fixture.config.get("norm_last_layer")
    if not isinstance(norm_last_layer, bool):
        raise FixtureError(f"{fixture.path}: config.norm_last_layer={norm_last_layer!r} must be true or false")
    patch_size, local_size = fixture.count("patch_size"), fixture.count("local_size")
    if local_size % patch_size:
        raise FixtureError(f"{fixture.path}: config.local_size={local_size} is no multiple of patch_size={patch_size}")
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
        backbone = ViTConfig(
            **fixture.vit_sizes(),
            positions=Positions.learned,
            position_offset=fixture.number("position_offset"),
            class_token=True,
        )
        return reference_method(config, backbone)


def _mask_start_epoch(fixture: Fixture) -> float:
    return fixture.number("mim_start_epoch") if "mim_start_epoch" in fixture.config else 0


def _networks(method: DINO | IBOT) -> Mapping[str, Mapping[str, nn.Module]]:
    """Return the parts of student and teacher by the prefixes of their official names."""
    return {
        "student": {"backbone.": method.encoder, "head.": method.head},
        "teacher": {"backbone.": method.teacher_encoder.module, "head.": method.teacher_head.module},
    }


def _own(method: DINO | IBOT) -> dict[str, nn.Parameter]:
    """What the student has beside its networks, by official names."""
    return {"backbone.masked_embed": method.mask_token} if isinstance(method, IBOT) else {}


def _load(fixture: Fixture, method: DINO | IBOT) -> None:
    own = _own(method)
    for network, modules in _networks(method).items():
        # Without weights of its own the teacher starts as an exact copy.
        stored = fixture.group(f"init.{network}.") or fixture.group("init.student.")
        with blame(fixture, f"init.{network}"):
            for part, module in modules.items():
                weights = {n.removeprefix(part): t for n, t in stored.items() if n.startswith(part) and n not in own}
                load_official(module, weights, NameMap())
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(fixture.tensor(f"init.student.{name}"))


class _Replay(Replay):
    method: DINO | IBOT

    def __init__(self, fixture: Fixture, method: DINO | IBOT) -> None:
        super().__init__(fixture, method, Comparison(fixture), adamw(fixture), reference_rates(fixture))
        self.centers = {"center": [method.center.clone()]}
        if isinstance(method, IBOT):
            self.centers["center_patch"] = [method.patch_center.clone()]

    def batch(self, number: int) -> Batch:
        return _batch(self.fixture, number, self.method.encoder.grid)

    def compare_forward(self, number: int, batch: Batch, loss: Tensor, seen: Mapping[str, Tensor]) -> None:
        if number == 0:
            _compare_networks(self.comparison, self.method, batch)

    def gradients(self) -> dict[str, Tensor]:
        backbone, head = (
            official_gradients(m, NameMap(), part) for part, m in _networks(self.method)["student"].items()
        )
        return backbone | head | {name: parameter.grad for name, parameter in _own(self.method).items()}

    def step_values(self, number: int) -> Mapping[str, float]:
        values = {"teacher_temp": self._temperature("teacher", number)}
        if isinstance(self.method, IBOT):
            values["teacher_patch_temp"] = self._temperature("patch", number, _mask_start_epoch(self.fixture))
        return values

    def _temperature(self, part: str, number: int, start: float = 0) -> float:
        """Return a temperature of the reference: it rises linearly over epochs, ours over steps."""
        first, last = self.fixture.number(f"{part}_temp0"), self.fixture.number(f"{part}_temp")
        epochs = max(0, number // self.steps_per_epoch - start)
        return first + (last - first) * min(1.0, epochs / max(1, self.fixture.count("temp_warmup_epochs") - 1))

    def momentum(self, number: int) -> float:
        return cosine(self.fixture.number("momentum"), 1.0, number / self.num_steps)

    def end_of_step(self, number: int, output: Output) -> Mapping[str, float]:
        """Keep the centers; return the temperatures and iBOT's two terms, which are stored with their weights."""
        self.centers["center"].append(self.method.center.clone())
        values = self.step_values(number)
        if not isinstance(self.method, IBOT):
            return values
        self.centers["center_patch"].append(self.method.patch_center.clone())
        terms = {"loss_cls": output.losses["image"].item(), "loss_patch": output.losses["patch"].item()}
        return {"teacher_temp": values["teacher_temp"], "patch_temp": values["teacher_patch_temp"], **terms}

    def compare_centers(self) -> None:
        for name, centers in self.centers.items():
            self.comparison.add(f"history.{name}", torch.stack(centers), _CENTER)


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
    for network, parts in _networks(method).items():
        encoder, head = parts.values()
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
