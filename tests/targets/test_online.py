"""Targets of the trained encoder itself, and the normalisations of encoder features."""

import pytest
import torch
from tiny_methods import tiny_batch, tiny_method

from ssl_zoo.collapse import ONLINE_FEATURE_LIMITS
from ssl_zoo.method import Method
from ssl_zoo.targets import Normalization


def online(**settings: object) -> Method:
    return tiny_method("ijepa", target_overrides={"name": "online", **settings})


def targets_of(method: Method) -> torch.Tensor:
    batch = tiny_batch(method, "ijepa")
    return method.target(batch, batch.masks["image"], method.encoder)


def test_at_the_start_of_a_run_online_targets_are_those_of_a_teacher() -> None:
    assert torch.equal(targets_of(online()), targets_of(tiny_method("ijepa")))


def test_targets_follow_the_trained_weights_and_there_is_no_ema() -> None:
    method = online()
    before = targets_of(method)
    with torch.no_grad():
        method.encoder.blocks[0].mlp.fc1.weight.mul_(2)
    assert not torch.allclose(before, targets_of(method))
    assert method.emas() == () and method.eval_encoder() is method.encoder
    assert not any(name.startswith("target.") for name in method.state_dict())


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_a_gradient_reaches_the_encoder_through_its_targets_only_without_the_stop(stop_gradient: bool) -> None:
    assert targets_of(online(stop_gradient=stop_gradient)).requires_grad is not stop_gradient


@pytest.mark.parametrize("normalization", [Normalization.dyntanh, Normalization.none])
def test_tokens_keep_lengths_of_their_own_without_layer_normalisation(normalization: Normalization) -> None:
    method = tiny_method("ijepa", target_overrides={"normalization": normalization})
    batch = tiny_batch(method, "ijepa")
    targets, encoder = targets_of(method), method.target.encoder.module
    [raw] = encoder(batch.views["image"], layers=[-1])
    expected = {Normalization.dyntanh: (raw / 2).tanh(), Normalization.none: encoder(batch.views["image"])}[
        normalization
    ]
    block = batch.masks["image"].targets[:, 0]
    torch.testing.assert_close(targets[:, 0], expected.gather(1, block[..., None].expand(-1, -1, 48)))
    assert normalization is Normalization.none or targets.norm(dim=-1).std() > 0.01 * targets.norm(dim=-1).mean()


def test_the_alarm_watches_online_targets_and_names_the_regularizer_as_remedy() -> None:
    limits = online().collapse_limits()
    assert limits == ONLINE_FEATURE_LIMITS and all("regularizer=sigreg" in limit.remedy for limit in limits)
