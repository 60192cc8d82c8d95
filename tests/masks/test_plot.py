"""Figures of masks show exactly the visible and the predicted patches."""

import torch

from ssl_zoo.masks import Masks, plot_masks


def on_two_by_two(patch: int) -> torch.Tensor:
    """Return True at the pixels of one patch of a 2x2 grid of 96x96 pixels."""
    cells = torch.zeros(4, dtype=torch.bool)
    cells[patch] = True
    return cells.reshape(2, 2).repeat_interleave(48, 0).repeat_interleave(48, 1)


def test_panels_are_image_contexts_and_targets_on_grey() -> None:
    image = torch.full((1, 3, 96, 96), 0.25)
    shown, *columns = plot_masks(image, Masks(torch.tensor([[[0]]]), torch.tensor([[[3], [1]]])), grid=(2, 2)).columns
    assert torch.equal(shown.images, image)
    titles = [f"{kind}, 25% of the patches" for kind in ("context", "target block 1", "target block 2")]
    assert [column.title for column in columns] == titles
    for column, patch in zip(columns, (0, 3, 1), strict=True):
        assert torch.equal(column.images[0, 0], torch.where(on_two_by_two(patch), 0.25, 0.5))


def test_masked_patches_are_grey_in_the_context_panel() -> None:
    image = torch.full((1, 3, 96, 96), 0.25)
    masked = torch.tensor([[True, True, False, True]])
    figure = plot_masks(image, Masks(torch.tensor([[[0]]]), torch.tensor([[[1]]]), masked=masked), grid=(2, 2))
    assert torch.equal(figure.columns[1].images[0, 0], torch.where(on_two_by_two(2), 0.25, 0.5))
