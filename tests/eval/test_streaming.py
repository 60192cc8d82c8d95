"""Streamed trainings of evaluators: any number of ranks, interrupted or not, they train the same."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import attentive_memory
import pytest
import streamed_probes
import torch
from streamed_probes import STREAMED, Interrupted, Interrupting, scores, trained
from tiny_probes import Stripes, encoder, probe
from tiny_processes import launch

from ssl_zoo.api.probe_checkpoints import ProbeCheckpoints
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.evaluation import NothingDecoded
from ssl_zoo.engine.distributed import Processes
from ssl_zoo.eval.attentive import AttentiveConfig
from ssl_zoo.eval.features import Pooling
from ssl_zoo.eval.linear import LinearConfig
from ssl_zoo.eval.linear_heads import LinearHeads, LinearKind, StreamedStandardization
from ssl_zoo.eval.logistic import Preprocessing
from ssl_zoo.eval.streaming import accuracies
from ssl_zoo.eval.trained import FeatureSource, Selection

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a function that trains an evaluator once and returns its scores and tensors."""
    folder, known = tmp_path_factory.mktemp("uninterrupted"), {}

    def result(evaluator: str):
        if evaluator not in known:
            value = scores(evaluator, ProbeCheckpoints(folder / evaluator, ALONE))
            known[evaluator] = value, trained(folder / evaluator)
        return known[evaluator]

    return result


@pytest.mark.parametrize("evaluator", STREAMED)
def test_a_training_that_resumes_in_mid_epoch_is_bit_equal_to_an_uninterrupted_one(evaluator, uninterrupted, tmp_path):
    with pytest.raises(Interrupted):
        scores(evaluator, Interrupting(tmp_path, ALONE, at_step=4))
    state = torch.get_rng_state()
    resumed = scores(evaluator, ProbeCheckpoints(tmp_path, ALONE))
    expected, tensors = uninterrupted(evaluator)
    assert resumed == expected and torch.equal(torch.get_rng_state(), state)
    found = trained(tmp_path)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


def test_a_finished_training_is_not_repeated_and_removal_leaves_nothing(tmp_path):
    folder = tmp_path / "unfinished" / "identity"
    first = scores("linear", ProbeCheckpoints(folder, ALONE))

    class Refusing(ProbeCheckpoints):
        def save(self, *arguments: object) -> None:
            raise AssertionError("a finished training took a step")

    again = Refusing(folder, ALONE)
    assert scores("linear", again) == first
    again.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_four_ranks_with_uneven_shares_train_what_one_does(uninterrupted, tmp_path):
    launch(4, streamed_probes.__file__, str(tmp_path))
    for evaluator in STREAMED:
        [expected], tensors = uninterrupted(evaluator)
        value, protocol_hash = (tmp_path / evaluator / "score.txt").read_text().split()
        assert (float(value), protocol_hash) == (expected.value, expected.protocol_hash)
        found = trained(tmp_path / evaluator)
        assert found.keys() == tensors.keys()
        for name, tensor in found.items():
            largest = tensors[name].abs().max()  # sums are in another order
            assert (tensor - tensors[name]).abs().max() <= 1e-4 * largest + 1e-9, name


@pytest.mark.slow
def test_peak_memory_of_an_attentive_probe_does_not_grow_with_the_number_of_images():
    command = [sys.executable, attentive_memory.__file__, "1000", "8000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    measured = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=True)
    few, many = (float(line.split()[1]) for line in measured.stdout.splitlines())
    assert many - few < 8  # MB; the tokens of 7,000 images take 21 MB


@pytest.mark.slow
def test_a_killed_training_resumes_bit_equal(uninterrupted, tmp_path):
    command = [sys.executable, streamed_probes.__file__, str(tmp_path), "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    expected, tensors = uninterrupted("linear")  # the first, at which the process died
    assert scores("linear", ProbeCheckpoints(tmp_path / "linear", ALONE)) == expected
    found = trained(tmp_path / "linear")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_the_written_out_gradient_is_that_of_autograd():
    torch.manual_seed(0)
    kinds = [LinearKind(Pooling.average, 1, preprocessing) for preprocessing in Preprocessing]
    features, labels = [torch.randn(6, 8) for _ in kinds], torch.tensor([0, 1, 2, 0, 1, 2])
    heads = LinearHeads(kinds, [8] * len(kinds), 2, 3, seed=0)
    heads.backward(features, labels, batch_size=6)
    for number, (weights, bias) in enumerate(zip(heads.weights, heads.biases, strict=True)):
        values = heads._prepared(number, features[number], 6)
        losses = [torch.nn.functional.cross_entropy(values @ weights[h] + bias[h], labels) for h in range(2)]
        gradient = torch.autograd.grad(sum(losses), (weights, bias))
        assert torch.allclose(weights.grad, gradient[0], atol=1e-6)
        assert torch.allclose(bias.grad, gradient[1], atol=1e-6)


def test_streamed_standardization_is_batch_norm_with_the_mean_of_all_statistics():
    torch.manual_seed(0)
    ours, theirs = StreamedStandardization(4), torch.nn.BatchNorm1d(4, affine=False, eps=1e-6, momentum=None)
    batches = [2 * torch.randn(50, 4) + 3 for _ in range(4)]
    for batch in batches:
        assert torch.allclose(ours(batch, 50), theirs(batch), atol=1e-5)
    assert torch.allclose(ours.mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.variance, theirs.running_var * 49 / 50, atol=1e-5)  # torch keeps the unbiased one


def test_without_augmentation_a_streamed_probe_learns_what_a_cached_one_does():
    config = AttentiveConfig(epochs=10, batch_size=20, lr=0.01)
    found = []
    for source in (FeatureSource.cached, FeatureSource.streamed):
        attentive = replace(config, features=source)
        found += probe(train_samples=0, evaluators=["attentive"], attentive=attentive)(encoder())
    assert all(score.value > 0.8 for score in found)
    assert found[0].protocol_hash != found[1].protocol_hash


def test_the_log_has_where_features_come_from_and_why(caplog):
    with caplog.at_level("INFO"):
        for source in (FeatureSource.auto, FeatureSource.streamed):
            linear = LinearConfig(epochs=1, lrs=[0.1], features=source)
            probe(evaluators=["linear"], linear=linear)(encoder())
    assert "linear: cached features, since the features of 120 images take 0.0 GB, at most probe.linear" in caplog.text
    assert "linear: streamed through the encoder, since probe.linear.features=streamed" in caplog.text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"crop_scale": [0.5, 1.0]}, r"probe\.linear\.crop_scale=\[0\.5, 1\.0\] augments"),
        ({"horizontal_flip": 0.5}, r"probe\.linear\.horizontal_flip=0\.5 augments"),
        ({"max_gigabytes": 1e-9}, r"120 images take 0\.0 GB, more than probe\.linear\.max_gigabytes=1e-09"),
    ],
)
def test_what_forbids_cached_features_is_named(settings, reason):
    linear = LinearConfig(features=FeatureSource.cached, **settings)
    with pytest.raises(ValueError, match=f"probe.linear.features=cached, but .*{reason}.*use .*=streamed"):
        probe(evaluators=["linear"], linear=linear)(encoder())


def test_a_cached_probe_has_the_protocol_that_it_had_before_there_were_streams():
    [score] = probe(evaluators=["linear"], linear=LinearConfig(epochs=1, lrs=[0.1]))(encoder())
    assert score.protocol_hash == "fb9569467586"


def test_a_head_that_is_chosen_on_the_test_images_is_named_so_and_alone_it_is_not():
    names = []
    for lrs in ([0.1, 0.3], [0.1]):
        linear = LinearConfig(epochs=1, lrs=lrs, selection=Selection.test)
        [score] = probe(evaluators=["linear"], linear=linear)(encoder())
        names.append(score.name)
    assert names == ["linear_best_on_test", "linear"]


def test_a_refit_uses_the_held_out_images_and_without_it_the_chosen_head_is_scored():
    seen = {}
    for refit in (True, False):
        linear = LinearConfig(epochs=2, lrs=[0.1, 0.3], refit=refit, features=FeatureSource.streamed)
        seen[refit] = probe(evaluators=["linear"], linear=linear)(encoder())[0]
    assert seen[True].details["chosen"] == seen[False].details["chosen"]
    assert seen[True].protocol_hash != seen[False].protocol_hash


def test_a_published_split_chooses_the_train_images_by_name(tmp_path):
    file = tmp_path / "few.txt"
    file.write_text("\n".join(f"stripes/{number}" for number in (0, 1, 2, 3, 50, 51)))
    found = []
    for source in (FeatureSource.cached, FeatureSource.streamed):
        linear = LinearConfig(epochs=1, lrs=[0.1], features=source, split_file=str(file))
        found += probe(train_samples=0, evaluators=["linear"], linear=linear)(encoder())
    assert [score.protocol["train"] for score in found] == [6, 6]
    assert found[0].protocol["train_hash"] == found[1].protocol["train_hash"]


def test_test_images_that_no_rank_can_decode_are_an_error(monkeypatch):
    model = probe().evaluated_model(encoder())

    def corrupt(source, index):
        raise CorruptImage(source.sample_name(index), "the file is empty")

    monkeypatch.setattr(Stripes, "image", corrupt)
    with pytest.raises(NothingDecoded, match=r"none of 40 images .* stripes/.*: the file is empty"):
        accuracies(lambda images: torch.zeros(1, len(images), 2), model.test, 1, torch.device("cpu"))
