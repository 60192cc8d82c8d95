"""Tiny labelled images, an encoder for them, and a probe of the encoder."""

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.data.sources.base import Source, SourceConfig, Split
from ssl_zoo.eval import Probe, probe_config_class
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.knn import KNNConfig
from ssl_zoo.eval.streaming import Checkpoints
from ssl_zoo.nn import ViT, ViTConfig


class Stripes(Source):
    """Noise with a bright band, whose height is the label ``band``; ``parity`` is a second label set."""

    image_size = (16, 16)
    num_classes = 4

    def __init__(self, config: SourceConfig, split: Split, labelled: bool = True) -> None:
        super().__init__(config, split)
        self.labelled = labelled

    def __len__(self) -> int:
        return 120 if self.split is Split.train else 60

    def image(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(2 * index + (self.split is Split.test))
        image = torch.randint(160, (3, 16, 16), generator=generator, dtype=torch.uint8)
        image[:, 4 * (index % 4) : 4 * (index % 4) + 4] += 90
        return image

    def sample_name(self, index: int) -> str:
        return f"stripes/{index}"

    @property
    def label_sets(self) -> Mapping[str, Tensor]:
        index = torch.arange(len(self))
        return {"band": index % 4, "parity": index // 4 % 2} if self.labelled else {}


BACKBONE = ViTConfig(image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=3, drop_path=0.5)


def encoder(seed: int = 0) -> ViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViT(BACKBONE)


def probe(
    seed: int = 0,
    labelled: bool = True,
    cache: FeatureCache | None = None,
    is_optional: bool = False,
    has_test: bool = True,
    checkpoints: Checkpoints | None = None,
    **settings,
) -> Probe:
    defaults = {"train_samples": 80, "test_samples": 40, "knn": KNNConfig(k=[1, 5])}
    config = SimpleNamespace(seed=seed, backbone=BACKBONE, probe=probe_config_class()(**{**defaults, **settings}))
    train, test = (Stripes(SourceConfig(), split, labelled) for split in Split)
    view = ViewConfig(mean=[0.5] * 3, std=[0.25] * 3)
    kept = {"cache": cache, "checkpoints": checkpoints}
    return Probe(config, train, test if has_test else None, view, is_optional=is_optional, **kept)
