from dataclasses import replace

import numpy
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from ssl_zoo.eval import nearest
from ssl_zoo.eval.features import Features
from ssl_zoo.eval.knn import KNNConfig, knn_predictions


def features(num_images: int, dim: int = 24, num_classes: int = 5, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    values = 0.5 * centres[labels] + torch.randn(num_images, dim, generator=generator)
    return Features(values, labels, torch.arange(num_images))


def sklearn_predictions(train: Features, test: Features, k: int, temperature: float) -> torch.Tensor:
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: numpy.exp((1 - distance) / temperature)
    )
    model.fit(train.values.double().numpy(), train.labels.numpy())
    return torch.from_numpy(model.predict(test.values.double().numpy()))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_every_prediction_equals_scikit_learn(temperature):
    train, test = features(700), features(400, seed=1)
    ks = [1, 5, 20, 200]
    predictions = knn_predictions(train, test, KNNConfig(k=ks, temperature=temperature))
    for k, predicted in zip(ks, predictions, strict=True):
        assert torch.equal(predicted, sklearn_predictions(train, test, k, temperature))
        assert 0.4 < (predicted == test.labels).double().mean() < 1


def test_standardize_equals_scikit_learn_on_z_scores():
    train, test = features(300), features(200, seed=1)
    scale, shift = torch.logspace(-2, 2, 24), torch.linspace(-5, 5, 24)
    skewed = [Features(f.values * scale + shift, f.labels, f.index) for f in (train, test)]
    mean, deviation = skewed[0].values.mean(0), skewed[0].values.std(0, correction=0)
    z_scores = [Features((f.values - mean) / deviation, f.labels, f.index) for f in skewed]
    (predicted,) = knn_predictions(*skewed, KNNConfig(k=[20], standardize=True))
    assert torch.equal(predicted, sklearn_predictions(*z_scores, 20, 0.07))
    assert not torch.equal(predicted, knn_predictions(*skewed, KNNConfig(k=[20]))[0])


@pytest.mark.parametrize(("queries", "bank"), [(1, 700), (130, 64), (400, 7)])
def test_block_sizes_change_no_prediction(monkeypatch, queries, bank):
    train, test = features(700), features(400, seed=1)
    config = KNNConfig(k=[10, 50])
    expected = knn_predictions(train, test, config)
    monkeypatch.setattr(nearest, "_QUERIES_PER_BLOCK", queries)
    monkeypatch.setattr(nearest, "_BANK_PER_BLOCK", bank)
    assert torch.equal(knn_predictions(train, test, config), expected)


def test_equal_votes_go_to_the_lower_class():
    train = Features(torch.eye(2), torch.tensor([3, 1]), torch.arange(2))
    test = Features(torch.ones(1, 2), torch.tensor([0]), torch.arange(1))
    assert knn_predictions(train, test, KNNConfig(k=[2])).item() == 1


def test_weights_by_exponential_and_by_softmax_choose_the_same_class():
    train, test = features(400), features(200, seed=1)
    unit_train, unit_test = (torch.nn.functional.normalize(f.values.double(), dim=1) for f in (train, test))
    similarity, numbers = (unit_test @ unit_train.T).topk(20, dim=1)
    votes = torch.zeros(200, 5).double().scatter_add_(1, train.labels[numbers], (similarity / 0.07).softmax(dim=1))
    assert torch.equal(knn_predictions(train, test, KNNConfig())[0], votes.argmax(dim=1))


def test_a_tiny_temperature_does_not_overflow():
    train, test = features(100), features(50, seed=1)
    nearest_only, tiny = knn_predictions(train, test, KNNConfig(k=[1]))[0], KNNConfig(k=[20], temperature=1e-5)
    assert torch.equal(knn_predictions(train, test, tiny)[0], nearest_only)


def test_collapsed_features_predict_the_majority_of_the_first_rows():
    labels = torch.tensor([2] * 12 + [0] * 88)
    train = Features(torch.ones(100, 8), labels, torch.arange(100))
    assert knn_predictions(train, train, KNNConfig(k=[20])).unique().tolist() == [2]


def broken(num_images: int = 30, **changes) -> Features:
    return replace(features(num_images), **changes)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (broken(10), broken(), r"knn\.k=\[20\] on 10 train images.*probe\.train_samples"),
        (
            broken(labels=torch.zeros(30, dtype=torch.long)),
            broken(),
            "all 30 train images have the label 0, but two are needed",
        ),
        (broken(), broken(values=torch.ones(30, 23)), "24 dimensions.*23"),
        (broken(labels=torch.full((30,), -1)), broken(), "train images have no label"),
        (broken(), broken(labels=torch.zeros(29, dtype=torch.long)), "test images have no label"),
        (broken(), broken(values=torch.full((30, 24), torch.nan)), "test features are not all finite"),
        (broken(values=torch.ones(30, 4, 24)), broken(), "another pooling than tokens"),
    ],
)
def test_unusable_features_are_refused_with_the_reason(train, test, message):
    with pytest.raises(ValueError, match=message):
        knn_predictions(train, test, KNNConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": []}, r"probe\.knn\.k=\[\] must have at least one"),
        ({"k": [0]}, r"probe\.knn\.k=\[0\] must be at least 1"),
        ({"temperature": 0}, r"probe\.knn\.temperature=0 must be above 0"),
    ],
)
def test_invalid_settings_name_their_key(settings, message):
    with pytest.raises(ValueError, match=message):
        KNNConfig(**settings)
