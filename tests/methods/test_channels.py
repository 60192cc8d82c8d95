"""Every method trains on images of any number of channels and shows them."""

from dataclasses import replace

import pytest
import torch
from tiny_methods import TINY_BACKBONE, TINY_MASKS, TINY_METHOD, TINY_TARGETS, step_of, tiny_views

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import build_generators
from ssl_zoo.masks import MASKS
from ssl_zoo.method import METHODS, build_method
from ssl_zoo.plotting import draw
from ssl_zoo.seeding import generator_for
from ssl_zoo.targets import TARGETS
from ssl_zoo.views import VIEWS


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", METHODS.names())
def test_a_step_and_its_visualizations_work_on_any_number_of_channels(name, channels):
    cls, backbone = METHODS.get(name), replace(TINY_BACKBONE, in_channels=channels)
    target = cls.default_targets
    method = build_method(
        METHODS.config_of(name)(**TINY_METHOD.get(name, {})),
        backbone,
        None if target is None else TARGETS.config_of(target)(**TINY_TARGETS.get(target, {})),
        seed=0,
    )
    specs = [replace(spec, channels=channels) for spec in VIEWS.build(tiny_views(name)).specs(backbone.image_shape)]
    masks = cls.default_masks
    generators = {}
    if masks is not None:
        generators = build_generators(specs, MASKS.config_of(masks)(**TINY_MASKS.get(masks, {})), backbone)
    batch = Batch(
        {spec.name: torch.randn(4, channels, *spec.size, generator=generator_for(0, spec.name)) for spec in specs},
        {view: generator(4, generator_for(0, "masks", view)) for view, generator in generators.items()},
        torch.arange(4),
        normalize={spec.name: spec.normalize for spec in specs},
    )
    loss = method(batch, step_of(method)).loss
    loss.backward()
    assert loss.isfinite() and method.encoder.patch_embed.proj.weight.shape[1] == channels
    with torch.no_grad():
        shown = method.visualize(batch)
    pixels = [draw(figure, ["one", "two", "three", "four"]) for figure in shown.values()]
    assert pixels and all(image.shape[0] == 3 for image in pixels)
