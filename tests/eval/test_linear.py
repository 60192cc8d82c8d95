import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_probes import encoder, probe

from ssl_zoo.eval.features import Features, Pooling
from ssl_zoo.eval.linear import LARS_TRUST, CachedHeads, LinearConfig, Optimizer, Schedule, fit
from ssl_zoo.eval.logistic import Preprocessing, preprocessed


def toy(num_images: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (num_images,), generator=generator)
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(99))
    values = 0.6 * centres[classes] + torch.randn(num_images, 12, generator=generator)
    return Features(values * torch.logspace(-1, 1, 12), classes, torch.arange(num_images))


def test_trained_to_its_optimum_it_predicts_what_scikit_learn_does():
    train, test = toy(400, seed=0), toy(1000, seed=1)
    decay = 0.005
    config = LinearConfig(epochs=3000, batch_size=400, lrs=[0.5])
    [predicted] = CachedHeads(train, [(0.5, decay)], config).predict(test)
    values = preprocessed(train.values.double(), test.values.double(), Preprocessing.standardize)
    reference = LogisticRegression(C=1 / (decay * 400), tol=1e-8, max_iter=10_000)
    reference.fit(values[0].numpy(), train.labels.numpy())
    assert torch.equal(predicted, torch.from_numpy(reference.predict(values[1].numpy())))
    assert 0.6 < (predicted == test.labels).double().mean() < 1


@pytest.mark.parametrize("optimizer", Optimizer)
def test_a_grid_equals_separate_trainings(optimizer):
    train = toy(300, seed=0)
    config = LinearConfig(epochs=3, batch_size=64, optimizer=optimizer, schedule=Schedule.step)
    rates = [(0.01, 0.0), (0.3, 0.0), (0.1, 0.01)]
    weights, bias = fit(train.values, train.labels, rates, config)
    for head, rate in enumerate(rates):
        [alone], [alone_bias] = fit(train.values, train.labels, [rate], config)
        assert torch.allclose(weights[head], alone, atol=1e-5) and torch.allclose(bias[head], alone_bias, atol=1e-5)


@pytest.mark.parametrize("optimizer", Optimizer)
def test_one_step_is_that_of_autograd_with_its_scaling(optimizer):
    train = toy(128, seed=0)
    config = LinearConfig(epochs=1, batch_size=128, optimizer=optimizer)
    rate, decay = 0.2, 0.01
    start, _ = fit(train.values, train.labels, [(1e-20, 0.0)], config)
    weights = start[0].clone().requires_grad_(True)
    bias = torch.zeros(4, requires_grad=True)
    torch.nn.functional.cross_entropy(train.values @ weights + bias, train.labels).backward()
    gradient = weights.grad + decay * weights.detach()
    if optimizer is Optimizer.lars:
        gradient = gradient * LARS_TRUST * weights.detach().norm() / gradient.norm()
    scaled = rate * 128 / 256
    [trained], [trained_bias] = fit(train.values, train.labels, [(rate, decay)], config)
    assert torch.allclose(trained, weights.detach() - scaled * gradient, atol=1e-5)
    assert torch.allclose(trained_bias, -scaled * bias.grad, atol=1e-6)


def test_settings_are_chosen_on_held_out_train_images_and_recorded():
    linear = LinearConfig(epochs=20, batch_size=32, lrs=[1e-6, 0.3], layer_counts=[1, 2])
    [score] = probe(train_samples=0, evaluators=["linear"], linear=linear)(encoder())
    assert score.details["chosen"]["lr"] == 0.3
    assert score.details["chosen"]["num_layers"] in (1, 2)
    assert 0 <= score.details["validation_accuracy"] <= 1
    assert score.protocol["lrs"] == [1e-6, 0.3]


def test_a_score_repeats_and_does_not_use_the_global_random_state():
    state = torch.get_rng_state()
    linear = LinearConfig(epochs=2, lrs=[0.1])
    first, second = (probe(evaluators=["linear"], linear=linear)(encoder()) for _ in range(2))
    assert first == second and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrs": []}, r"probe\.linear\.lrs=\[\]"),
        ({"weight_decays": [-1.0]}, r"probe\.linear\.weight_decays"),
        ({"validation_fraction": 1.0}, r"probe\.linear\.validation_fraction=1\.0"),
        ({"layer_counts": [0]}, r"probe\.linear\.layer_counts=\[0\]"),
        ({"epochs": 0}, r"probe\.linear\.epochs=0"),
    ],
)
def test_invalid_settings_name_their_key(settings, message):
    with pytest.raises(ValueError, match=message):
        LinearConfig(**settings)


def test_a_linear_probe_refuses_tokens():
    with pytest.raises(ValueError, match="one vector per image"):
        probe(evaluators=["linear"], linear=LinearConfig(pooling=Pooling.tokens))(encoder())
