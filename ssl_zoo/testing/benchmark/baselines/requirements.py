"""The settings that a recipe must have so that every baseline computes the same."""

import dataclasses
from enum import Enum

from ssl_zoo.engine.build import RunConfig
from ssl_zoo.engine.optim import AdamWConfig
from ssl_zoo.masks.multiblock import MultiblockConfig
from ssl_zoo.masks.random import RandomConfig
from ssl_zoo.nn.vit import Positions, ViTConfig
from ssl_zoo.targets import MaskTeacher, Normalization, PixelsConfig, TeacherConfig
from ssl_zoo.views.multi_crop import MultiCropConfig

# Options of a backbone that no baseline has.
_BACKBONE_DEFAULTS = (
    *("patch_stem", "num_registers", "relative_position_bias", "qkv_bias", "key_bias"),
    *("norm_position", "final_norm", "layer_scale", "attention_dropout"),
)


def check_requirements(name: str, method: str, config: RunConfig) -> None:
    """Refuse settings that the baseline ``name`` does not have.

    Raises:
        ValueError: with the key and what to set instead.
    """
    if type(config.optim) is not AdamWConfig:
        raise ValueError(f"--baseline {name} trains with AdamW: add optim=adamw")
    if config.regularizer is not None:
        raise ValueError(f"--baseline {name} has no regularizer: set regularizer=null")
    _check_backbone(name, config.backbone)
    {"ijepa": _check_ijepa, "mae": _check_mae, "dino": _check_dino}[method](name, config)


def _require(name: str, key: str, value: object, needed: object) -> None:
    if value != needed:
        shown, wanted = (v.value if isinstance(v, Enum) else v for v in (value, needed))
        raise ValueError(f"--baseline {name} does not have {key}={_text(shown)}: set it to {_text(wanted)}")


def _text(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _require_part(name: str, key: str, config: object, needed: type, option: str) -> None:
    if type(config) is not needed:
        raise ValueError(f"--baseline {name} has other {key} than this recipe: set {key}={option}")


def _check_backbone(name: str, backbone: ViTConfig) -> None:
    _require_part(name, "backbone", backbone, ViTConfig, "vit")
    defaults = {field.name: field.default for field in dataclasses.fields(ViTConfig)}
    for option in _BACKBONE_DEFAULTS:
        _require(name, f"backbone.{option}", getattr(backbone, option), defaults[option])
    if backbone.positions is Positions.none:
        _require(name, "backbone.positions", backbone.positions, Positions.sincos)
    height, width = backbone.image_shape
    _require(name, "backbone.image_width", width, height)


def _check_ijepa(name: str, config: RunConfig) -> None:
    _require_part(name, "masks", config.masks, MultiblockConfig, "multiblock")
    _require_part(name, "targets", config.targets, TeacherConfig, "teacher")
    _require(name, "masks.num_contexts", config.masks.num_contexts, 1)
    _require(name, "targets.mask", config.targets.mask, MaskTeacher.output)
    _require(name, "targets.full_precision", config.targets.full_precision, False)
    if config.targets.normalization is not Normalization.instance:
        _require(name, "targets.normalization", config.targets.normalization, Normalization.layer)
    for option in ("position_noise_std", "context_loss_weight"):
        _require(name, f"method.{option}", getattr(config.method, option), 0)


def _check_mae(name: str, config: RunConfig) -> None:
    _require_part(name, "masks", config.masks, RandomConfig, "random")
    _require_part(name, "targets", config.targets, PixelsConfig, "pixels")


def _check_dino(name: str, config: RunConfig) -> None:
    _require_part(name, "views", config.views, MultiCropConfig, "multi_crop")
    _require(name, "method.head_layers", config.method.head_layers, 3)
    for option in ("sinkhorn_iterations", "koleo_weight"):
        _require(name, f"method.{option}", getattr(config.method, option), 0)
