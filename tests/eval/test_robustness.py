import json

import pytest
import torch
from tiny_maps import mosaic_probe
from tiny_probes import Stripes, encoder, probe

from ssl_zoo.data.corruptions import Corruption, CorruptionsConfig
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.sources.base import SourceConfig, Split
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.dense import DenseEvaluator
from ssl_zoo.eval.offline import Baselines, evaluate
from ssl_zoo.eval.segmentation import SegmentationConfig

CORRUPTIONS = CorruptionsConfig(names=["gaussian_noise", "contrast"], severities=[1, 4])


def by_name(scores) -> dict:
    return {score.name: score for score in scores}


def test_corrupted_scores_are_means_over_severities_and_corruptions_relative_to_clean():
    scores = by_name(probe(corruptions=CORRUPTIONS, evaluators=["knn"])(encoder()))
    parts = ["gaussian_noise", "contrast", "corrupted"]
    assert list(scores) == ["knn1", "knn5", *(f"knn{k}/{part}" for k in (1, 5) for part in parts)]
    noise, contrast, all_of_them = (scores[f"knn5/{name}"] for name in ("gaussian_noise", "contrast", "corrupted"))
    assert noise.value == pytest.approx(sum(noise.details["by_severity"].values()) / 2)
    assert set(noise.details["by_severity"]) == {1, 4}
    assert all_of_them.value == pytest.approx((noise.value + contrast.value) / 2)
    assert all_of_them.details["relative_to_clean"] == pytest.approx(all_of_them.value / scores["knn5"].value)


def test_each_corrupted_score_is_that_of_an_evaluation_on_corrupted_test_images():
    checked = probe(corruptions=CORRUPTIONS, evaluators=["knn"])
    scores, model = by_name(checked(encoder())), checked.evaluated_model(encoder())
    source = Stripes(SourceConfig(), Split.test)

    def corrupted_data(*arguments) -> EvaluationData:
        settings = {"size": (16, 16), "mean": [0.5] * 3, "std": [0.25] * 3}
        return EvaluationData(*arguments, **settings, transform=Corruption("contrast", 4))

    test = type(model.test)(source, model.test.index, model.test.labels, corrupted_data)
    alone = by_name(checked.evaluators[0](model.with_test(test)))
    assert scores["knn1/contrast"].details["by_severity"][4] == alone["knn1"].value


def test_clean_scores_and_their_protocols_stay_the_same():
    plain = by_name(probe(evaluators=["knn", "health"])(encoder()))
    corrupted = by_name(probe(evaluators=["knn", "health"], corruptions=CORRUPTIONS)(encoder()))
    assert all(corrupted[name] == score for name, score in plain.items())
    hashes = [score.protocol_hash for name, score in corrupted.items() if name.startswith("knn5")]
    assert len(set(hashes)) == 4
    other_seed = CorruptionsConfig(names=["contrast"], severities=[1, 4], seed=1)
    reseeded = by_name(probe(evaluators=["knn"], corruptions=other_seed)(encoder()))
    assert reseeded["knn5/contrast"].protocol_hash != corrupted["knn5/contrast"].protocol_hash


def test_corrupted_features_are_cached_apart_from_clean_ones(tmp_path):
    cache = FeatureCache(tmp_path, {})
    expected = probe(evaluators=["knn"], corruptions=CORRUPTIONS)(encoder())
    for _ in range(2):
        assert probe(evaluators=["knn"], corruptions=CORRUPTIONS, cache=cache)(encoder()) == expected
    assert len(list(tmp_path.iterdir())) == 2 + 4  # train, test, and four corrupted versions of test


def test_an_evaluation_writes_corrupted_scores_with_their_baselines_to_a_file_of_their_own(tmp_path):
    files = {}
    for corruptions in (CORRUPTIONS, CorruptionsConfig()):
        checked, baselines = probe(evaluators=["knn"], corruptions=corruptions), Baselines()
        [result] = evaluate(checked, encoder(), encoder(seed=1), baselines, {})
        files[result.write(tmp_path, {})] = len(result.scores)
    assert len(files) == 2
    for path, count in files.items():
        scores = json.loads(path.read_text())["scores"]
        assert len(scores) == count and all(score["random_init"] is not None for score in scores)


def test_dense_probes_train_once_for_all_corruptions(monkeypatch):
    trainings = []
    trained = DenseEvaluator._trained
    monkeypatch.setattr(DenseEvaluator, "_trained", lambda *given: trainings.append(1) or trained(*given))
    quick = SegmentationConfig(epochs=2, lrs=[0.01], crop_scale=[1.0, 1.0])
    noisy = mosaic_probe(evaluators=["segmentation"], segmentation=quick, corruptions=CORRUPTIONS)
    scores = by_name(noisy(encoder()))
    assert len(trainings) == 1 and len(scores) == 2 * 4
    assert scores["segmentation_miou/gaussian_noise"].value < scores["segmentation_miou"].value


def test_corrupted_test_images_are_not_kept_in_memory():
    checked = probe(evaluators=["knn"], corruptions=CORRUPTIONS)
    checked(encoder())
    model = checked.evaluated_model(encoder())
    assert model.test._cached is not None and all(split._cached is None for split in model.corrupted)
    assert torch.equal(model.corrupted[0].index, model.test.index)
