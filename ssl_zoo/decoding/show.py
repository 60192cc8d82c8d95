"""Samples of a trained decoder for a user's images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ssl_zoo.data.batch import Batch
from ssl_zoo.data.transforms import render_each, sample_params
from ssl_zoo.decoding.blocks import VIEW
from ssl_zoo.decoding.training import FOLDER, decoded_view, open_decoder
from ssl_zoo.engine.build import RunConfig, build_generators
from ssl_zoo.engine.trained import TrainedMethod
from ssl_zoo.plotting import Figure
from ssl_zoo.seeding import generator_for


def decoded(
    run: Path, trained: TrainedMethod, config: RunConfig, images: Sequence[UInt8[Tensor, "C _ _"]], *, seed: int = 0
) -> Figure:
    """Return the figure of decoded target blocks of ``images`` of any size.

    Images are rendered as in the training of the run and of its decoder, random crops included.

    Args:
        run: the run directory of ``trained``, which has a trained decoder.
        seed: of crops and masks.

    Raises:
        CheckpointError: the run has no decoder of these weights.
    """
    decoder = open_decoder(run / FOLDER, run, trained, config)
    spec = decoded_view(config)
    params = sample_params(spec.config, len(images), generator_for(seed, "decode", "view"))
    [generator] = build_generators([spec], config.masks, config.backbone).values()
    masks = generator(len(images), generator_for(seed, "decode", "masks"))
    views = {VIEW: spec.normalize(render_each(images, params, spec))}
    batch = Batch(views, {VIEW: masks}, torch.arange(len(images)), normalize={VIEW: spec.normalize})
    return decoder.visualize(batch)["decoded"]
