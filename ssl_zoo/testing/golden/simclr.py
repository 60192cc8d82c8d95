"""Golden fixtures of SimCLR's loss (google-research/simclr, ``tf2/objective.py``), recomputed by ours."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.losses.info_nce import cosine_logits, nt_xent_logits
from ssl_zoo.testing.golden.fixture import FEATURES, GRADIENTS, LOSSES, Comparison, Finding, Fixture, FixtureError
from ssl_zoo.world import World


def recognises(fixture: Fixture) -> bool:
    return str(fixture.config.get("method", "")).startswith("SimCLR")


def verify(fixture: Fixture) -> list[Finding]:
    """Recompute the loss, its logits and its gradients at every temperature."""
    temperatures = fixture.config.get("temperatures")
    if not isinstance(temperatures, list) or not all(isinstance(t, (int, float)) and t > 0 for t in temperatures):
        raise FixtureError(f"{fixture.path}: config.temperatures={temperatures!r} must be a list of positive numbers")
    features = [fixture.tensor(f"features.{view}") for view in (0, 1)]
    shape = (fixture.count("batch"), fixture.count("dim"))
    for view, tensor in enumerate(features):
        if tensor.shape != shape or not tensor.is_floating_point():
            raise FixtureError(
                f"{fixture.path}: features.{view} is {list(tensor.shape)} of {tensor.dtype}, needs {list(shape)} floats"
            )
    comparison = Comparison(fixture)
    for number, temperature in enumerate(temperatures):
        _compare(comparison, f"temperature.{number}", features, temperature)
    return comparison.findings()


def _compare(comparison: Comparison, name: str, features: list[Tensor], temperature: float) -> None:
    first, second = (tensor.clone().requires_grad_() for tensor in features)
    loss = F.cross_entropy(*nt_xent_logits(first, second, temperature, World()))
    doubled = 2 * loss  # the reference adds the means of both directions
    doubled.backward()
    with torch.no_grad():
        comparison.add(f"{name}.logits_ab", cosine_logits(first, second, temperature), FEATURES)
    comparison.add(f"{name}.loss", doubled, LOSSES)
    comparison.add(f"{name}.loss_mean_over_2B", loss, LOSSES)
    for view, tensor in enumerate((first, second)):
        comparison.add(f"{name}.grad.{view}", tensor.grad, GRADIENTS, quantity=f"{name}.grad")
