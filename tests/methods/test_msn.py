"""MSN against its formulas."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_methods import TINY_BACKBONE, step_of, tiny_batch, tiny_method, tiny_views
from tiny_runs import StopAfter, checkpointer_of, tiny_trainer

from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import build_views
from ssl_zoo.engine.checkpoint.state import list_checkpoints, read_checkpoint
from ssl_zoo.losses.self_distillation import sinkhorn
from ssl_zoo.masks import MASKS, Masks
from ssl_zoo.method import METHODS, Clip, Method, Progress, build_method
from ssl_zoo.nn import Positions, ViTConfig
from ssl_zoo.plotting import GREY
from ssl_zoo.targets import TeacherConfig
from ssl_zoo.world import World

VIEWS = {spec.name: spec for spec in build_views(tiny_views("msn"), TINY_BACKBONE)}


@pytest.fixture
def method() -> Method:
    return tiny_method("msn", head_batch_norm=False)


@pytest.fixture
def batch(method: Method) -> Batch:
    return tiny_batch(method, "msn")


@pytest.mark.parametrize("iterations", [0, 3])
def test_the_loss_equals_an_independent_loop_over_anchors_and_images(iterations: int) -> None:
    settings = {"sinkhorn_iterations": iterations, "me_max_weight": 2.0, "entropy_weight": 0.3}
    method = tiny_method("msn", head_batch_norm=False, **settings)
    batch, world = tiny_batch(method, "msn"), World()
    prototypes = F.normalize(method.prototypes, dim=1)
    full = method.target_head(method.target_encoder(batch.views["global_0"]).mean(1), world)
    temperature = step_of(method).values["target_temp"]
    assert 0.025 < temperature < 0.05  # warming up
    targets = (F.normalize(full, dim=1) @ prototypes.T / temperature).softmax(1)
    targets = sinkhorn(targets.log(), world, iterations)
    crossed, distributions = [], []
    for name in ("global_1", "local_0", "local_1"):
        for i in range(8):
            image = batch.views[name][i : i + 1]
            kept = batch.masks[name].context[i] if name == "global_1" else None
            z = F.normalize(method.head(method.encoder(image, keep=kept).mean(1), world)[0], dim=0)
            p = (prototypes @ z / 0.1).softmax(0)
            crossed.append(-(targets[i] * p.log()).sum())
            distributions.append(p)
    p = torch.stack(distributions)
    mean = p.mean(0)
    gap = math.log(32) + (mean * mean.log()).sum()
    expected = torch.stack(crossed).mean() + 2.0 * gap - 0.3 * (p * p.log()).sum(1).mean()
    output = method(batch, step_of(method))
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.metrics["me_max_gap"], gap.detach())


def test_sharpening_with_a_quarter_is_a_quarter_of_the_temperature() -> None:
    cosines = 2 * torch.rand(5, 7) - 1
    sharpened = (cosines / 0.1).softmax(-1) ** (1 / 0.25)
    torch.testing.assert_close(sharpened / sharpened.sum(-1, keepdim=True), (cosines / 0.025).softmax(-1))


def test_the_encoder_sees_167_tokens_of_a_224_pixel_crop_with_15_percent_of_the_patches_dropped() -> None:
    backbone = ViTConfig(embed_dim=48, depth=1, num_heads=4, class_token=True, positions=Positions.learned)
    method = build_method(tiny_method("msn").config, backbone, None, seed=0)
    context = MASKS.build(MASKS.config_of("random")(mask_ratio=0.15), (14, 14))(2, torch.Generator()).context
    views = {"global_0": torch.randn(2, 3, 224, 224), "global_1": torch.randn(2, 3, 224, 224)}
    seen = []
    method.encoder.norm.register_forward_hook(lambda *arguments: seen.append(arguments[-1].shape[1]))
    method(Batch(views, {"global_1": Masks(context, context[:, :, :0])}), step_of(method))
    assert seen == [167]


def test_dropped_patches_do_not_matter(method: Method, batch: Batch) -> None:
    shown = torch.zeros(8, 16, dtype=torch.bool).scatter(1, batch.masks["global_1"].context[:, 0], True)
    pixels = shown.unflatten(1, (4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    anchor = batch.views["global_1"].where(pixels, torch.randn(8, 3, 16, 16))
    changed = replace(batch, views={**batch.views, "global_1": anchor})
    torch.testing.assert_close(method(changed, step_of(method)).loss, method(batch, step_of(method)).loss)


def test_batch_statistics_are_those_of_the_crops_of_one_size() -> None:
    method = tiny_method("msn")
    seen = []
    method.head.bn1.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    method(tiny_batch(method, "msn"), step_of(method))
    assert seen == [8, 16]  # the masked crops; both focal crops of each image


def test_no_gradient_reaches_the_prototypes_through_the_targets(method: Method, batch: Batch) -> None:
    method(batch, step_of(method)).loss.backward()
    without = method.prototypes.grad.clone()
    original = method.target_head.forward
    method.target_head.forward = lambda *arguments: original(*arguments).detach()
    method.zero_grad()
    method(batch, step_of(method)).loss.backward()
    assert torch.equal(method.prototypes.grad, without) and without.any()


def test_prototypes_are_neither_decayed_nor_clipped_nor_in_the_ema_weights(method: Method) -> None:
    [group] = [g for g in method.param_groups() if any(p is method.prototypes for p in g.params)]
    assert (len(group.params), group.decay, group.clip) == (1, False, Clip.none)
    assert all(g.clip is Clip.globally for g in method.param_groups() if g.name != "prototypes")
    assert not any("prototypes" in name for ema in method.emas() for name in ema.copy.state_dict())
    assert method.prototypes.abs().max() <= 16**-0.5 and method.prototypes.std() > 0.5 * 16**-0.5


def test_the_target_temperature_falls_during_its_warm_up() -> None:
    schedule = tiny_method("msn").schedules()["target_temp"]
    temperatures = [schedule(Progress(step, 600, 0, steps_per_epoch=2)) for step in (0, 30, 60, 600)]
    assert temperatures == pytest.approx([0.05, 0.0375, 0.025, 0.025])


def test_a_resumed_run_with_batch_normalization_is_bit_equal(tmp_path: Path) -> None:
    def train(folder: Path, stop: int | None = None) -> None:
        hooks = [] if stop is None else [StopAfter(stop)]
        trainer = tiny_trainer(folder, method=tiny_method("msn", sinkhorn_iterations=3), masks="random", hooks=hooks)
        if found := list_checkpoints(folder):
            checkpointer_of(trainer).resume(trainer, read_checkpoint(found[-1]))
        trainer.train()

    train(tmp_path / "whole")
    train(tmp_path / "cut", stop=3)
    train(tmp_path / "cut")
    whole, cut = (load_file(list_checkpoints(tmp_path / name)[-1] / "method.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(cut[name], tensor) for name, tensor in whole.items())
    assert not any("running" in name or "num_batches" in name for name in whole)


def test_the_target_encoder_is_evaluated(method: Method) -> None:
    assert method.eval_encoder() is method.target_encoder.module


def test_crops_are_plotted_with_dropped_patches_in_grey(method: Method, batch: Batch) -> None:
    target, anchor, *focal = method.visualize(batch)["crops"].columns
    assert torch.equal(target.images, batch.pixels("global_0")) and len(focal) == 2
    visible = batch.masks["global_1"].context.shape[-1] / 16
    assert (anchor.images == GREY).all(dim=1).float().mean().item() == pytest.approx(1 - visible)


def test_parts_that_it_has_no_use_for_are_refused(method: Method, batch: Batch) -> None:
    method.check_inputs(VIEWS, batch.masks)
    with pytest.raises(ValueError, match="targets=null"):
        build_method(method.config, TINY_BACKBONE, TeacherConfig(), seed=0)
    with pytest.raises(ValueError, match="masks=random"):
        method.check_inputs(VIEWS, {})
    with pytest.raises(ValueError, match=r"2 contexts; set masks\.num_masks=1"):
        context = batch.masks["global_1"].context.expand(-1, 2, -1)
        method.check_inputs(VIEWS, {"global_1": Masks(context, context[:, :, :0])})
    with pytest.raises(ValueError, match=r"list none; choose others, e\.g\. masks=random"):
        method.check_inputs(VIEWS, tiny_batch(tiny_method("ibot"), "ibot").masks)


@pytest.mark.parametrize(("key", "value"), [("anchor_temp", 0.0), ("target_temp", 0.0), ("me_max_weight", -1.0)])
def test_settings_that_make_no_sense_name_their_keys(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"method.{key}={value}"):
        METHODS.config_of("msn")(**{key: value})
