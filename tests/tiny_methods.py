"""Every registered method at a tiny size, on one batch of random images."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ssl_zoo.config import compose_section
from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import build_generators, build_views
from ssl_zoo.masks import MASKS
from ssl_zoo.masks.blockwise import Shortfall
from ssl_zoo.method import METHODS, Method, Output, Progress, Step, build_method
from ssl_zoo.nn import ViTConfig
from ssl_zoo.plugins import discover
from ssl_zoo.regularizers import REGULARIZERS, RegularizerConfig
from ssl_zoo.seeding import generator_for
from ssl_zoo.targets import TARGETS
from ssl_zoo.views import ViewSetConfig

discover()

PROGRESS = Progress(step=10, num_steps=100, samples=80, steps_per_epoch=2)
# Settings that bring a method or mask generator down to width 48 on a 4x4 grid; everything else is its default.
TINY_HEAD = {"num_prototypes": 32, "head_dim": 32, "bottleneck_dim": 16, "freeze_last_layer_epochs": 0.0}
TINY_METHOD = {
    "cae": {"regressor_depth": 1, "decoder_depth": 1, "layer_scale": None},
    "dino": TINY_HEAD,
    "ibot": TINY_HEAD,
    "simclr": {"head_dim": 32, "projection_dim": 16},
    "msn": {"head_dim": 32, "projection_dim": 16, "num_prototypes": 32, "head_batch_norm": True},
    "ijepa": {"predictor_dim": 32, "predictor_depth": 1, "predictor_heads": 4},
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4},
    "data2vec2": {"decoder_dim": 32, "decoder_depth": 2},
    "lejepa": {"head_dim": 32, "projection_dim": 16, "num_directions": 32},
}
TINY_VIEWS = {"dino": ["views.num_local_crops=2", "views.local_size=8"]}
TINY_VIEWS |= dict.fromkeys(["ibot", "msn", "lejepa"], TINY_VIEWS["dino"])
TINY_MASKS = {
    "multiblock": {"min_patches": 1, "target_scale": [0.2, 0.3]},
    "blockwise": {"min_block_area": 2, "shortfall": Shortfall.keep},
    "inverse_block": {"num_masks": 3, "block_side": 1, "mask_ratio": 0.6},
}
TINY_TARGETS = {"tokens": {"num_tokens": 32}, "topk_teacher": {"average_top_k_layers": 2}}
TINY_BACKBONE = ViTConfig(image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4)


@dataclass(frozen=True)
class Tiny:
    """A method and what it eats."""

    name: str
    method: Method
    batch: Batch

    @property
    def step(self) -> Step:
        return step_of(self.method)

    def output(self, batch: Batch | None = None) -> Output:
        return self.method(batch or self.batch, self.step)

    def rebuilt(self, seed: int = 0) -> Method:
        return tiny_method(self.name, seed)


def tiny_method(
    name: str,
    seed: int = 0,
    regularizer: str | RegularizerConfig | None = None,
    target_overrides: Mapping[str, object] | None = None,
    **overrides: object,
) -> Method:
    """Build a method by name; ``target_overrides`` may name another target as ``name``."""
    config = METHODS.config_of(name)(**{**TINY_METHOD.get(name, {}), **overrides})
    more = dict(target_overrides or {})
    target = more.pop("name", METHODS.get(name).default_targets)
    target_config = None if target is None else TARGETS.config_of(target)(**{**TINY_TARGETS.get(target, {}), **more})
    if isinstance(regularizer, str):
        regularizer = REGULARIZERS.config_of(regularizer)()
    return build_method(config, TINY_BACKBONE, target_config, regularizer, seed=seed)


@functools.cache
def tiny_views(name: str) -> ViewSetConfig:
    """A method's default views, at a size for 16 pixels."""
    return compose_section("views", [f"views={METHODS.get(name).default_views}", *TINY_VIEWS.get(name, [])])


def views_of(method: Method) -> ViewSetConfig:
    """The default views of a method's class, for subclasses of registered ones too."""
    return tiny_views(next(name for name, cls in METHODS if isinstance(method, cls)))


def step_of(method: Method, progress: Progress = PROGRESS) -> Step:
    return Step.of(method, progress)


def tiny_batch(method: Method, name: str, num_images: int = 8, seed: int = 0, **mask_settings: object) -> Batch:
    masks = METHODS.get(name).default_masks
    mask_config = None if masks is None else MASKS.config_of(masks)(**{**TINY_MASKS.get(masks, {}), **mask_settings})
    specs = build_views(tiny_views(name), TINY_BACKBONE)
    generators = build_generators(specs, mask_config, TINY_BACKBONE)
    return Batch(
        views={
            spec.name: torch.randn(num_images, spec.channels, *spec.size, generator=generator_for(seed, "images", i))
            for i, spec in enumerate(specs)
        },
        masks={
            spec.name: generators[spec.name](num_images, generator_for(seed, "masks", i))
            for i, spec in enumerate(specs)
            if spec.name in generators
        },
        index=torch.arange(num_images),
        normalize={spec.name: spec.normalize for spec in specs},
    )
