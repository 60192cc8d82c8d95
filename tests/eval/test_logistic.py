import logging

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ssl_zoo.eval.features import Features
from ssl_zoo.eval.logistic import LogisticConfig, Preprocessing, Transform, fit, logistic_predictions, preprocessed
from ssl_zoo.eval.shards import as_shard


def toy(num_images: int, seed: int, labels: list[int] | None = None) -> Features:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (num_images,), generator=generator)
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(99))
    values = 0.6 * centres[classes] + torch.randn(num_images, 12, generator=generator)
    values = values * torch.logspace(-1, 1, 12) + torch.linspace(-3, 3, 12)
    return Features(values, classes if labels is None else torch.tensor(labels)[classes], torch.arange(num_images))


@pytest.mark.parametrize(("regularization", "intercept"), [(1.0, True), (0.05, True), (20.0, False)])
def test_the_optimum_equals_that_of_scikit_learn(regularization, intercept):
    train = toy(300, seed=0)
    values, _ = preprocessed(train.values.double(), train.values.double(), Preprocessing.standardize)
    config = LogisticConfig(regularization=regularization, intercept=intercept, tolerance=1e-9)
    shard = as_shard(train, batch_size=70)
    transform = Transform.of(shard, config.preprocessing, torch.device("cpu"))
    weights, offsets = fit(shard, transform, config)
    # scikit-learn's L-BFGS stops about 1e-5 before the optimum at any tolerance; its Newton solver does not.
    reference = LogisticRegression(
        C=1 / regularization, fit_intercept=intercept, solver="newton-cg", tol=1e-10, max_iter=10_000
    )
    reference.fit(values.numpy(), train.labels.numpy())
    assert torch.allclose(weights.T, torch.from_numpy(reference.coef_), atol=1e-6, rtol=0)
    difference = offsets - torch.from_numpy(reference.intercept_)  # the softmax leaves a common offset undetermined
    assert torch.allclose(difference - difference.mean(), torch.zeros(4).double(), atol=1e-6, rtol=0)


def test_predictions_equal_scikit_learn_with_default_settings():
    train, test = toy(400, seed=0), toy(1000, seed=1)
    values = preprocessed(train.values.double(), test.values.double(), Preprocessing.standardize)
    reference = LogisticRegression(tol=1e-8, max_iter=10_000).fit(values[0].numpy(), train.labels.numpy())
    predicted = logistic_predictions(train, test, LogisticConfig())
    assert torch.equal(predicted, torch.from_numpy(reference.predict(values[1].numpy())))
    assert 0.6 < (predicted == test.labels).double().mean() < 1


def test_a_class_without_train_images_is_never_predicted():
    train, test = toy(200, seed=0, labels=[1, 2, 5, 7]), toy(200, seed=1)
    assert set(logistic_predictions(train, test, LogisticConfig()).tolist()) == {1, 2, 5, 7}


def test_centring_rows_is_not_standardising_columns():
    values = toy(50, seed=0).values.double()
    rows, _ = preprocessed(values, values, Preprocessing.centered_unit_length)
    columns, _ = preprocessed(values, values, Preprocessing.standardize)
    assert torch.allclose(rows.mean(dim=1), torch.zeros(50).double())
    assert torch.allclose(rows.norm(dim=1), torch.ones(50).double())
    assert torch.allclose(columns.mean(dim=0), torch.zeros(12).double())
    assert torch.allclose(columns.std(dim=0, correction=0), torch.ones(12).double())


def test_test_images_have_no_influence_on_preprocessing():
    train, test = toy(50, seed=0).values.double(), toy(50, seed=1).values.double()
    alone, _ = preprocessed(train, test[:1], Preprocessing.standardize)
    _, one = preprocessed(train, test[:1], Preprocessing.standardize)
    together, many = preprocessed(train, 7 * test, Preprocessing.standardize)
    _, plain = preprocessed(train, test, Preprocessing.standardize)
    assert torch.equal(alone, together) and torch.equal(one[0], plain[0]) and not torch.equal(many, plain)


def test_works_where_gradients_are_switched_off():
    train, test = toy(100, seed=0), toy(50, seed=1)
    with torch.no_grad():
        inside = logistic_predictions(train, test, LogisticConfig())
    assert torch.equal(inside, logistic_predictions(train, test, LogisticConfig()))


def test_reaching_the_iteration_limit_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        logistic_predictions(toy(100, seed=0), toy(50, seed=1), LogisticConfig(max_iterations=2))
    assert "probe.logistic.max_iterations=2" in caplog.text


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="logistic: all 50 train images have the label 3"):
        logistic_predictions(toy(50, seed=0, labels=[3] * 4), toy(50, seed=1), LogisticConfig())


@pytest.mark.parametrize("key", ["regularization", "max_iterations", "tolerance"])
def test_invalid_settings_name_their_key(key):
    with pytest.raises(ValueError, match=rf"probe\.logistic\.{key}=0 must be"):
        LogisticConfig(**{key: 0})
