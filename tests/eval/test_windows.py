import pytest
import torch
import torch.nn.functional as F
from tiny_maps import COLORS, Mosaic, mosaic_probe
from tiny_probes import encoder

from ssl_zoo.data.corruptions import CorruptionsConfig
from ssl_zoo.data.maps import IGNORED
from ssl_zoo.eval.dense import Encoding
from ssl_zoo.eval.segmentation import SegmentationConfig
from ssl_zoo.eval.windows import averaged, corners, covering_size, cut

QUICK = {"epochs": 6, "batch_size": 6, "lrs": [0.003, 0.1], "crop_scale": [0.6, 1.0]}


def scores(sliding: bool, corrupt: tuple[int, ...] = (), **settings) -> dict:
    segmentation = SegmentationConfig(**QUICK, sliding=sliding)
    made = mosaic_probe(evaluators=["segmentation"], segmentation=segmentation, corrupt=corrupt, **settings)
    return {score.name: score for score in made(encoder())}


def mmsegmentation(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows along one side as mmsegmentation's slide_inference has them."""
    starts = []
    for number in range(max(length - window + stride - 1, 0) // stride + 1):
        stop = min(number * stride + window, length)
        starts.append(max(stop - window, 0))
    return starts


@pytest.mark.parametrize("size", [(512, 512), (512, 683), (512, 853), (900, 512), (700, 1366)])
def test_windows_are_those_of_mmsegmentation(size):
    rows, columns = (mmsegmentation(length, 512, 341) for length in size)
    assert corners(size, (512, 512), 2 / 3) == [(row, column) for row in rows for column in columns]


def test_images_are_resized_to_the_shorter_side_of_the_window():
    assert covering_size(480, 640, (512, 512)) == (512, 683)
    assert covering_size(2000, 1000, (512, 512)) == (1024, 512)
    assert covering_size(100, 300, (64, 192)) == (64, 192)
    height, width = covering_size(333, 1000, (64, 192))
    assert height >= 64 and width >= 192


def test_outputs_are_averaged_over_the_windows_that_show_a_pixel():
    size, window = (16, 30), (16, 16)
    places = corners(size, window, 0.5)
    outputs = torch.randn(len(places), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    upsampled = F.interpolate(outputs, window, mode="bilinear")
    found = averaged(outputs, places, window, size)
    for row in range(16):
        for column in range(30):
            seen = [
                upsampled[number, :, row - top, column - left]
                for number, (top, left) in enumerate(places)
                if top <= row < top + 16 and left <= column < left + 16
            ]
            assert torch.allclose(found[0, :, row, column], torch.stack(seen).mean(dim=0), atol=1e-6)


def test_windows_put_together_are_the_image():
    image = torch.randn(3, 16, 41, generator=torch.Generator().manual_seed(0))
    places = corners((16, 41), (16, 16), 0.6)
    together = torch.full_like(image, torch.nan)
    for part, (top, left) in zip(cut(image, places, (16, 16)), places, strict=True):
        together[:, top : top + 16, left : left + 16] = part
    assert torch.equal(together, image)


def test_one_window_that_covers_all_scores_as_no_window():
    whole, slid = scores(sliding=False, corrupt=(3,)), scores(sliding=True, corrupt=(3,))
    assert {name: score.value for name, score in whole.items()} == {name: score.value for name, score in slid.items()}
    assert whole["segmentation_miou"].protocol_hash != slid["segmentation_miou"].protocol_hash
    assert "sliding" not in whole["segmentation_miou"].protocol  # the hash of earlier versions


class Wide(Mosaic):
    """Mosaics of 4 x 7 patches, of 16 x 28 pixels."""

    image_size = None

    def classes_of(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(3, (4, 7), generator=generator).repeat_interleave(4, 0).repeat_interleave(4, 1)

    def image(self, index: int) -> torch.Tensor:
        return COLORS[self.classes_of(index)].permute(2, 0, 1).contiguous()


def test_windows_score_all_pixels_of_an_image_and_the_crop_those_in_its_middle(monkeypatch):
    monkeypatch.setattr("tiny_maps.Mosaic", Wide)
    counts = []
    for sliding in (False, True):
        config = SegmentationConfig(**QUICK, sliding=sliding)
        made = mosaic_probe(evaluators=["segmentation"], segmentation=config)
        [evaluator], model = made.evaluators, made.evaluated_model(encoder())
        encoding, map_set = Encoding(model, config), model.test.source.map_sets["segmentation"]
        heads = evaluator._trained(encoding, model, model.train.index, map_set).only(1)
        found = list(evaluator.outputs(encoding, heads, model.test, model.test.index))
        sums = sum(evaluator.sums(next(iter(outputs)), maps, map_set) for outputs, maps in found)
        assert evaluator.measures(sums)["segmentation_accuracy"].value > 0.6
        counts.append(int(sums.sum()))
    source = model.test.source
    maps = [source.image_and_map(sample, "segmentation")[1] for sample in model.test.index.tolist()]
    assert counts[1] == sum(int((classes != IGNORED).sum()) for classes in maps) > counts[0]


def test_corrupted_images_are_slid_over_as_well():
    found = scores(sliding=True, corruptions=CorruptionsConfig(names=["gaussian_noise"], severities=[5]))
    assert found["segmentation_miou/gaussian_noise"].value < found["segmentation_miou"].value
