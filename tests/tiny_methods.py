"""Every registered method at a tiny size, on one batch of random images."""

from dataclasses import dataclass

import torch

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import build_generators, build_views
from ssl_zoo.masks import MASKS
from ssl_zoo.masks.blockwise import Shortfall
from ssl_zoo.method import METHODS, Method, Progress, build_method
from ssl_zoo.nn import ViTConfig
from ssl_zoo.plugins import discover
from ssl_zoo.seeding import generator_for
from ssl_zoo.targets import TARGETS

discover()

PROGRESS = Progress(step=10, num_steps=100, samples=80)
# Settings that bring a method or mask generator down to width 48 on a 4x4 grid; everything else is its default.
TINY_METHOD = {
    "ibot": {
        **{"num_prototypes": 32, "head_dim": 32, "bottleneck_dim": 16},
        **{"num_local_crops": 2, "local_size": 8, "frozen_last_layer": 0.0},
    },
    "dino": {
        "num_prototypes": 32,
        "head_dim": 32,
        "bottleneck_dim": 16,
        "num_local_crops": 2,
        "local_size": 8,
        "frozen_last_layer": 0.0,
    },
    "ijepa": {"predictor_dim": 32, "predictor_depth": 1, "predictor_heads": 4},
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4},
    "data2vec2": {"decoder_dim": 32, "decoder_depth": 2},
}
TINY_MASKS = {
    "multiblock": {"min_patches": 1, "target_scale": [0.2, 0.3]},
    "blockwise": {"min_block_area": 2, "shortfall": Shortfall.keep},
    "inverse_block": {"num_masks": 3, "block_side": 1, "mask_ratio": 0.6},
}
TINY_TARGETS = {"topk_teacher": {"average_top_k_layers": 2}}
TINY_BACKBONE = ViTConfig(image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4)


@dataclass(frozen=True)
class Tiny:
    """A method and what it eats."""

    name: str
    method: Method
    batch: Batch

    def rebuilt(self, seed: int = 0) -> Method:
        return tiny_method(self.name, seed)


def tiny_method(name: str, seed: int = 0, **overrides: object) -> Method:
    config = METHODS.config_of(name)(**{**TINY_METHOD.get(name, {}), **overrides})
    target = METHODS.get(name).default_targets
    target_config = None if target is None else TARGETS.config_of(target)(**TINY_TARGETS.get(target, {}))
    return build_method(config, TINY_BACKBONE, target_config, seed=seed)


def tiny_batch(method: Method, name: str, num_images: int = 8, seed: int = 0, **mask_settings: object) -> Batch:
    masks = METHODS.get(name).default_masks
    mask_config = None if masks is None else MASKS.config_of(masks)(**{**TINY_MASKS.get(masks, {}), **mask_settings})
    views = build_views(method.config, TINY_BACKBONE)
    generators = build_generators(views, mask_config, TINY_BACKBONE)
    images = [
        torch.randn(num_images, 3, *view.size, generator=generator_for(seed, "images", i))
        for i, view in enumerate(v for v in views for _ in range(v.count))
    ]
    drawn = [None if g is None else g(num_images, generator_for(seed, "masks", i)) for i, g in enumerate(generators)]
    return Batch(tuple(images), tuple(drawn), torch.arange(num_images))
