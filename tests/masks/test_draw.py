"""Pictures of masks show exactly what is seen and what is predicted."""

import torch

from ssl_zoo.masks import Masks, draw_masks
from ssl_zoo.masks.draw import pixel_mask


def test_a_pixel_mask_covers_the_pixels_of_its_patches() -> None:
    mask = pixel_mask(torch.tensor([0, 5]), grid=(2, 3), size=(4, 12))
    expected = torch.zeros(4, 12, dtype=torch.bool)
    expected[:2, :4] = True
    expected[2:, 8:] = True
    assert torch.equal(mask, expected)


def test_panels_are_image_contexts_and_targets_on_grey() -> None:
    image = torch.full((1, 3, 96, 96), 0.25)
    picture = draw_masks(image, Masks(torch.tensor([[[0]]]), torch.tensor([[[3], [1]]])), grid=(2, 2))
    assert picture.shape == (3, 100, 4 * 98 + 2)
    panels = [picture[0, 2:98, 2 + 98 * i : 98 + 98 * i] for i in range(4)]
    assert torch.equal(panels[0], image[0, 0])
    for panel, patch in zip(panels[1:], (0, 3, 1), strict=True):
        visible = pixel_mask(torch.tensor([patch]), (2, 2), (96, 96))
        assert torch.equal(panel, torch.where(visible, 0.25, 0.5))


def test_hidden_patches_are_what_the_encoder_does_not_see() -> None:
    image = torch.full((1, 3, 96, 96), 0.25)
    hidden = torch.tensor([[True, True, False, True]])
    picture = draw_masks(image, Masks(torch.tensor([[[0]]]), torch.tensor([[[1]]]), hidden=hidden), grid=(2, 2))
    seen = picture[0, 2:98, 100:196]
    assert torch.equal(seen, torch.where(pixel_mask(torch.tensor([2]), (2, 2), (96, 96)), 0.25, 0.5))
