"""Evaluators on one, two and four processes: equal scores, also where ranks have fewer images than others or none.

Features that need no training are compared bit by bit, so that one padded or repeated sample would show.
"""

import multiprocessing
from collections.abc import Collection
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_maps import mosaic_probe
from tiny_probes import Stripes, encoder, probe

from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.evaluation import NothingDecoded
from ssl_zoo.eval.attentive import AttentiveConfig
from ssl_zoo.eval.cache import FeatureCache
from ssl_zoo.eval.features import Features
from ssl_zoo.eval.finetune import FinetuneConfig
from ssl_zoo.eval.health import HealthConfig
from ssl_zoo.eval.knn import KNNConfig, knn_predictions
from ssl_zoo.eval.label_propagation import LabelPropagationConfig
from ssl_zoo.eval.linear import LinearConfig
from ssl_zoo.eval.logistic import LogisticConfig, Preprocessing, Transform, fit, logistic_predictions
from ssl_zoo.eval.low_shot import LowShotConfig
from ssl_zoo.eval.ranks import on_all_ranks, rank_and_size
from ssl_zoo.eval.shards import FeatureShard
from ssl_zoo.eval.split import subset

SETTINGS = {
    "knn": KNNConfig(k=[1, 5, 20]),
    "logistic": LogisticConfig(max_iterations=15),
    "linear": LinearConfig(epochs=1, lrs=[0.01, 0.1], batch_size=32),
    "attentive": AttentiveConfig(epochs=1, batch_size=32),
    "finetune": FinetuneConfig(epochs=1, warmup_epochs=0, batch_size=32),
    "low_shot": LowShotConfig(images_per_class=3, num_splits=2, max_iterations=5),
    "health": HealthConfig(lidar_images=12, lidar_views=2),
}
# Batches of 8 train images: 10 for the ranks, the last of 5. 13 test images: two ranks of four have none.
UNEVEN = {"train_samples": 77, "test_samples": 13, "batch_size": 8}
FEW = {"train_samples": 24, "test_samples": 3, "batch_size": 24}  # one batch each: all other ranks have none


def scores(data: dict[str, int], evaluators: list[str]) -> dict[str, tuple[float, float | None]]:
    found = probe(evaluators=evaluators, **data, **{name: SETTINGS[name] for name in evaluators})(encoder())
    return {score.name: (score.value, score.spread) for score in found}


def toy(num_images: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (num_images,), generator=generator)
    centres = 3 * torch.randn(4, 12, generator=torch.Generator().manual_seed(99))
    values = 0.2 * centres[labels] + torch.randn(num_images, 12, generator=generator)
    return Features(values.repeat_interleave(2, dim=1)[:, :20], labels, torch.arange(num_images))


def part(features: Features, batch_sizes: list[int]) -> FeatureShard:
    """This rank's part of features that are divided into batches of these sizes."""
    rank, world_size = rank_and_size()
    batches = features.values.split(batch_sizes)[rank::world_size]
    values = torch.cat([features.values[:0], *batches])
    return FeatureShard(values, features.labels, features.index, batch_sizes, rank, world_size)


TRAIN, TEST = toy(150, 0), toy(61, 1)
DIVISIONS = {"uneven": ([1, 90, 9, 47, 3], [60, 1]), "one batch": ([150], [61])}


def predictions(division: str) -> dict[str, torch.Tensor]:
    train, test = (part(f, sizes) for f, sizes in zip((TRAIN, TEST), DIVISIONS[division], strict=True))
    found = {"knn": knn_predictions(train, test, KNNConfig(k=[1, 7, 120]))}
    found["knn, standardized"] = knn_predictions(train, test, KNNConfig(k=[1, 7, 120], standardize=True))
    for preprocessing in Preprocessing:
        config = LogisticConfig(preprocessing=preprocessing, max_iterations=5)
        found[f"logistic, {preprocessing.value}"] = logistic_predictions(train, test, config)
        transform = Transform.of(train, preprocessing, torch.device("cpu"))
        found[f"weights, {preprocessing.value}"] = torch.cat([t.flatten() for t in fit(train, transform, config)])
    few = test.at(torch.tensor([60, 0, 59, 0]))
    return found | {"complete": train.complete().values, "few": few.values, "of few": few.index}


IDS = {"train": subset(120, 77, 0, "train").tolist(), "test": subset(60, 13, 0, "test").tolist()}
PLANNED = sorted((split, sample) for split, ids in IDS.items() for sample in ids)
# All images of a batch of two ranks' turns, single images, and the only image of the last test batch but one.
BAD = {("train", sample) for sample in (*IDS["train"][24:32], IDS["train"][0], IDS["train"][76])}
BAD |= {("test", IDS["test"][9])}
CORRUPT = {"none": (), "some": BAD, "all": PLANNED}


def decoded(corrupt: Collection[tuple[str, int]]) -> dict[str, object]:
    """Extract features of images of which some are corrupt, and note the images that this rank decodes."""
    found: list[tuple[str, int]] = []
    image = Stripes.image

    def counted(source: Stripes, index: int) -> torch.Tensor:
        found.append((source.split.value, index))
        if found[-1] in corrupt:
            raise CorruptImage(f"{source.split.value}/{index}", "the file is empty")
        return image(source, index)

    Stripes.image = counted
    try:
        chosen = {name: SETTINGS[name] for name in ("knn", "logistic", "health")}
        made = probe(**UNEVEN, evaluators=list(chosen), **chosen)
        model = made.evaluated_model(encoder())
        scores = {score.name: score.value for evaluator in made.evaluators for score in evaluator(model)}
        features = [(f.values, f.labels, f.index) for f in model.features(KNNConfig())]
        sizes = [part.batch_sizes for part in model.shards(KNNConfig())]
        corrupt_names = sorted({sample.name for sample in made.corrupt})
        return {"images": found, "features": features, "scores": scores, "sizes": sizes, "corrupt": corrupt_names}
    except NothingDecoded as error:
        return {"images": found, "error": str(error)}
    finally:
        Stripes.image = image


def everything(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {"uneven": scores(UNEVEN, list(SETTINGS)), "few": scores(FEW, ["knn", "low_shot"])}
    found |= {f"predictions, {division}": predictions(division) for division in DIVISIONS}
    videos = mosaic_probe(evaluators=["label_propagation"], label_propagation=LabelPropagationConfig())
    found["videos"] = {score.name: score.value for score in videos(encoder())}  # of 5: ranks have different numbers
    found["decoded"] = {name: decoded(corrupt) for name, corrupt in CORRUPT.items()}
    cache = FeatureCache(folder, {"data": "a"})
    model = probe(cache=cache, **UNEVEN).evaluated_model(encoder())
    found["written"] = [features.values for features in model.features(KNNConfig())]
    return found


def on_rank(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    init_method = f"file://{folder}/meeting_of_{world_size}"
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size)
    found = everything(folder / f"cache_of_{world_size}")
    found["all"] = on_all_ranks(True), on_all_ranks(rank > 0)
    try:  # bad features on one rank are refused on all, so that none waits for another
        bad = part(
            Features(TRAIN.values.clone().index_fill_(0, torch.tensor([0]), torch.nan), *labels_of(TRAIN)), [75] * 2
        )
        knn_predictions(bad, TEST, KNNConfig())
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"rank_{rank}_of_{world_size}.pt")
    dist.destroy_process_group()


def labels_of(features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    return features.labels, features.index


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one_process(folder) -> dict[str, object]:
    return everything(folder / "cache_of_1")


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, folder) -> list[dict[str, object]]:
    context, size = multiprocessing.get_context("spawn"), request.param
    processes = [context.Process(target=on_rank, args=(rank, size, folder)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(folder / f"rank_{rank}_of_{size}.pt") for rank in range(size)]


@pytest.mark.parametrize("data", ["uneven", "few"])
def test_every_score_of_every_rank_is_that_of_one_process(one_process, ranks, data):
    assert all(found[data] == one_process[data] for found in ranks)


def test_videos_of_several_ranks_score_as_those_of_one(one_process, ranks):
    assert all(found["videos"] == one_process["videos"] for found in ranks)


@pytest.mark.parametrize("division", DIVISIONS)
def test_predictions_and_weights_are_those_of_one_process_to_the_last_bit(one_process, ranks, division):
    expected = one_process[f"predictions, {division}"]
    for found in ranks:
        of_rank = found[f"predictions, {division}"]
        assert [name for name in expected if not torch.equal(of_rank[name], expected[name])] == []


def test_few_rows_are_those_that_were_asked_for(one_process):
    few = one_process["predictions, uneven"]
    assert few["of few"].tolist() == [60, 0, 59, 0] and torch.equal(few["few"], TEST.values[few["of few"]])
    assert torch.equal(few["complete"], TRAIN.values)


def test_cached_files_do_not_depend_on_the_number_of_ranks(one_process, ranks, folder):
    expected = {path.name: path.read_bytes() for path in (folder / "cache_of_1").iterdir()}
    found = {path.name: path.read_bytes() for path in (folder / f"cache_of_{len(ranks)}").iterdir()}
    assert found == expected and len(found) == 2


def test_a_file_of_several_ranks_is_read_by_one(one_process, ranks, folder):
    model = probe(cache=FeatureCache(folder / f"cache_of_{len(ranks)}", {"data": "a"}), **UNEVEN).evaluated_model(
        encoder()
    )
    model.encoder.forward = None  # nothing is encoded
    for features, written in zip(model.features(KNNConfig()), one_process["written"], strict=True):
        assert torch.equal(features.values, written)


def test_every_image_is_decoded_once_by_one_rank(one_process, ranks):
    assert sorted(one_process["decoded"]["none"]["images"]) == PLANNED
    images = [found["decoded"]["none"]["images"] for found in ranks]
    assert sorted(chain.from_iterable(images)) == PLANNED
    rounds = -(-10 // len(ranks)) + -(-2 // len(ranks))  # batches of 8 of both splits
    assert max(map(len, images)) <= 8 * rounds


@pytest.mark.parametrize("corrupt", ["none", "some"])
def test_features_and_scores_of_shared_images_are_those_of_one_process(one_process, ranks, corrupt):
    expected = one_process["decoded"][corrupt]
    for found in (found["decoded"][corrupt] for found in ranks):
        assert found["scores"] == expected["scores"] and found["sizes"] == expected["sizes"]
        for of_rank, of_one in zip(found["features"], expected["features"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(of_rank, of_one, strict=True))
    train, test = expected["sizes"]
    assert (train[3], sum(train), sum(test)) == ((0, 67, 12) if corrupt == "some" else (8, 77, 13))


def test_corrupt_images_are_reported_by_the_rank_that_read_them(one_process, ranks):
    names = sorted(f"{split}/{sample}" for split, sample in BAD)
    assert one_process["decoded"]["some"]["corrupt"] == names
    assert sorted(chain.from_iterable(found["decoded"]["some"]["corrupt"] for found in ranks)) == names


def test_all_ranks_refuse_images_of_which_none_can_be_decoded(ranks):
    errors = [found["decoded"]["all"]["error"] for found in ranks]
    assert all("none of 77 images for evaluation could be decoded: train/" in error for error in errors)


def test_a_flag_of_one_rank_reaches_all(ranks):
    assert all(found["all"] == (True, False) for found in ranks)


def test_bad_features_of_one_rank_are_refused_on_all(ranks):
    assert all("train features are not all finite" in found["refused"] for found in ranks)
