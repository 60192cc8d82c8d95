"""A tiny encoder with large random weights, and rendered scenes that it is shown."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from tiny_methods import TINY_BACKBONE

from ssl_zoo.data.sources import Split
from ssl_zoo.data.sources.scenes import RenderedScenes, ScenesConfig
from ssl_zoo.nn import ViT, ViTConfig
from ssl_zoo.seeding import generator_for
from ssl_zoo.visualization import Rendering, Subject, choose_images

TOKENS = replace(TINY_BACKBONE, class_token=True, num_registers=3)


def subject(backbone: ViTConfig = TINY_BACKBONE, num_images: int = 3) -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ViT(backbone).eval()
    with torch.no_grad():
        for number, parameter in enumerate(encoder.parameters()):
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=generator_for("weights", number))
    source = RenderedScenes(ScenesConfig(num_train=8, num_test=8, image_size=16), Split.test)
    samples, images = choose_images(source, num_images)
    rendering = Rendering((16, 16), [0.5] * 3, [0.25] * 3)
    return Subject(encoder, rendering, source, samples, images, torch.device("cpu"), nullcontext())
