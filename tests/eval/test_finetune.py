from dataclasses import replace

import pytest
import torch
from tiny_probes import encoder, probe

from ssl_zoo.eval.augment import random_crops
from ssl_zoo.eval.drop_path import SharedDropPath, set_drop_path
from ssl_zoo.eval.finetune import Classifier, FinetuneConfig, finetune, layer_groups

QUICK = {"epochs": 6, "warmup_epochs": 1.0, "batch_size": 24, "lr": 0.02, "layer_decay": 0.9}


def classifier(**settings) -> Classifier:
    return Classifier(encoder(), FinetuneConfig(**settings), num_classes=4).requires_grad_(True)


def test_the_learning_rate_shrinks_from_the_head_to_the_patches():
    net = classifier()
    groups = layer_groups(net, FinetuneConfig(layer_decay=0.5), lr=1.0)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(net.parameters()))
    assert rates[id(net.head.weight)] == rates[id(net.encoder.norm.weight)] == 1.0
    assert rates[id(net.encoder.blocks[1].mlp.fc1.weight)] == 0.5
    assert rates[id(net.encoder.blocks[0].mlp.fc1.weight)] == 0.25
    assert rates[id(net.encoder.patch_embed.proj.weight)] == rates[id(net.encoder.pos_embed)] == 0.125


def test_vectors_do_not_decay():
    for group in layer_groups(classifier(), FinetuneConfig(weight_decay=0.1), 1.0):
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_drop_path_grows_linearly_to_its_rate():
    net = encoder()
    decisions = set_drop_path(net, 0.3)
    assert isinstance(net.blocks[0].drop_path1, torch.nn.Identity)
    assert isinstance(net.blocks[1].drop_path2, SharedDropPath) and decisions.rates == [0.3, 0.3]
    assert 0.65 < decisions.sample(0, step=0, batch_size=1000)[1].float().mean() < 0.75


def test_it_trains_a_copy_and_leaves_encoder_and_random_state_unchanged():
    net = encoder()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    finetune = FinetuneConfig(**QUICK, mixup=0.0, cutmix=0.0, crop_scale=[0.9, 1.0])
    first, second = (probe(train_samples=0, evaluators=["finetune"], finetune=finetune)(net)[0] for _ in range(2))
    assert first == second and first.value > 0.5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("setting", [{"mixup": 1.0}, {"cutmix": 1.0}, {"label_smoothing": 0.5}, {"drop_path": 0.5}])
def test_every_regularisation_changes_the_trained_weights(setting):
    heads = []
    for extra in ({}, setting):
        plain = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "drop_path": 0.0}
        config = FinetuneConfig(**{**QUICK, **plain, **extra})
        torch.manual_seed(0)
        net = Classifier(encoder(), config, num_classes=4).requires_grad_(True)
        finetune(net, probe().evaluated_model(net.encoder), replace(config, epochs=1), {})
        heads.append(net.head.weight.detach())
    assert not torch.allclose(*heads)


def test_random_crops_lie_within_the_image_and_are_flipped_at_random():
    gradient = torch.linspace(0, 1, 33)[:-1] + 1 / 64
    images = gradient.expand(500, 3, 32, 32).contiguous()
    crops = random_crops(images, [0.25, 0.25], torch.rand(500, 4, generator=torch.Generator().manual_seed(0)))
    low, high = crops[:, 0, 0].amin(1), crops[:, 0, 0].amax(1)
    assert crops.min() >= 0 and crops.max() <= 1
    assert torch.allclose(high - low, torch.full((500,), 15.5 / 32), atol=0.02)  # half the side
    flipped = crops[:, 0, 0, 0] > crops[:, 0, 0, -1]
    assert 0.4 < flipped.float().mean() < 0.6
    assert low.min() < 0.03 and low.max() > 0.47


def test_full_size_crops_are_the_images_or_their_mirror_images():
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    crops = random_crops(images, [1.0, 1.0], torch.rand(64, 4, generator=torch.Generator().manual_seed(1)))
    same = (crops - images).flatten(1).abs().amax(1) < 1e-5
    mirrored = (crops - images.flip(-1)).flatten(1).abs().amax(1) < 1e-5
    assert (same ^ mirrored).all() and same.any() and mirrored.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_decay": 0.0}, r"probe\.finetune\.layer_decay=0\.0 must be above 0 and at most 1"),
        ({"crop_scale": [0.5, 2.0]}, r"crop_scale=\[0\.5, 2\.0\] must be 2 values, each above 0 and at most 1"),
        ({"crop_scale": [0.5, 0.2]}, r"crop_scale=\[0\.5, 0\.2\].*low <= high"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
    ],
)
def test_invalid_settings_name_their_key(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**settings)


def test_images_of_one_class_are_refused():
    with pytest.raises(ValueError, match="finetune can't run: all 1 train images are of one class"):
        probe(train_samples=1, evaluators=["finetune"], finetune=FinetuneConfig(**QUICK))
