"""Peak memory of attentive probes: ``python attentive_memory.py NUMBER [NUMBER ...] [cached]`` trains one on each.

A line per number of train images: the number, the peak in MB of the process so far, the seconds of the probe.
"""

import resource
import sys
import time
from types import SimpleNamespace

import torch
from jaxtyping import Int
from tiny_probes import BACKBONE, Stripes, encoder
from torch import Tensor

from ssl_zoo.data.batch import ViewConfig
from ssl_zoo.data.sources.base import SourceConfig, Split
from ssl_zoo.eval import Probe, probe_config_class
from ssl_zoo.eval.attentive import AttentiveConfig
from ssl_zoo.eval.trained import FeatureSource


class ManyStripes(Stripes):
    """Stripes of any number, rendered at once."""

    def __init__(self, split: Split, number: int) -> None:
        super().__init__(SourceConfig(), split)
        self.number = number

    def __len__(self) -> int:
        return self.number

    def images(self, indices: Int[Tensor, "B"]) -> Tensor:
        generator = torch.Generator().manual_seed(int(indices[0]))
        images = torch.randint(160, (len(indices), 3, 16, 16), generator=generator, dtype=torch.uint8)
        band = torch.arange(16) // 4 == (indices % 4)[:, None]
        return images + 90 * band[:, None, :, None].to(torch.uint8)


def measure(number: int, features: FeatureSource) -> tuple[float, float]:
    """Train on ``number`` images and return the peak of the process in MB and the seconds."""
    attentive = AttentiveConfig(epochs=1, features=features, lrs=[0.001, 0.003], refit=False)
    settings = {"evaluators": ["attentive"], "attentive": attentive, "train_samples": 0, "test_samples": 0}
    config = SimpleNamespace(seed=0, backbone=BACKBONE, probe=probe_config_class()(**settings))
    start = time.perf_counter()
    splits = ManyStripes(Split.train, number), ManyStripes(Split.test, 1000)
    Probe(config, *splits, ViewConfig(mean=[0.5] * 3, std=[0.25] * 3))(encoder())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, time.perf_counter() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    source = FeatureSource.cached if "cached" in sys.argv else FeatureSource.streamed
    for word in sys.argv[1:]:
        if word != "cached":
            peak, seconds = measure(int(word), source)
            print(word, f"{peak:.1f} {seconds:.1f}", flush=True)
