"""Views are rendered as torchvision would, from random numbers that are sampled for the full batch."""

import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from ssl_zoo.data.batch import Normalize, ViewConfig, ViewSpec
from ssl_zoo.data.resample import resize_crops
from ssl_zoo.data.transforms import crop_boxes, evaluation_view, render_each, render_equal, sample_params


def _photograph(height, width, seed=0):
    noise = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0]
    return (smooth.clamp(0, 1) * 255).to(torch.uint8)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _params(config, num_images=64, seed=0):
    return sample_params(config, num_images, _generator(seed))


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (500, 120)])
def test_crop_boxes_are_distributed_as_those_of_torchvision(size):
    num_images = 4000
    config = ViewConfig(crop_scale=[0.2, 1.0])
    heights, widths = torch.full((num_images,), size[0]), torch.full((num_images,), size[1])
    ours = crop_boxes(_params(config, num_images), heights, widths, config)
    torch.manual_seed(1)
    crop = v2.RandomResizedCrop(224, scale=(0.2, 1.0))
    image = torch.empty(3, *size)
    sampled = [crop.make_params([image]) for _ in range(num_images)]
    theirs = torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in sampled])
    for coordinate in range(4):
        assert ks_2samp(ours[:, coordinate], theirs[:, coordinate]).pvalue > 1e-3
    products = ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]
    assert ks_2samp(*products).pvalue > 1e-3


def test_crop_boxes_lie_inside_every_image():
    config = ViewConfig(crop_scale=[0.05, 1.0])
    heights, widths = torch.randint(8, 600, (2, 5000), generator=_generator())
    boxes = crop_boxes(_params(config, 5000), heights, widths, config)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= heights).all() and (boxes[:, 1] + boxes[:, 3] <= widths).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (20, 48)])
def test_crops_of_a_stack_equal_torchvisions_antialiased_resize(interpolation, size):
    images = torch.stack([_photograph(32, 40, seed) for seed in range(6)])
    boxes = torch.tensor(
        [[0, 0, 32, 40], [3, 4, 20, 25], [5, 30, 9, 8], [0, 10, 30, 30], [31, 39, 1, 1], [2, 2, 28, 5]]
    )
    flipped = torch.tensor([False, True, False, True, False, True])
    ours = resize_crops(images, boxes, flipped, size, interpolation)
    for image, box, mirrored, result in zip(images, boxes.tolist(), flipped, ours, strict=True):
        reference = TF.resized_crop(
            image, *box, list(size), interpolation=TF.InterpolationMode(interpolation), antialias=True
        )
        reference = reference.flip(2) if mirrored else reference
        difference = (result.int() - reference.int()).abs().float()
        assert (
            difference.max() <= 3 and difference.mean() < 0.5
        )  # torch has 8-bit weights and rounds after each direction


def test_stack_and_single_photographs_are_rendered_alike():
    config = ViewConfig(crop_scale=[0.3, 1.0], horizontal_flip=0.5, color_jitter=[0.4, 0.4, 0.2, 0.1], grayscale=0.2)
    spec = ViewSpec("view", (24, 24), config)
    images = torch.stack([_photograph(32, 40, seed) for seed in range(16)])
    stacked = render_equal(images, _params(config, 16), spec)
    single = render_each(list(images), _params(config, 16), spec)
    difference = (stacked.int() - single.int()).abs()
    assert difference.float().mean() < 0.5 and difference.max() <= 8  # rounding before the colours is amplified by them


def test_whole_image_views_show_the_largest_centred_crop():
    spec = ViewSpec("view", (16, 16), ViewConfig())
    image = torch.zeros(3, 16, 32, dtype=torch.uint8)
    image[:, :, 8:24] = 200
    assert (render_each([image], _params(spec.config, 1), spec) == 200).all()


def test_an_image_of_the_views_size_stays_as_it_is():
    images = torch.stack([_photograph(32, 32, seed) for seed in range(3)])
    spec = ViewSpec("view", (32, 32), ViewConfig())
    assert torch.equal(render_equal(images, _params(spec.config, 3), spec), images)


def test_frequencies_of_the_augmentations():
    config = ViewConfig(
        horizontal_flip=0.5, color_jitter=[0.4, 0.4, 0.2, 0.1], color_jitter_probability=0.8, grayscale=0.2, blur=0.1,
        solarize=0.2,
    )  # fmt: skip
    params = _params(config, 20_000)
    expected = {"flipped": 0.5, "jittered": 0.8, "grayscale": 0.2, "blurred": 0.1, "solarized": 0.2}
    for name, probability in expected.items():
        assert getattr(params, name).float().mean().item() == pytest.approx(probability, abs=0.015), name
    assert params.jitter.amin(0).tolist() == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=1e-2)
    assert params.jitter.amax(0).tolist() == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=1e-2)
    orders = {tuple(order) for order in params.jitter_order.tolist()}
    assert len(orders) == 24


def test_switching_one_augmentation_on_leaves_the_random_numbers_of_the_others():
    plain, blurred = _params(ViewConfig(crop_scale=[0.2, 1.0])), _params(ViewConfig(crop_scale=[0.2, 1.0], blur=0.5))
    assert torch.equal(plain.crop_area, blurred.crop_area) and torch.equal(plain.crop_place, blurred.crop_place)
    assert blurred.blurred.any() and not plain.blurred.any()


@pytest.mark.parametrize(
    ("setting", "check"),
    [
        ({"grayscale": 1.0}, lambda view, image: torch.equal(view[0], view[1]) and torch.equal(view[1], view[2])),
        ({"solarize": 1.0}, lambda view, image: torch.equal(view, torch.where(image >= 128, 255 - image, image))),
        ({"horizontal_flip": 1.0}, lambda view, image: torch.equal(view, image.flip(2))),
        (
            {"blur": 1.0},
            lambda view, image: view.float().diff(dim=2).abs().sum() < image.float().diff(dim=2).abs().sum(),
        ),
    ],
)
def test_each_augmentation_does_what_its_name_says(setting, check):
    spec = ViewSpec("view", (32, 32), ViewConfig(**setting))
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=_generator())
    assert check(render_equal(image[None], _params(spec.config, 1), spec)[0], image)


def test_evaluation_keeps_the_middle_of_a_photograph():
    image = torch.zeros(3, 256, 400, dtype=torch.uint8)
    image[:, 16:240, 88:312] = 100
    assert (evaluation_view(image, (224, 224)) == 100).all()


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (64, 48), (96, 96)])
def test_evaluation_views_of_a_stack_are_those_of_its_images(size):
    images = torch.stack([_photograph(64, 48, seed) for seed in range(3)])
    assert torch.equal(evaluation_view(images, size), torch.stack([evaluation_view(image, size) for image in images]))


def test_evaluation_leaves_an_image_of_its_size_alone():
    image = _photograph(32, 32)
    assert torch.equal(evaluation_view(image, (32, 32)), image)


def test_evaluation_shows_the_whole_of_a_small_image():
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :2] = 255
    assert (evaluation_view(image, (64, 64))[:, :3] > 200).all()


def test_normalisation_is_torchvisions():
    view = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=_generator())
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    expected = TF.normalize(view.float() / 255, list(mean), list(std))
    torch.testing.assert_close(Normalize(mean, std)(view), expected)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ({"crop_scale": [0.5, 0.2]}, "views.crop_scale"),
        ({"crop_aspect": [1.0]}, "views.crop_aspect"),
        ({"interpolation": "cubic"}, "views.interpolation"),
        ({"blur": 1.5}, "views.blur"),
        ({"color_jitter": [0.4]}, "views.color_jitter"),
        ({"std": [0.0, 1.0, 1.0]}, "views.std"),
    ],
)
def test_an_impossible_view_names_its_key(setting, key):
    with pytest.raises(ValueError, match=key):
        ViewConfig(**setting)
