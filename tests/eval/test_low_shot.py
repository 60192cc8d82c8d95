import pytest
import torch
from tiny_probes import encoder, probe

from ssl_zoo.eval.base import accuracy
from ssl_zoo.eval.logistic import logistic_predictions
from ssl_zoo.eval.low_shot import LowShotConfig
from ssl_zoo.eval.subsets import mean_and_std, stratified_rows, take_rows, train_validation_rows

LABELS = torch.tensor([0] * 200 + [1] * 50 + [2] * 10)


def test_every_class_has_its_fraction_and_at_least_one_image():
    rows = stratified_rows(LABELS, 0.05, 0, seed=0)
    assert LABELS[rows].bincount().tolist() == [10, 2, 1]
    assert stratified_rows(LABELS, 0.01, 4, seed=0).shape == (12,)


def test_a_subset_is_a_function_of_its_seed():
    assert torch.equal(stratified_rows(LABELS, 0.1, 0, 3), stratified_rows(LABELS, 0.1, 0, 3))
    assert not torch.equal(stratified_rows(LABELS, 0.1, 0, 3), stratified_rows(LABELS, 0.1, 0, 4))


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(ValueError, match="class 2 has 10 train images, fewer than images_per_class=11"):
        stratified_rows(LABELS, 0.1, 11, seed=0)


def test_train_and_validation_rows_partition_all_rows():
    fitted, held_out = train_validation_rows(20, 0.1, seed=0)
    assert len(held_out) == 2 and sorted([*fitted.tolist(), *held_out.tolist()]) == list(range(20))
    assert [len(part) for part in train_validation_rows(2, 0.001, seed=0)] == [1, 1]


def test_the_score_is_mean_and_deviation_over_the_subsets():
    config = LowShotConfig(images_per_class=3, num_splits=4, split_seed=7)
    checked = probe(evaluators=["low_shot"], low_shot=config)
    [score] = checked(encoder())
    train, test = checked.evaluated_model(encoder()).features(config)
    values = []
    for seed in range(7, 11):
        few = take_rows(train, stratified_rows(train.labels, 0, 3, seed))
        values.append(accuracy(logistic_predictions(few, test, config), test.labels))
    assert (score.value, score.spread) == mean_and_std(values)
    assert score.value == pytest.approx(sum(values) / 4) and score.spread > 0
    assert score.protocol["labelled"] == [12] * 4


def test_a_published_list_chooses_images_by_name(tmp_path):
    checked = probe(train_samples=0, evaluators=["low_shot"])
    file = tmp_path / "few.txt"
    file.write_text("\n".join(f"stripes/{number}" for number in (0, 1, 2, 3, 50)) + "\n")
    config = LowShotConfig(split_files=[str(file)])
    [score] = probe(train_samples=0, evaluators=["low_shot"], low_shot=config)(encoder())
    train, test = checked.evaluated_model(encoder()).features(config)
    few = take_rows(train, torch.tensor([0, 1, 2, 3, 50]))
    assert score.value == accuracy(logistic_predictions(few, test, config), test.labels)
    assert score.spread is None and score.protocol["labelled"] == [5]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("", "names no image"), ("stripes/999\n", r"1 images that are not among .*stripes/999")],
)
def test_an_invalid_list_is_refused(tmp_path, content, message):
    file = tmp_path / "list.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        probe(evaluators=["low_shot"], low_shot=LowShotConfig(split_files=[str(file)]))(encoder())
