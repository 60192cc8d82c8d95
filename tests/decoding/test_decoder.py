"""A decoder of a tiny frozen method: what it is given, trains, saves and samples."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_methods import step_of, tiny_batch, tiny_method
from tiny_runs import ALONE, StopAfter, checkpointer_of, tiny_data

from ssl_zoo.decoding.blocks import FrozenPredictor, bounding_boxes, crops, predicting_methods
from ssl_zoo.decoding.decoder import BlockDecoder, DecoderConfig
from ssl_zoo.decoding.unet import UNet, UNetConfig
from ssl_zoo.engine.checkpoint.state import read_checkpoint
from ssl_zoo.engine.hooks import Checkpointer
from ssl_zoo.engine.optim import AdamWConfig
from ssl_zoo.engine.settings import Precision, TrainerConfig
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.method import METHODS

NETWORK = UNetConfig(dim=16, num_heads=2)


def tiny_decoder(name: str = "ijepa", **settings: object) -> BlockDecoder:
    config = DecoderConfig(**{"block_size": 8, "sampling_steps": 2, "network": NETWORK, **settings})
    predictor = FrozenPredictor(tiny_method(name))
    batch = tiny_batch(predictor.method, name)
    torch.manual_seed(0)
    decoder = BlockDecoder(config, predictor, channels=3, prediction_dim=predictor(batch).predictions.shape[1])
    decoder.fit_scale([batch])
    return decoder


def trainer(run: Path, decoder: BlockDecoder, *hooks: object) -> Trainer:
    config = TrainerConfig(batch_size=4, num_steps=4, checkpoint_every=2)
    return Trainer(
        decoder,
        tiny_data(decoder.predictor.method, ALONE, 4),
        ALONE,
        optim=AdamWConfig(),
        config=config,
        seed=0,
        precision=Precision.fp32,
        hooks=[*hooks, Checkpointer(run, config, {"method": "decoder", "config": {}})],
    )


@pytest.mark.parametrize("name", predicting_methods())
def test_the_condition_is_the_mean_of_what_each_block_predicts(name):
    method = tiny_method(name).eval()
    batch = tiny_batch(method, name)
    with torch.no_grad():
        predictions = method.predict_blocks(batch)
    wanted = batch.masks["image"].paired(batch.masks["image"].targets)
    assert predictions.shape[:-1] == wanted.shape
    blocks = FrozenPredictor(method)(batch)
    assert torch.equal(blocks.predictions, predictions.mean(-2).flatten(0, 2))
    assert len(blocks.keys.unique()) == len(blocks) == wanted[..., 0].numel()


def test_a_method_without_target_blocks_is_refused_with_those_that_have_them():
    for name in sorted(set(METHODS.names()) - set(predicting_methods())):
        with pytest.raises(ValueError, match=r"no target blocks.*: cae, data2vec, data2vec2, ijepa, mae, simmim"):
            FrozenPredictor(tiny_method(name))


def test_the_box_is_the_smallest_rectangle_around_the_patches():
    boxes = bounding_boxes(torch.tensor([[5, 6, 9, 10], [0, 3, 12, 15]]), (4, 4))
    assert boxes.tolist() == [[1, 1, 2, 2], [0, 0, 4, 4]]


def test_a_crop_at_the_size_of_its_box_is_the_patches_themselves():
    predictor = FrozenPredictor(tiny_method("ijepa"))
    batch = tiny_batch(predictor.method, "ijepa")
    blocks = predictor(batch)
    square = blocks[(blocks.boxes[:, 2:] == 2).all(1).nonzero().flatten()]
    assert len(square)
    cut = crops(batch.views["image"], square, (4, 4), 8)
    for pixels, image, (top, left, _, _) in zip(cut, square.images, square.boxes.tolist(), strict=True):
        expected = batch.views["image"][image, :, 4 * top : 4 * top + 8, 4 * left : 4 * left + 8]
        assert torch.allclose(pixels, expected, atol=1e-5)


def test_training_changes_the_generator_and_its_ema_and_nothing_of_the_frozen_method(tmp_path):
    decoder = tiny_decoder()
    frozen, before = copy.deepcopy(decoder.predictor.method.state_dict()), copy.deepcopy(decoder.state_dict())
    training = trainer(tmp_path, decoder)
    training.train()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in decoder.predictor.method.state_dict().items())
    assert not decoder.predictor.method.training
    after = decoder.state_dict()
    for part in ("network", "ema_network"):
        assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith(f"{part}."))
    assert not any("encoder" in name or "predictor" in name for name in after)


def test_a_resumed_decoder_is_bit_equal_to_an_uninterrupted_one(tmp_path):
    whole = trainer(tmp_path / "whole", tiny_decoder())
    whole.train()
    trainer(tmp_path / "parts", tiny_decoder(), StopAfter(2)).train()
    resumed = trainer(tmp_path / "parts", tiny_decoder())
    checkpointer_of(resumed).resume(resumed, read_checkpoint(tmp_path / "parts" / "checkpoints" / "step_00000002"))
    resumed.train()
    expected = whole.method.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.method.state_dict().items())


def test_a_sample_depends_on_its_seed_and_block_and_not_on_the_batch():
    decoder = tiny_decoder()
    torch.nn.init.normal_(decoder.ema_network.module.out.weight, std=0.1)
    blocks = decoder.predictor(tiny_batch(decoder.predictor.method, "ijepa"))
    together, alone = decoder.sample(blocks, [0, 1]), decoder.sample(blocks[torch.tensor([3])], [1])
    assert torch.allclose(alone[0, 0], together[3, 1], atol=1e-5)
    assert not torch.allclose(together[:, 0], together[:, 1], atol=0.1)
    assert torch.equal(decoder.sample(blocks, [0, 1]), together)


def test_the_figure_shows_the_block_of_each_image_that_varies_most(monkeypatch):
    decoder = tiny_decoder()
    batch = tiny_batch(decoder.predictor.method, "ijepa")
    blocks, images = decoder.predictor(batch), batch.views["image"].zero_()
    patch = images.shape[-1] // decoder.predictor.grid[1]
    last = len(blocks) // batch.num_images - 1
    for image, (top, left, height, width) in enumerate(
        (blocks.boxes.view(len(images), -1, 4)[:, last] * patch).tolist()
    ):
        images[image, :, top : top + height, left : left + width : 2] = 1.0
    shown = []
    monkeypatch.setattr("ssl_zoo.decoding.decoder.plot_samples", lambda batch, blocks, *_: shown.append(blocks))
    decoder.visualize(batch)
    assert torch.equal(shown[0].boxes, blocks.boxes.view(len(images), -1, 4)[:, last])
    assert torch.equal(shown[0].images, torch.arange(len(images)))


def test_the_loss_of_an_untrained_decoder_is_that_of_a_zero_velocity():
    decoder = tiny_decoder()
    batch = tiny_batch(decoder.predictor.method, "ijepa", num_images=64)
    loss = decoder(batch, step_of(decoder)).loss
    assert loss.isfinite() and 1.5 < loss < 2.1  # two unit variances, less where resized


def test_the_network_starts_at_zero_and_depends_on_time_and_condition():
    torch.manual_seed(0)
    network = UNet(NETWORK, channels=1, condition_dim=5)
    images, time, condition = torch.randn(2, 1, 8, 12), torch.tensor([0.2, 0.7]), torch.randn(2, 5)
    assert torch.equal(network(images, time, condition), torch.zeros_like(images))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    output = network(images, time, condition)
    assert output.shape == images.shape
    assert not torch.allclose(network(images, time + 0.1, condition), output)
    assert not torch.allclose(network(images, time, condition + 1), output)


def test_a_block_size_that_the_levels_do_not_divide_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"block_size=10 is no multiple of 4.*nearest: 8"):
        DecoderConfig(block_size=10)
