import pytest
import torch

from ssl_zoo.data.corruptions import CORRUPTIONS, Corruption, CorruptionsConfig
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.scenes import ScenesConfig


@pytest.fixture(scope="module")
def source():
    return SOURCES.build(ScenesConfig(image_size=48, num_train=12), Split.train)


INDEX = torch.arange(12)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_changes_images_more_than_the_one_before(source, name):
    images = source.images(INDEX)
    errors = [(Corruption(name, level)(images, INDEX).float() - images).square().mean().item() for level in range(1, 6)]
    assert errors[0] > 0 and errors == sorted(set(errors))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_image_is_a_function_of_its_id_whatever_the_batch(source, name):
    images, state = source.images(INDEX), torch.get_rng_state()
    together = Corruption(name, 3)(images, INDEX)
    assert torch.equal(Corruption(name, 3)(images[5:6], INDEX[5:6])[0], together[5])
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(images, source.images(INDEX))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur"])
def test_random_corruptions_differ_between_images_and_seeds(source, name):
    same = source.images(INDEX[:1]).expand(2, -1, -1, -1)
    first, second = Corruption(name, 4)(same, torch.tensor([0, 1]))
    assert not torch.equal(first, second)
    assert not torch.equal(Corruption(name, 4, seed=1)(same, torch.tensor([0, 1]))[0], first)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_images_of_other_channels_and_sizes_are_corrupted_too(name, channels):
    images = torch.randint(256, (2, channels, 20, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    corrupted = Corruption(name, 5)(images, torch.arange(2))
    assert corrupted.shape == images.shape and corrupted.dtype == torch.uint8 and not torch.equal(corrupted, images)


def test_blurs_keep_the_brightness_of_a_plain_image():
    plain = torch.full((1, 3, 40, 40), 130, dtype=torch.uint8)
    for name in ("defocus_blur", "gaussian_blur", "motion_blur", "pixelate", "contrast"):
        assert torch.equal(Corruption(name, 5)(plain, torch.tensor([0])), plain)


def test_a_blur_is_the_convolution_with_its_kernel():
    image = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    image[..., 20, 20] = 255
    blurred = Corruption("gaussian_blur", 5)(image, torch.tensor([0]))[0, 0].float() / 255
    sigma = 6 * (41 / 224) ** (2 / 3)
    line = torch.exp(-0.5 * ((torch.arange(41) - 20.0) / sigma).square())
    assert torch.allclose(blurred, line[:, None] * line / line.sum() ** 2, atol=0.6 / 255)


def test_noise_has_the_strength_of_imagenet_c():
    grey = torch.full((1, 3, 128, 128), 128, dtype=torch.uint8)
    values = {name: Corruption(name, 1)(grey, torch.tensor([0])).float() / 255 for name in CORRUPTIONS[:3]}
    assert values["gaussian_noise"].std().item() == pytest.approx(0.08, rel=0.02)
    assert values["shot_noise"].std().item() == pytest.approx((0.5 / 60) ** 0.5, rel=0.03)
    assert (values["impulse_noise"] != 128 / 255).float().mean().item() == pytest.approx(0.03, rel=0.1)


def test_the_transform_of_evaluation_data_gets_images_of_the_evaluated_size_with_their_ids(source):
    corruption = Corruption("gaussian_noise", 2)
    settings = {"size": (32, 32), "mean": [0.0] * 3, "std": [1 / 255] * 3, "batch_size": 5}
    clean = torch.cat([images for images, _, _ in EvaluationData(source, INDEX[3:], **settings)])
    corrupted = [images for images, _, _ in EvaluationData(source, INDEX[3:], transform=corruption, **settings)]
    assert torch.equal(torch.cat(corrupted), corruption(clean.to(torch.uint8), INDEX[3:]).float())


def test_wrong_settings_name_the_key_and_the_permitted_values():
    with pytest.raises(ValueError, match=r"probe\.corruptions\.names=\[fog\] must be one of gaussian_noise, .*all"):
        CorruptionsConfig(names=["fog"])
    with pytest.raises(ValueError, match=r"probe\.corruptions\.severities=\[6\] must be at least 1 and at most 5"):
        CorruptionsConfig(severities=[6])
    with pytest.raises(ValueError, match=r"names=\['jpeg', 'jpeg'\] has an entry twice"):
        CorruptionsConfig(names=["jpeg", "jpeg"])
    assert CorruptionsConfig(names=["all"]).chosen == CORRUPTIONS
