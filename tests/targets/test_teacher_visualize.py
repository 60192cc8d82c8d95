"""Visualizations of predicted features: a perfect prediction has the colours of its target."""

import pytest
import torch
from tiny_methods import tiny_batch, tiny_method

from ssl_zoo.plotting import BLANK


@pytest.mark.parametrize("name", ["ijepa", "data2vec"])
def test_a_perfect_prediction_has_the_colours_of_the_target_and_full_agreement(name: str) -> None:
    method = tiny_method(name)
    batch = tiny_batch(method, name, num_images=2)
    masks = batch.masks["image"]
    perfect = method.target(batch, masks, method.encoder)
    plot = method.target.visualize(perfect, batch, masks, method.encoder)
    for row in range(2):
        features, predicted, agreement = (column.images[row] for column in plot["features"].columns[2:])
        known = torch.zeros(16, dtype=torch.bool).index_fill(0, masks.targets[row].flatten(), True)
        shown = known.reshape(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert torch.allclose(predicted[:, shown], features[:, shown], atol=1e-4)
        assert (predicted[:, ~shown] == BLANK).all() and (agreement[:, ~shown] == BLANK).all()
        yellow = agreement[:, shown].flatten(1)[:, 0]
        assert torch.allclose(agreement[:, shown], yellow[:, None], atol=1e-3) and yellow[0] > 0.9 > yellow[2]


def test_an_opposite_prediction_has_no_agreement() -> None:
    method = tiny_method("ijepa")
    batch = tiny_batch(method, "ijepa", num_images=1)
    masks = batch.masks["image"]
    opposite = -method.target(batch, masks, method.encoder)
    plot = method.target.visualize(opposite, batch, masks, method.encoder)
    agreement = plot["features"].columns[-1].images[0]
    coloured = (agreement != BLANK).any(0)
    assert coloured.any() and (agreement[2, coloured] > agreement[1, coloured]).all()
