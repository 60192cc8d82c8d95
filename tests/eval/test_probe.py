import dataclasses
import json

import pytest
import torch
from omegaconf import OmegaConf
from tiny_probes import Stripes, encoder, probe

from ssl_zoo.data.corruptions import CorruptionsConfig
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.sources.base import Split
from ssl_zoo.eval import EVALUATORS, Evaluator, EvaluatorConfig, Score, probe_config_class, split
from ssl_zoo.eval.features import Pooling, extract
from ssl_zoo.eval.health import HealthConfig, rankme
from ssl_zoo.eval.knn import KNNConfig, knn_predictions
from ssl_zoo.registry import UnknownName
from ssl_zoo.scores import LABEL_FREE
from ssl_zoo.settings import setting


@pytest.fixture
def registry(monkeypatch):
    """The registry of evaluators, restored after the test."""
    monkeypatch.setattr(EVALUATORS, "_obj_map", dict(EVALUATORS._obj_map))
    monkeypatch.setattr(EVALUATORS, "_configs", dict(EVALUATORS._configs))
    return EVALUATORS


def values(scores) -> dict[str, float]:
    return {score.name: score.value for score in scores}


def test_a_probe_during_training_equals_one_of_the_saved_weights_exactly():
    net = encoder().train()
    online = probe(evaluators=["knn", "logistic"])(net, step=10)
    loaded = encoder(seed=1)
    loaded.load_state_dict(net.state_dict())
    offline = probe(evaluators=["knn", "logistic"])(loaded.eval())
    assert [score.name for score in online] == ["knn1", "knn5", "logistic"]
    assert online == offline


def test_scores_are_those_of_the_evaluator_on_the_chosen_images():
    checked = probe(train_samples=0, test_samples=0)
    net = encoder()
    model = checked.evaluated_model(net)
    train, test = (extract(net, data, pooling=Pooling.average) for data in (model.train, model.test))
    assert torch.equal(train.index, torch.arange(120)) and torch.equal(test.labels, torch.arange(60) % 4)
    (predicted,) = knn_predictions(train, test, KNNConfig(k=[5]))
    assert values(checked(net))["knn5"] == (predicted == test.labels).double().mean().item()


def test_the_encoder_and_the_random_state_are_unchanged():
    net = encoder().train()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    probe(evaluators=["knn", "logistic"])(net, step=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_scores_of_step_0_are_the_baseline_of_all_later_ones_also_after_a_resume():
    first = probe()
    start = first(encoder(seed=1), step=0)
    later = first(encoder(), step=100)
    assert [score.baseline for score in later] == [score.value for score in start]
    assert values(later) != values(start)
    resumed = probe()
    assert all(score.baseline is None for score in resumed(encoder(), step=100))
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert resumed(encoder(), step=100) == later


def test_subsets_depend_on_the_seed_alone():
    def chosen(seed: int, **settings) -> list[int]:
        return torch.cat([index for _, _, index in probe(seed, **settings).evaluated_model(encoder()).train]).tolist()

    assert chosen(0) == chosen(0, batch_size=7) == sorted(set(chosen(0)))
    assert len(chosen(0)) == 80 and chosen(0) != chosen(1)
    assert chosen(0, train_samples=1000) == chosen(0, train_samples=0) == list(range(120))


def test_the_label_set_can_be_chosen():
    first = probe(label="parity")
    labels, index = (
        torch.cat(parts) for parts in zip(*((y, i) for _, y, i in first.evaluated_model(encoder()).test), strict=True)
    )
    assert torch.equal(labels, index // 4 % 2)
    assert values(first(encoder())) != values(probe()(encoder()))


def test_a_score_has_its_protocol():
    one, five = probe(knn=KNNConfig(k=[1, 5], temperature=0.2))(encoder())
    assert one.protocol["k"] == 1 and five.protocol["k"] == 5
    assert five.protocol["evaluator"] == "knn" and five.protocol["temperature"] == 0.2
    assert five.protocol["pooling"] == "average" and five.protocol["train"] == 80 and five.protocol["test"] == 40
    assert json.loads(json.dumps(five.protocol)) == five.protocol


def test_an_equal_protocol_has_an_equal_hash_and_another_temperature_another():
    hashes = {t: Score("knn5", 0.5, {"k": 5, "temperature": t}).protocol_hash for t in (0.07, 0.1)}
    assert hashes[0.07] == Score("other", 0.1, {"temperature": 0.07, "k": 5}).protocol_hash != hashes[0.1]


def test_features_are_extracted_once_for_evaluators_with_equal_settings():
    net = encoder()
    sizes = []
    net.register_forward_hook(lambda module, arguments, result: sizes.append(len(arguments[0])))
    probe(evaluators=["knn", "logistic"])(net)
    assert sizes == [80, 40]


def test_an_evaluator_from_outside_has_a_section(registry):
    @dataclasses.dataclass
    class WidthConfig(EvaluatorConfig):
        factor: float = setting(2.0, "multiple of the width", at_least=0)

    @EVALUATORS.register("width", WidthConfig)
    class Width(Evaluator):
        def __call__(self, model):
            train, _ = model.features(self.config)
            return [Score("width", self.config.factor * train.values.shape[1], self.protocol(model))]

    assert values(probe(evaluators=["width"])(encoder())) == {"width": 96.0}
    assert values(probe(evaluators=["width"], width=WidthConfig(factor=3.0))(encoder())) == {"width": 144.0}
    with pytest.raises(ValueError, match=r"probe\.width\.factor=-1\.0 must be at least 0"):
        WidthConfig(factor=-1.0)


def test_unlabelled_images_need_no_evaluators():
    assert probe(labelled=False, evaluators=[])(encoder()) == []


@pytest.mark.parametrize(("limit", "times"), [(80 * 3 * 16 * 16 * 4, 1), (80 * 3 * 16 * 16 * 4 - 1, 2)])
def test_images_that_fit_are_rendered_once_for_all_networks(monkeypatch, limit, times):
    monkeypatch.setattr(split, "_CACHED_BYTES", limit)
    rendered = []
    image = Stripes.image
    monkeypatch.setattr(Stripes, "image", lambda source, index: rendered.append(source.split) or image(source, index))
    shared = probe(batch_size=32)
    scores = [values(shared(encoder(seed))) for seed in (0, 1)]
    assert (rendered.count(Split.train), rendered.count(Split.test)) == (80 * times, 40)
    assert scores == [values(probe(batch_size=32)(encoder(seed))) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"evaluators": ["knm"]}, UnknownName, "Did you mean 'knn'"),
        ({"label": "bands"}, ValueError, r"probe\.label='bands'.*Did you mean 'band'.*band, parity"),
        (
            {"labelled": False},
            ValueError,
            r"knn can't run: the data has no labels; .*, or do without knn",
        ),
        ({"train_samples": -1}, ValueError, r"probe\.train_samples=-1 must be at least 0"),
        ({"batch_size": 0}, ValueError, r"probe\.batch_size=0 must be at least 1"),
    ],
)
def test_invalid_settings_are_refused_at_construction(settings, error, message):
    with pytest.raises(error, match=message):
        probe(**settings)


def test_evaluators_without_labels_accept_unlabelled_images():
    scores = values(probe(labelled=False, evaluators=["health"], health=HealthConfig(lidar_images=4))(encoder()))
    assert scores.keys() == set(LABEL_FREE)


def test_label_free_measures_are_those_of_the_train_images_where_there_is_no_test_image():
    settings = {"labelled": False, "evaluators": ["health"], "health": HealthConfig(lidar_images=4)}
    made = probe(has_test=False, corruptions=CorruptionsConfig(names=["contrast"]), **settings)
    assert made.explanation() == ""
    scores, model = made(encoder()), made.evaluated_model(encoder())
    train, _ = model.with_test(model.train).features(HealthConfig())
    assert values(scores)["rankme"] == rankme(train.values) and values(scores).keys() == set(LABEL_FREE)
    assert scores[0].protocol["test"] == 0 and scores[0].protocol["train"] == 80


def test_the_split_hash_depends_on_images_and_labels():
    def hashes(**settings) -> tuple[str, str]:
        protocol = probe(**settings)(encoder())[0].protocol
        return protocol["train_hash"], protocol["test_hash"]

    plain = hashes()
    assert plain == hashes(seed=0) and plain[0] != plain[1]
    for other in (hashes(seed=1), hashes(label="parity")):
        assert other[0] != plain[0] and other[1] != plain[1]
    assert hashes(train_samples=70)[1] == plain[1]


def test_features_of_fewer_layers_are_slices_of_those_of_more():
    model = probe().evaluated_model(encoder())
    deep, _ = model.features(EvaluatorConfig(num_layers=2))
    shallow, _ = model.features(EvaluatorConfig(num_layers=1))
    alone, _ = probe().evaluated_model(encoder()).features(EvaluatorConfig(num_layers=1))
    assert torch.equal(shallow.values, deep.values[:, 48:]) and torch.equal(shallow.values, alone.values)


def test_the_config_is_a_structured_config_with_a_meaning_for_every_key():
    config = probe_config_class()
    read = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), {"knn": {"k": [10, 20]}}))
    assert read.knn.k == [10, 20] and read.logistic == config().logistic
    for part in (config, type(read.knn), type(read.logistic)):
        assert all(field.metadata["meaning"] for field in dataclasses.fields(part))


def test_every_evaluator_has_a_section_in_its_name():
    config = probe_config_class()()
    for name in EVALUATORS.names():
        assert type(getattr(config, name)) is EVALUATORS.config_of(name)
        assert getattr(config, name).key("pooling") == f"probe.{name}.pooling"


@pytest.mark.parametrize("name", ["batch_size", "k-means", "key"])
def test_an_evaluator_whose_name_can_be_no_section_is_refused(registry, name):
    registry.register(name, dataclasses.make_dataclass("Custom", [], bases=(EvaluatorConfig,)))(Evaluator)
    with pytest.raises(ValueError, match=f"evaluator '{name}' can't have a section"):
        probe_config_class()


@pytest.mark.parametrize(
    ("settings", "used", "reason"),
    [
        ({"labelled": False}, ["health"], "the data has no labels; with data=imagefolder, give each class a subfolder"),
        ({"train_samples": 1}, ["health"], "all 1 train images are of one class; raise probe.train_samples"),
        ({"train_samples": 4, "knn": KNNConfig(k=[5])}, ["health"], "probe.knn.k=[5] on 4 train images: lower"),
        ({"has_test": False}, ["health"], "the data has no test image"),
        ({"has_test": False, "train_samples": 1}, [], "the data has no test image"),
        ({"labelled": False, "evaluators": ["logistic", "health"]}, ["health"], "logistic: the data has no labels"),
        ({}, ["knn"], None),
    ],
)
def test_an_optional_evaluator_that_the_data_is_no_use_for_is_left_out_with_its_reason(settings, used, reason):
    made = probe(is_optional=True, **settings)
    assert [EVALUATORS.name_of(evaluator.config) for evaluator in made.evaluators] == used
    assert (reason in made.explanation()) if reason else made.explanation() == ""
    scores = made(encoder())
    assert bool(scores) == bool(used)


def test_an_optional_evaluation_without_a_decodable_image_is_a_warning_and_names_the_images(monkeypatch, caplog):
    def corrupt(source, index):
        raise CorruptImage(source.sample_name(index), "the file is empty")

    monkeypatch.setattr(Stripes, "image", corrupt)
    made = probe(is_optional=True, train_samples=6, test_samples=6)
    assert list(made(encoder())) == [] and "evaluation without knn: none of 6 images" in caplog.text
    assert {sample.reason for sample in made.corrupt} == {"the file is empty"} and len(made.corrupt) == 6
    with pytest.raises(ValueError, match="none of 6 images"):
        probe(train_samples=6, test_samples=6)(encoder())
