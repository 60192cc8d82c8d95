"""Visualizations of predicted features: a perfect prediction has the colours of its target."""

import pytest
import torch
from tiny_methods import tiny_batch, tiny_method

PANEL = 16 * 6  # enlarged six times, with gaps of two pixels


def panels(plot: torch.Tensor, row: int) -> list[torch.Tensor]:
    top = 2 + row * (PANEL + 2)
    return [plot[:, top : top + PANEL, 2 + i * (PANEL + 2) : (i + 1) * (PANEL + 2)] for i in range(5)]


@pytest.mark.parametrize("name", ["ijepa", "data2vec"])
def test_a_perfect_prediction_has_the_colours_of_the_target_and_full_agreement(name: str) -> None:
    method = tiny_method(name)
    batch = tiny_batch(method, name, num_images=2)
    masks = batch.masks["image"]
    perfect = method.target(batch, masks, method.encoder)
    plot = method.target.visualize(perfect, batch, masks, method.encoder)
    for row in range(2):
        _, _, features, predicted, agreement = panels(plot["features"], row)
        known = torch.zeros(16, dtype=torch.bool).index_fill(0, masks.targets[row].flatten(), True)
        shown = known.reshape(4, 4).repeat_interleave(24, 0).repeat_interleave(24, 1)
        assert torch.allclose(predicted[:, shown], features[:, shown], atol=1e-4)
        assert (predicted[:, ~shown] == 0.5).all() and (agreement[:, ~shown] == 0.5).all()
        yellow = agreement[:, shown].flatten(1)[:, 0]
        assert torch.allclose(agreement[:, shown], yellow[:, None], atol=1e-3) and yellow[0] > 0.9 > yellow[2]


def test_an_opposite_prediction_has_no_agreement() -> None:
    method = tiny_method("ijepa")
    batch = tiny_batch(method, "ijepa", num_images=1)
    masks = batch.masks["image"]
    opposite = -method.target(batch, masks, method.encoder)
    plot = method.target.visualize(opposite, batch, masks, method.encoder)
    *_, agreement = panels(plot["features"], 0)
    coloured = (agreement != 0.5).any(0)
    assert coloured.any() and (agreement[2, coloured] > agreement[1, coloured]).all()
