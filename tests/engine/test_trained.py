"""Trained methods at another size of images."""

from dataclasses import replace

import pytest
import torch
from tiny_methods import TINY_BACKBONE, TINY_METHOD, TINY_TARGETS, tiny_method
from torch import nn

from ssl_zoo.engine.checkpoint.state import CheckpointError
from ssl_zoo.engine.trained import encoders, load_resized
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.targets import TARGETS


def tiny_method_at(name: str, image_size: int, image_width: int) -> Method:
    target = METHODS.get(name).default_targets
    target_config = None if target is None else TARGETS.config_of(target)(**TINY_TARGETS.get(target, {}))
    backbone = replace(TINY_BACKBONE, image_size=image_size, image_width=image_width)
    return build_method(METHODS.config_of(name)(**TINY_METHOD.get(name, {})), backbone, target_config, seed=1)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_network_of_a_method_is_loaded_at_another_size(name: str) -> None:
    trained, method = tiny_method(name).eval(), tiny_method_at(name, 24, 20).eval()
    assert load_resized(trained, method) == []
    images = torch.randn(2, 3, 24, 20)
    for part, encoder in encoders(method).items():
        torch.testing.assert_close(encoder(images), encoders(trained)[part](images))
    initial = tiny_method_at(name, 24, 20).state_dict()
    for key, tensor in method.state_dict().items():
        same_shape = tensor.shape == trained.state_dict()[key].shape
        assert torch.equal(tensor, trained.state_dict()[key] if same_shape else initial[key]), key


def test_tensors_that_cannot_be_resized_are_listed_outside_of_encoders_and_refused_in_them() -> None:
    trained, method = tiny_method("mae"), tiny_method_at("mae", 24, 20)
    for network, rows in ((trained, 16), (method, 30)):
        network.extra = nn.Embedding(rows, 4)
    assert load_resized(trained, method) == ["extra.weight"]
    for network, rows in ((trained, 16), (method, 30)):
        network.encoder.extra = nn.Embedding(rows, 4)
    with pytest.raises(CheckpointError, match=r"encoder\.extra\.weight.*backbone\.image_size"):
        load_resized(trained, method)
