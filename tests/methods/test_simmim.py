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
    backbone = dataclasses.replace(TINY_BACKBONE, initialization=Initialization.beit, class_token=True)
    return build_method(METHODS.config_of("simmim")(), backbone, PixelsConfig(normalize=False), seed=0)


@pytest.fixture
def batch() -> Batch:
    return tiny_batch(simmim(), "simmim")


def hidden_pixels(batch: Batch) -> torch.Tensor:
    """The mask as an image, True = masked."""
    masked = batch.masks["image"].masked.unflatten(1, (4, 4))
    return masked.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, None]


def test_the_loss_of_predicting_zero_is_the_mean_size_of_the_hidden_pixels(batch: Batch) -> None:
    method = simmim()
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    masked = hidden_pixels(batch).expand(-1, 3, -1, -1)
    expected = batch.views["image"][masked].abs().mean()
    torch.testing.assert_close(method(batch, step_of(method)).loss, expected)


def test_the_loss_knows_the_pixels_of_hidden_patches_as_targets_alone(batch: Batch) -> None:
    method, images = simmim(), batch.views["image"]
    masked = hidden_pixels(batch)
    other = torch.where(masked, torch.randn_like(images), images)
    masks = batch.masks["image"].masked
    predictions = method.predict_all(images, masks)
    assert torch.equal(method.predict_all(other, masks), predictions)
    seen = torch.where(masked, images, torch.randn_like(images))
    assert not torch.allclose(method.predict_all(seen, masks)[masks], predictions[masks])


def test_what_is_predicted_at_visible_patches_enters_no_loss(batch: Batch) -> None:
    method = simmim()
    images = batch.views["image"].requires_grad_(True)
    predictions = method.predict_all(images, batch.masks["image"].masked)
    predictions.retain_grad()
    targets = method.target(images, batch.masks["image"].everywhere(16))[:, 0]
    masked = batch.masks["image"].masked
    ((method.errors(predictions, targets).mean(-1) * masked).sum() / masked.sum()).backward()
    torch.testing.assert_close(method(batch, step_of(method)).loss, (predictions - targets).abs()[masked].mean())
    assert predictions.grad[~masked].eq(0).all() and predictions.grad[masked].ne(0).all()


def test_reconstructions_are_drawn(batch: Batch) -> None:
    assert simmim().visualize(batch).keys() == {"masks", "reconstructions"}
