from pathlib import Path

import pytest
import torch
from tiny_probes import encoder, probe

from ssl_zoo.eval import EvaluatorConfig
from ssl_zoo.eval.cache import FeatureCache, weights_hash
from ssl_zoo.eval.features import Pooling


def forwards(net) -> list[int]:
    """Record the size of every batch that the network encodes from now on."""
    sizes: list[int] = []
    net.register_forward_hook(lambda module, arguments, result: sizes.append(len(arguments[0])))
    return sizes


def features(folder: Path, net, settings: EvaluatorConfig | None = None, identity: str = "a", **changes):
    model = probe(cache=FeatureCache(folder, {"data": identity}), **changes).evaluated_model(net)
    return model.features(settings or EvaluatorConfig())


def test_a_later_process_reads_the_features_of_an_earlier_one(tmp_path):
    first = features(tmp_path, encoder())
    net = encoder()
    encoded = forwards(net)
    again = features(tmp_path, net)
    assert encoded == []
    for fresh, stored in zip(first, again, strict=True):
        assert torch.equal(fresh.values, stored.values) and torch.equal(fresh.labels, stored.labels)
        assert torch.equal(fresh.index, stored.index)


def test_another_label_set_takes_the_same_features(tmp_path):
    features(tmp_path, encoder())
    net = encoder()
    encoded = forwards(net)
    train, _ = features(tmp_path, net, label="parity")
    assert encoded == [] and torch.equal(train.labels, train.index // 4 % 2)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": EvaluatorConfig(final_norm=False)},
        {"settings": EvaluatorConfig(num_layers=2)},
        {"identity": "b"},
        {"train_samples": 79, "test_samples": 39},
        {"seed": 1},
    ],
)
def test_a_change_of_the_features_inputs_extracts_them_again(tmp_path, change):
    features(tmp_path, encoder())
    net = encoder()
    encoded = forwards(net)
    features(tmp_path, net, **change)
    assert sum(encoded) >= 118


def test_other_weights_are_other_features(tmp_path):
    features(tmp_path, encoder())
    net = encoder()
    with torch.no_grad():
        net.norm.bias[0] += 1e-6
    assert weights_hash(net) != weights_hash(encoder()) == weights_hash(encoder())
    encoded = forwards(net)
    features(tmp_path, net)
    assert encoded == [80, 40]


def test_tokens_are_not_cached(tmp_path):
    features(tmp_path, encoder(), EvaluatorConfig(pooling=Pooling.tokens))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path):
    features(tmp_path, encoder())
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{tmp_path}.* are damaged .*remove the file"):
        features(tmp_path, encoder())
