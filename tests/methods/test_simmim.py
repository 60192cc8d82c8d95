"""SimMIM against its formulas."""

import dataclasses

import pytest
import torch
from tiny_methods import TINY_BACKBONE, step_of, tiny_batch

from ssl_zoo.data.batch import Batch
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.nn import Initialization
from ssl_zoo.targets import PixelsConfig

PATCH = 4


def simmim() -> Method:
    backbone = dataclasses.replace(TINY_BACKBONE, initialization=Initialization.trunc_normal_scaled, class_token=True)
    return build_method(METHODS.config_of("simmim")(), backbone, PixelsConfig(normalize=False), seed=0)


@pytest.fixture
def batch() -> Batch:
    return tiny_batch(simmim(), "simmim")


def masked_pixels(batch: Batch) -> torch.Tensor:
    """The mask as an image, True = masked."""
    masked = batch.masks["image"].masked.unflatten(1, (4, 4))
    return masked.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, None]


def test_the_loss_of_predicting_zero_is_the_mean_size_of_the_masked_pixels(batch: Batch) -> None:
    method = simmim()
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    masked = masked_pixels(batch).expand(-1, 3, -1, -1)
    expected = batch.views["image"][masked].abs().mean()
    torch.testing.assert_close(method(batch, step_of(method)).loss, expected)


def predictions_of(method: Method, images: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    tokens = method.encoder(images, masked=masked, mask_token=method.mask_token)
    return method.head(method.encoder.patches(tokens))


def test_the_loss_knows_the_pixels_of_masked_patches_as_targets_alone(batch: Batch) -> None:
    method, images = simmim(), batch.views["image"]
    pixels, masked = masked_pixels(batch), batch.masks["image"].masked
    predictions = predictions_of(method, images, masked)
    other = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(predictions_of(method, other, masked), predictions)
    visible = torch.where(pixels, images, torch.randn_like(images))
    assert not torch.allclose(predictions_of(method, visible, masked)[masked], predictions[masked])


def test_the_loss_is_the_mean_over_masked_patches_alone(batch: Batch) -> None:
    method, masked = simmim(), batch.masks["image"].masked
    predictions = predictions_of(method, batch.views["image"], masked)
    targets = method.target(batch, batch.masks["image"].everywhere(16), method.encoder)[:, 0]
    torch.testing.assert_close(method(batch, step_of(method)).loss, (predictions - targets).abs()[masked].mean())


def test_reconstructions_are_plotted(batch: Batch) -> None:
    assert simmim().visualize(batch).keys() == {"masks", "reconstructions"}
