"""SimCLR against its formulas."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import TINY_BACKBONE, step_of, tiny_batch, tiny_method, tiny_views
from torch import nn

from ssl_zoo.engine.build import build_views
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.targets import TeacherConfig

VIEWS = {spec.name: spec for spec in build_views(tiny_views("simclr"), TINY_BACKBONE)}


def reference_projector(method: Method) -> nn.Sequential:
    """MoCo v3's projector from torch's layers, with the method's weights."""
    head = method.head
    norms = [nn.BatchNorm1d(32), nn.BatchNorm1d(32), nn.BatchNorm1d(16, affine=False)]
    for own, other in zip((head.bn1, head.bn2), norms, strict=False):
        other.load_state_dict(own.state_dict(), strict=False)
    return nn.Sequential(head.fc1, norms[0], nn.ReLU(), head.fc2, norms[1], nn.ReLU(), head.fc3, norms[2])


def test_the_loss_equals_the_papers_on_projections_of_both_crops() -> None:
    method = tiny_method("simclr", temperature=0.3)
    batch = tiny_batch(method, "simclr")
    crops = torch.cat([batch.views["global_0"], batch.views["global_1"]])
    z = F.normalize(reference_projector(method)(method.encoder(crops).mean(dim=1)), dim=1)
    similarity = (z @ z.T / 0.3).exp()
    losses = []
    for i in range(16):
        positive = similarity[i, (i + 8) % 16]
        losses.append(-(positive / (similarity[i].sum() - similarity[i, i])).log())
    output = method(batch, step_of(method))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    nearest = (z @ z.T).fill_diagonal_(-2).argmax(dim=1)
    hits = (nearest == torch.arange(16).roll(8)).float().mean()
    torch.testing.assert_close(output.metrics["contrastive_accuracy"], hits)


def test_both_crops_are_treated_alike() -> None:
    method = tiny_method("simclr")
    batch = tiny_batch(method, "simclr")
    swapped = {"global_0": batch.views["global_1"], "global_1": batch.views["global_0"]}
    losses = [method(of, step_of(method)).loss for of in (batch, replace(batch, views=swapped))]
    torch.testing.assert_close(*losses)


def test_a_frozen_patch_embedding_has_no_gradient_and_is_in_no_group() -> None:
    method = tiny_method("simclr")
    method(tiny_batch(method, "simclr"), step_of(method)).loss.backward()
    frozen = list(method.encoder.patch_embed.parameters())
    assert frozen and all(p.grad is None and not p.requires_grad for p in frozen)
    grouped = {id(p) for group in method.param_groups() for p in group.params}
    assert not grouped & {id(p) for p in frozen}
    trained = tiny_method("simclr", freeze_patch_embed=False)
    assert all(p.requires_grad for p in trained.encoder.patch_embed.parameters())


def test_the_default_projector_has_as_many_parameters_as_moco_v3s() -> None:
    small = replace(TINY_BACKBONE, embed_dim=384, num_heads=12)
    method = build_method(METHODS.config_of("simclr")(), small, None, seed=0, device="meta")
    expected = 384 * 4096 + 4096 * 4096 + 4096 * 256 + 4 * 4096
    assert sum(p.numel() for p in method.head.parameters()) == expected


def test_parts_that_it_has_no_use_for_are_refused() -> None:
    method = tiny_method("simclr")
    method.check_inputs(VIEWS, {})
    with pytest.raises(ValueError, match="targets=null"):
        build_method(method.config, TINY_BACKBONE, TeacherConfig(), seed=0)
    with pytest.raises(ValueError, match="masks=null"):
        method.check_inputs(VIEWS, tiny_batch(tiny_method("ibot"), "ibot").masks)
    many = {spec.name: spec for spec in build_views(tiny_views("dino"), TINY_BACKBONE)}
    with pytest.raises(ValueError, match=r"leave 2 of 4 out.*views\.num_local_crops=0"):
        method.check_inputs(many, {})
    with pytest.raises(ValueError, match="views=simclr or views=two_crops"):
        method.check_inputs({"image": VIEWS["global_0"]}, {})


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("head_dim", 0), ("projection_dim", 0)])
def test_settings_that_make_no_sense_name_their_keys(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"method.{key}={value}"):
        tiny_method("simclr", **{key: value})
