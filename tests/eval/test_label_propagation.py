import dataclasses
import math

import pytest
import torch
from tiny_maps import Mosaic, mosaic_probe
from tiny_probes import encoder, probe
from torch.nn.functional import normalize

from ssl_zoo.data.corruptions import CorruptionsConfig
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.maps import IGNORED
from ssl_zoo.data.video import Video
from ssl_zoo.eval.features import Pooling
from ssl_zoo.eval.label_propagation import LabelPropagationConfig, nearby, propagated


def scores(net=None, **settings) -> dict:
    made = mosaic_probe(evaluators=["label_propagation"], **settings)
    return {score.name.removeprefix("label_propagation_"): score for score in made(net or encoder())}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("neighbourhood", "k"), [(1, 3), (2, 5), (9, 200)])
def test_masks_are_those_of_a_slow_restatement(monkeypatch, neighbourhood, k):
    monkeypatch.setattr("ssl_zoo.eval.label_propagation._SIMILARITIES_AT_ONCE", 2 * 20 * 3)  # blocks of 3 patches
    grid, temperature = (4, 5), 0.1
    target, sources = normalize(random(20, 6), dim=-1), normalize(random(2, 20, 6, seed=1), dim=-1)
    masks = random(2, 20, 3, seed=2).softmax(dim=-1)
    is_near = nearby(grid, neighbourhood, torch.device("cpu"))
    found = propagated(target, sources, masks, is_near, k, temperature)
    for patch in range(20):
        row, column = divmod(patch, 5)
        candidates = [
            (math.exp(float(target[patch] @ sources[source, other]) / temperature), masks[source, other])
            for source in range(2)
            for other in range(20)
            if abs(other // 5 - row) <= neighbourhood and abs(other % 5 - column) <= neighbourhood
        ]
        nearest = sorted(candidates, key=lambda candidate: -candidate[0])[:k]
        expected = sum(weight * mask for weight, mask in nearest) / sum(weight for weight, _ in nearest)
        assert torch.allclose(found[patch], expected, atol=1e-5)


def test_the_objects_of_all_patches_are_found_again_where_nothing_moves():
    made = mosaic_probe(evaluators=["label_propagation"], label_propagation=LabelPropagationConfig(k=1))
    [evaluator], model = made.evaluators, made.evaluated_model(encoder())
    first = model.test.source.video(0)
    video = Video("still", first.frames[:1].expand(6, -1, -1, -1), first.objects[:1].expand(6, -1, -1))
    found = evaluator.propagate(model, video, 0)
    assert torch.equal(found[:, 1::4, 1::4], video.objects[:, 1::4, 1::4])  # corners are rounded by the upsampling


def test_objects_that_move_by_whole_patches_are_followed_and_scores_repeat():
    first, again = scores(), scores()
    assert first == again and list(first) == ["jf", "j", "f"]
    assert first["jf"].value == pytest.approx((first["j"].value + first["f"].value) / 2)
    assert first["j"].value > 0.7 and first["jf"].details["videos"] == 5
    still = scores(label_propagation=LabelPropagationConfig(neighbourhood=0))
    assert still["j"].value < first["j"].value - 0.2  # patches that may not move


def test_previous_frames_and_the_number_of_videos_are_part_of_the_protocol():
    every, alone, few = (
        scores(label_propagation=LabelPropagationConfig(**settings))["jf"]
        for settings in ({}, {"previous_frames": 0}, {"num_videos": 2})
    )
    assert len({score.protocol_hash for score in (every, alone, few)}) == 3 and len({every.value, few.value}) == 2
    assert few.details["videos"] == 2 and every.protocol["videos"] == 5


def test_the_first_and_the_last_frame_and_unknown_pixels_do_not_count(monkeypatch):
    expected = scores()["jf"].value
    video = Mosaic.video

    def changed(source: Mosaic, index: int) -> Video:
        found = video(source, index)
        objects = found.objects.clone()
        objects[-1] = 1
        return dataclasses.replace(found, objects=objects)

    monkeypatch.setattr(Mosaic, "video", changed)
    assert scores()["jf"].value == expected

    def unknown(source: Mosaic, index: int) -> Video:
        found = video(source, index)
        objects = found.objects.clone()
        objects[1:] = IGNORED
        return dataclasses.replace(found, objects=objects)

    monkeypatch.setattr(Mosaic, "video", unknown)
    assert scores()["jf"].value == 1  # nothing is wrong


def test_a_video_that_cannot_be_decoded_is_left_out_with_its_name(monkeypatch, caplog):
    video = Mosaic.video

    def corrupt(source: Mosaic, index: int) -> Video:
        if index in lost:
            raise CorruptImage(f"mosaic {index}", "the file is empty")
        return video(source, index)

    lost = {1}
    monkeypatch.setattr(Mosaic, "video", corrupt)
    assert scores()["jf"].details["videos"] == 4 and "mosaic 1: the file is empty" in caplog.text
    lost = set(range(5))
    with pytest.raises(ValueError, match="no video could be decoded"):
        scores()


def test_corruptions_change_the_frames():
    found = scores(corruptions=CorruptionsConfig(names=["gaussian_noise"], severities=[5]))
    assert found["jf/gaussian_noise"].value < found["jf"].value


def test_data_without_videos_and_other_poolings_are_refused():
    with pytest.raises(ValueError, match=r"the data has no videos; choose data=scenes or data=davis"):
        probe(evaluators=["label_propagation"])
    with pytest.raises(ValueError, match=r"probe\.label_propagation\.pooling=average must be tokens"):
        LabelPropagationConfig(pooling=Pooling.average)
