"""Shared losses against slow statements of their formulas."""

import torch

from ssl_zoo.losses.regression import Distance, masked_mean
from ssl_zoo.losses.self_distillation import center_and_sharpen


def test_distances_equal_their_formulas() -> None:
    predictions, targets = torch.randn(5, 7), torch.randn(5, 7)
    difference = (predictions - targets).abs()
    smooth = torch.where(difference < 0.5, difference**2, difference - 0.25)  # 0.5 d^2 / beta, d - 0.5 beta
    torch.testing.assert_close(Distance.smooth_l1(predictions, targets, beta=0.5), smooth.mean())
    torch.testing.assert_close(Distance.l2(predictions, targets, beta=0.5), (difference**2).mean())


def test_a_masked_mean_is_over_the_masked_patches_of_the_batch_and_not_over_images() -> None:
    errors = torch.rand(3, 4, 2)
    masked = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    torch.testing.assert_close(masked_mean(errors, masked), errors[masked].mean())


def test_teacher_distributions_need_no_gradient_and_sharpen_with_the_temperature() -> None:
    outputs, center = torch.randn(6, 5, requires_grad=True), torch.randn(5)
    warm, cold = (center_and_sharpen(outputs, center, torch.tensor(t)) for t in (1.0, 0.05))
    torch.testing.assert_close(warm, (outputs - center).exp() / (outputs - center).exp().sum(-1, keepdim=True))
    assert not warm.requires_grad and (cold.max(-1).values > warm.max(-1).values).all()
