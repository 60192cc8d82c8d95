"""Colour operations on batches against torchvision's on single images."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from ssl_zoo.data import photometric
from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.transforms import render_equal, sample_params

NUM_IMAGES = 12


def sample_images(size: int = 32) -> torch.Tensor:
    """Smooth colours with grain, and images of one colour, of greys and of extreme values."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(NUM_IMAGES, 3, 4, 4, generator=generator) * 255
    smooth = F.interpolate(coarse, (size, size), mode="bilinear")
    images = (smooth + 8 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    images[0] = torch.tensor([200, 20, 90])[:, None, None]
    images[1] = images[1, :1]
    images[2] = torch.where(images[2] > 128, 255, 0)
    return images


def strengths(low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, NUM_IMAGES)


def blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    return TF.gaussian_blur(image, [13, 13], [sigma])


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (photometric.brightness, TF.adjust_brightness, strengths(0.2, 1.8)),
        (photometric.contrast, TF.adjust_contrast, strengths(0.2, 1.8)),
        (photometric.saturation, TF.adjust_saturation, strengths(0.0, 1.8)),
        (photometric.hue, TF.adjust_hue, strengths(-0.5, 0.5)),
        (photometric.blur, blurred, strengths(0.1, 2.0)),
    ],
)
def test_each_image_is_changed_by_its_own_strength_as_torchvision_does(
    ours: Callable, theirs: Callable, values: torch.Tensor
) -> None:
    images = sample_images()
    expected = torch.stack([theirs(image, value) for image, value in zip(images, values.tolist(), strict=True)])
    difference = (ours(images, values).int() - expected.int()).abs()
    # Sums in another order, and rounding to integers.
    assert difference.max() <= 1 and (difference > 0).float().mean() < 3e-3


def test_greys_and_inversions_are_torchvisions() -> None:
    images = sample_images()
    assert torch.equal(photometric.grayscale(images), TF.rgb_to_grayscale(images, num_output_channels=3))
    assert torch.equal(photometric.solarize(images), TF.solarize(images, 128))


@pytest.mark.parametrize("size", [(32, 32), (160, 224)])
@pytest.mark.parametrize("num_images", [1, 3, 10])
def test_an_image_is_changed_alike_whatever_stands_beside_it(num_images: int, size: tuple[int, int]) -> None:
    config = ViewConfig(
        color_jitter=[0.8, 0.8, 0.8, 0.2], color_jitter_probability=0.8, grayscale=0.2, blur=0.5, solarize=0.2
    )
    spec = ViewSpec("image", size, config)
    images = sample_images().repeat(4, 1, 1, 1)
    params = sample_params(config, len(images), torch.Generator().manual_seed(1))
    together = render_equal(images, params, spec)
    parts = [slice(start, start + num_images) for start in range(0, len(images), num_images)]
    apart = torch.cat([render_equal(images[part], params.rows(part), spec) for part in parts])
    assert torch.equal(together, apart)


def test_the_parts_of_the_jitter_follow_each_images_order() -> None:
    config = ViewConfig(color_jitter=[0.8, 0.8, 0.8, 0.2], color_jitter_probability=1.0)
    params = sample_params(config, NUM_IMAGES, torch.Generator().manual_seed(2))
    images = sample_images()
    operations = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    expected = images.clone()
    for row in range(NUM_IMAGES):
        for part in params.jitter_order[row].tolist():
            expected[row] = operations[part](expected[row], float(params.jitter[row, part]))
    rendered = render_equal(images, params, ViewSpec("image", (32, 32), config))
    difference = (rendered.int() - expected.int()).abs().float()
    assert len({tuple(order) for order in params.jitter_order.tolist()}) > 4
    assert difference.mean() < 0.02 and difference.quantile(0.999) <= 4  # what rounding becomes by later parts
