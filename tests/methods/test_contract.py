"""What every registered method owes to the engine, to its users and to the other methods."""

import copy
import dataclasses
from collections.abc import Mapping

import pytest
import torch
from tiny_methods import METHODS, Tiny, tiny_method
from torch import Tensor

from ssl_zoo.engine.graphs import unreadable_progress
from ssl_zoo.engine.optim import AdamWConfig, Optimization, RateSchedules
from ssl_zoo.masks import Masks
from ssl_zoo.method import Step
from ssl_zoo.regularizers import REGULARIZERS, Place, Regularizer, RegularizerConfig
from ssl_zoo.world import World


def test_the_loss_is_a_finite_float32_scalar_that_needs_gradients(tiny: Tiny) -> None:
    loss = tiny.output().loss
    assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() and loss.requires_grad


def test_metrics_are_detached_scalars(tiny: Tiny) -> None:
    metrics = tiny.output().metrics
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_gradients_reach_every_trainable_parameter_and_no_ema_weight(tiny: Tiny) -> None:
    tiny.output().loss.backward()
    without = [n for n, p in tiny.method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    frozen = [p for ema in tiny.method.emas() for p in ema.copy.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_the_loss_falls_over_thirty_steps_on_one_batch(tiny: Tiny) -> None:
    config = AdamWConfig(warmup_epochs=0, lr=3e-3)
    schedules = RateSchedules(config, num_steps=30, steps_per_epoch=30)
    optimization = Optimization(config, tiny.method.param_groups(), schedules)
    losses = []
    for step in range(30):
        optimization.set_rates(step)
        loss = tiny.output().loss
        loss.backward()
        optimization.optimizer.step()
        optimization.optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]  # absolute errors on noise are learned slowly


def test_the_same_seed_gives_the_same_loss_and_another_seed_another(tiny: Tiny) -> None:
    first, again, other = (tiny.rebuilt(seed)(tiny.batch, tiny.step).loss for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_forward_changes_no_parameter_or_buffer(tiny: Tiny) -> None:
    before = copy.deepcopy(tiny.method.state_dict())
    tiny.output()
    assert all(torch.equal(value, before[name]) for name, value in tiny.method.state_dict().items())


def test_a_state_dict_carries_everything_that_decides_the_loss(tiny: Tiny) -> None:
    other = tiny.rebuilt(seed=1)
    other.load_state_dict(tiny.method.state_dict())
    assert torch.equal(other(tiny.batch, tiny.step).loss, tiny.output().loss)


def test_ema_weights_move_by_one_minus_momentum_of_the_difference(tiny: Tiny) -> None:
    for ema in tiny.method.emas():
        with torch.no_grad():
            for parameter in ema.online.parameters():
                parameter.add_(1.0)
        before = {n: p.clone() for n, p in ema.copy.module.named_parameters()}
        momentum = ema.update(0.25)
        online = dict(ema.online.named_parameters())
        for name, parameter in ema.copy.module.named_parameters():
            expected = momentum * before[name] + (1 - momentum) * online[name]
            torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-6)


def test_ema_weights_start_as_an_exact_copy_and_stay_in_eval_mode(tiny: Tiny) -> None:
    tiny.method.train()
    for ema in tiny.method.emas():
        online = ema.online.state_dict()
        assert all(torch.equal(value, online[name]) for name, value in ema.copy.module.state_dict().items())
        assert not any(module.training for module in ema.copy.modules())


def test_every_trainable_parameter_is_in_exactly_one_group(tiny: Tiny) -> None:
    grouped = [id(p) for group in tiny.method.param_groups() for p in group.params]
    assert sorted(grouped) == sorted(id(p) for p in tiny.method.parameters() if p.requires_grad)


def test_the_evaluated_encoder_gives_every_patch_a_feature_without_masks(tiny: Tiny) -> None:
    encoder = tiny.method.eval_encoder()
    tokens = encoder(next(iter(tiny.batch.views.values())))
    assert tokens.shape == (8, encoder.num_prefix_tokens + 16, 48)


def test_bf16_autocast_gives_nearly_the_same_loss(tiny: Tiny) -> None:
    exact = tiny.output().loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = tiny.output().loss
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_figures_have_a_title_and_titled_columns_with_a_panel_in_the_unit_range_for_each_image(tiny: Tiny) -> None:
    figures = tiny.method.visualize(tiny.batch)
    assert figures and all(figure.title and figure.num_rows == 8 for figure in figures.values())
    for column in (column for figure in figures.values() for column in figure.columns):
        assert column.title and len(column.images) == 8 and column.images.isfinite().all()


def test_a_figure_with_hidden_patches_has_a_legend(tiny: Tiny) -> None:
    figures = tiny.method.visualize(tiny.batch)
    assert all(figures[name].legend for name in ("masks", "features", "reconstructions") if name in figures)


def _flipped(masks: Masks) -> Masks:
    return masks.map(lambda t: t.flip(1) if t.dtype == torch.bool else 15 - t)


def test_masks_from_outside_decide_what_is_predicted(tiny: Tiny) -> None:
    if not tiny.batch.masks:
        pytest.skip("this method has no masks")
    flipped = dataclasses.replace(tiny.batch, masks={name: _flipped(masks) for name, masks in tiny.batch.masks.items()})
    assert not torch.equal(tiny.output(batch=flipped).loss, tiny.output().loss)


def test_the_forward_pass_reads_no_progress_so_that_a_cuda_graph_of_it_can_be_replayed(tiny: Tiny) -> None:
    step = Step(unreadable_progress(tiny.method), tiny.step.values)
    assert torch.equal(tiny.method(tiny.batch, step).loss, tiny.output().loss)


def test_a_regularizer_gets_float32_features_of_every_place_with_gradient_and_its_terms_are_added(tiny: Tiny) -> None:
    class Mean(Regularizer):
        def terms(self, samples: Tensor, values: Mapping[str, Tensor], world: World) -> Mapping[str, Tensor]:
            assert samples.requires_grad and samples.ndim == 3 and samples.dtype is torch.float32
            assert len(samples) == 8 or self.config.apply_to is Place.tokens
            return {"mean": samples.square().mean()}

    without = tiny.output().loss
    for place in tiny.method.regularizes:
        tiny.method.regularizer = Mean(RegularizerConfig(weight=0.5, apply_to=place))
        output = tiny.output()
        torch.testing.assert_close(output.loss, without + output.losses["mean"])


def test_regularizers_read_no_progress_and_their_gradient_reaches_the_encoder(tiny: Tiny) -> None:
    for name in REGULARIZERS.names():
        for place in tiny.method.regularizes:
            tiny.method.regularizer = REGULARIZERS.build(REGULARIZERS.config_of(name)(apply_to=place))
            output = tiny.method(tiny.batch, Step(unreadable_progress(tiny.method), tiny.step.values))
            terms = [term for key, term in output.losses.items() if key.startswith(name)]
            gradient = torch.autograd.grad(sum(terms), tiny.method.encoder.blocks[0].mlp.fc1.weight)[0]
            assert terms and gradient.isfinite().all() and gradient.any(), (name, place)


def test_a_place_without_features_is_refused_with_those_that_the_method_has(tiny: Tiny) -> None:
    for place in set(Place) - set(tiny.method.regularizes):
        with pytest.raises(ValueError, match=f"^regularizer.apply_to={place.value}: .* has no such features; it has"):
            tiny_method(tiny.name, regularizer=REGULARIZERS.config_of("vicreg")(apply_to=place))


def test_the_alarm_knows_metrics_of_learned_targets_and_none_of_targets_that_the_data_decide(tiny: Tiny) -> None:
    watched = {limit.metric for limit in tiny.method.collapse_limits()}
    assert watched <= tiny.output().metrics.keys()
    assert watched or not tiny.method.emas()
    assert not (watched and METHODS.get(tiny.name).default_targets == "pixels")
