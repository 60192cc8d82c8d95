import json
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tiny_maps import Mosaic, mosaic_probe
from tiny_probes import encoder, probe

from ssl_zoo.data import dense as dense_data
from ssl_zoo.data.maps import IGNORED, MapSet
from ssl_zoo.eval.dense import DenseConfig, Encoding
from ssl_zoo.eval.depth import Depth, DepthConfig
from ssl_zoo.eval.features import Pooling
from ssl_zoo.eval.retrieval import RetrievalConfig
from ssl_zoo.eval.segmentation import Segmentation, SegmentationConfig

QUICK = {"epochs": 6, "batch_size": 6, "lrs": [0.003, 0.1]}
SEGMENTATION = SegmentationConfig(**QUICK, crop_scale=[0.6, 1.0])
DEPTH = DepthConfig(**QUICK, num_bins=16)
CLASSES = MapSet(num_classes=5)
METRES = MapSet(max_depth=10.0)


def dense_scores(num_test: int = 11, corrupt: tuple[int, ...] = (), **settings) -> dict[str, float]:
    sections = {"segmentation": SEGMENTATION, "depth": DEPTH, **settings}
    checked = mosaic_probe(num_test=num_test, corrupt=corrupt, evaluators=list(sections), **sections)
    return {score.name: score for score in checked(encoder())}


def test_probes_learn_what_mosaics_show_and_repeat_without_the_global_random_state():
    state = torch.get_rng_state()
    first, second = dense_scores(), dense_scores()
    assert first == second and torch.equal(torch.get_rng_state(), state)
    assert list(first) == [
        *("segmentation_miou", "segmentation_accuracy"),
        *("depth_rmse", "depth_abs_rel", "depth_delta1"),
    ]
    assert first["segmentation_miou"].value > 0.7 and first["segmentation_miou"].details["lr"] == 0.1
    assert first["depth_rmse"].value < 2 and first["depth_delta1"].value > 0.5  # a constant depth: rmse 2.4
    assert not first["depth_rmse"].is_fraction and first["depth_delta1"].is_fraction


def test_miou_and_accuracy_are_those_of_a_slow_restatement():
    torch.manual_seed(0)
    outputs, maps = torch.randn(3, 5, 4, 4), torch.randint(4, (3, 16, 16), dtype=torch.uint8)  # class 4 is absent
    maps[0, :5] = IGNORED
    outputs[:, 3] -= 9  # class 3 is never predicted
    evaluator = Segmentation(SegmentationConfig())
    sums = sum(evaluator.sums(outputs[i : i + 1], maps[i : i + 1], CLASSES) for i in range(3))
    measures = evaluator.measures(sums)
    predicted = F.interpolate(outputs, (16, 16), mode="bilinear").argmax(dim=1)
    pairs = list(zip(predicted.flatten().tolist(), maps.flatten().tolist(), strict=True))
    pairs = [pair for pair in pairs if pair[1] != IGNORED]
    ious = []
    for number in range(5):
        union = sum(number in pair for pair in pairs)
        if union:
            ious.append(sum(pair == (number, number) for pair in pairs) / union)
    assert measures["segmentation_miou"].value == pytest.approx(sum(ious) / len(ious))
    assert measures["segmentation_accuracy"].value == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_depth_errors_are_those_of_a_slow_restatement_and_means_over_images():
    torch.manual_seed(0)
    outputs, maps = torch.randn(3, 8, 4, 4), 0.5 + 9 * torch.rand(3, 16, 16)
    maps[0, :9], maps[2] = 0, 0  # unknown, the last image everywhere
    evaluator = Depth(DepthConfig(num_bins=8))
    measures = evaluator.measures(evaluator.sums(outputs, maps, METRES))
    predicted = evaluator.predicted(outputs, maps, METRES)
    rmse, relative, delta = [], [], []
    for image in range(2):
        pairs = zip(predicted[image].flatten().tolist(), maps[image].flatten().tolist(), strict=True)
        pairs = [(p, t) for p, t in pairs if t > 0]
        rmse.append(math.sqrt(sum((p - t) ** 2 for p, t in pairs) / len(pairs)))
        relative.append(sum(abs(p - t) / t for p, t in pairs) / len(pairs))
        delta.append(sum(max(p / t, t / p) < 1.25 for p, t in pairs) / len(pairs))
    for name, values in (("rmse", rmse), ("abs_rel", relative), ("delta1", delta)):
        assert measures[f"depth_{name}"].value == pytest.approx(sum(values) / 2, rel=1e-5)


def test_unknown_pixels_change_neither_loss_nor_gradient():
    torch.manual_seed(0)
    classes, depths = torch.randint(5, (2, 16, 16), dtype=torch.uint8), 1 + 8 * torch.rand(2, 16, 16)
    for evaluator, maps, kind in (
        (Segmentation(SegmentationConfig()), classes, CLASSES),
        (Depth(DepthConfig(num_bins=5)), depths, METRES),
    ):
        outputs = torch.randn(3, 5, 4, 4, requires_grad=True)
        with_unknown = torch.cat([maps, kind.unknown.expand(1, 16, 16)])
        (loss, count), (expected, known) = (
            evaluator.loss(outputs, with_unknown, kind),
            evaluator.loss(outputs[:2], maps, kind),
        )
        assert torch.allclose(loss, expected) and count == known
        [gradient] = torch.autograd.grad(loss, outputs)
        assert gradient[2].abs().max() == 0 and gradient[:2].isfinite().all()


def test_the_depth_loss_weights_the_mean_log_ratio_less_than_its_spread():
    torch.manual_seed(0)
    evaluator, outputs, maps = Depth(DepthConfig(num_bins=8)), torch.randn(1, 8, 4, 4), 4 + torch.rand(1, 16, 16)
    g = evaluator.predicted(outputs, maps, METRES).log() - maps.log()
    expected = (g.var(correction=0) + 0.15 * g.mean().square()).sqrt()
    assert evaluator.loss(outputs, maps, METRES)[0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_heads_that_train_together_equal_heads_that_train_alone():
    checked = mosaic_probe(evaluators=["segmentation"], segmentation=SEGMENTATION)
    model, (evaluator,) = checked.evaluated_model(encoder()), checked.evaluators
    index, kind = model.train.index, model.train.source.map_sets["segmentation"]
    together = evaluator._trained(Encoding(model, SEGMENTATION), model, index, kind)
    for head, lr in enumerate(SEGMENTATION.lrs):
        alone = SegmentationConfig(**{**QUICK, "lrs": [lr]}, crop_scale=[0.6, 1.0])
        [expected] = Segmentation(alone)._trained(Encoding(model, alone), model, index, kind).weights
        assert torch.allclose(together.weights[head], expected, atol=1e-5)
    assert not torch.allclose(*together.weights, atol=1e-3)


def test_more_layers_give_wider_tokens_and_another_protocol():
    one, two = (
        dense_scores(segmentation=SegmentationConfig(**QUICK, num_layers=n))["segmentation_miou"] for n in (1, 2)
    )
    assert one.value != two.value and one.protocol_hash != two.protocol_hash
    with pytest.raises(ValueError, match=r"probe\.depth\.num_layers=3, but the encoder has 2 blocks"):
        dense_scores(depth=DepthConfig(num_layers=3))


def test_images_that_cannot_be_decoded_count_nowhere_and_are_reported():
    scores = dense_scores(num_test=13, corrupt=(11, 12))
    assert {name: score.value for name, score in scores.items()} == {
        name: score.value for name, score in dense_scores(num_test=11).items()
    }
    checked = mosaic_probe(num_test=13, corrupt=(11, 12), evaluators=["depth"], depth=DEPTH)
    checked(encoder())
    assert [sample.name for sample in checked.corrupt] == ["mosaic/test/11", "mosaic/test/12"]


def test_wrong_settings_and_data_without_maps_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"can't run: the data has no maps 'depth' for it; choose another data="):
        probe(evaluators=["depth"])
    with pytest.raises(ValueError, match=r"no maps 'depth' for it; set probe\.segmentation\.maps to segmentation"):
        mosaic_probe(evaluators=["segmentation"], segmentation=SegmentationConfig(maps="depth"))
    with pytest.raises(ValueError, match=r"probe\.depth\.pooling=average must be tokens"):
        DepthConfig(pooling=Pooling.average)
    with pytest.raises(ValueError, match=r"crop_scale=\[1\.0, 0\.5\] must be \[low, high\]"):
        SegmentationConfig(crop_scale=[1.0, 0.5])
    with pytest.raises(ValueError, match=r"lrs=\[\] must have at least one"):
        DenseConfig(lrs=[])


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    """Nothing per image outlives a step, apart from the cache of pairs, whose size is bounded."""
    monkeypatch.setattr(dense_data, "_CACHED_BYTES", 0)
    largest = []
    tokens = Encoding.tokens
    monkeypatch.setattr(Encoding, "tokens", lambda self, images: largest.append(len(images)) or tokens(self, images))
    checked = mosaic_probe(num_train=40, evaluators=["segmentation"], segmentation=SEGMENTATION)
    checked(encoder())
    model = checked.evaluated_model(encoder())
    assert max(largest) == 6 and not model.train.pairs("segmentation")._cached


RETRIEVAL = {"evaluators": ["retrieval"], "retrieval": RetrievalConfig()}
CASES = {"11 images": 11, "fewer images than ranks in the last batch": 7}


def sliding_scores() -> dict[str, float]:
    sliding = SegmentationConfig(**QUICK, sliding=True)
    return {s.name: s.value for s in mosaic_probe(evaluators=["segmentation"], segmentation=sliding)(encoder())}


def _score_on_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    cases = {case: count for case, count in CASES.items() if world_size == 2}
    found = {case: {n: s.value for n, s in dense_scores(num_test=count).items()} for case, count in cases.items()}
    found["sliding"] = sliding_scores()
    found["retrieval"] = {score.name: score.value for score in probe(**RETRIEVAL)(encoder())}
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_score_as_one_where_batches_are_uneven(tmp_path, world_size):
    mp.spawn(_score_on_rank, (world_size, str(tmp_path)), nprocs=world_size)
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world_size))
    assert all(other == first for other in others)
    for case in CASES.keys() & first.keys():
        expected = {name: score.value for name, score in dense_scores(num_test=CASES[case]).items()}
        assert first[case] == pytest.approx(expected, rel=1e-3)  # sums of gradients in another order
    assert first["sliding"] == pytest.approx(sliding_scores(), rel=1e-3)  # 2 held-out images: none on some ranks
    assert first["retrieval"] == {score.name: score.value for score in probe(**RETRIEVAL)(encoder())}


def test_images_without_any_known_pixel_are_refused_with_their_split(monkeypatch):
    monkeypatch.setattr(Mosaic, "image_and_map", lambda self, i, _: (self.image(i), torch.zeros(16, 16)))
    with pytest.raises(ValueError, match="depth: no pixel of 2 train images has a label"):
        dense_scores(depth=DEPTH)
