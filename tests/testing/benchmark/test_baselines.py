"""Baselines compute the objective of their recipe: equal weights give equal losses, and the work is the same."""

import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.config import compose
from ssl_zoo.data.batch import Batch
from ssl_zoo.engine.build import RunConfig, build_generators, build_run_method, build_views
from ssl_zoo.engine.settings import Precision
from ssl_zoo.interop.huggingface_names import official_names
from ssl_zoo.planning.plan import count_flops, plan_batch, plan_step
from ssl_zoo.testing.benchmark.baselines.base import Baseline, BaselineTraining
from ssl_zoo.testing.benchmark.baselines.catalogue import BASELINES, build_baseline, not_installed

TINY = ["optim=adamw", "backbone.embed_dim=48", "backbone.num_heads=2", "backbone.depth=3", "trainer.batch_size=4"]
HEADS = {
    "ijepa": ["method.predictor_dim=16", "method.predictor_depth=2"],
    "mae": ["method.decoder_dim=16", "method.decoder_heads=2", "method.decoder_depth=2"],
    "dino": ["method.num_prototypes=32", "method.head_dim=16", "method.bottleneck_dim=8", "method.center_momentum=1"],
}
EQUAL_CROPS = ["views.local_size=48"]  # libraries resample the positions of smaller ones, which we compute
COMBINATIONS = [(name, method) for name, entry in BASELINES.items() if name != "plain-fp32" for method in entry.classes]
LIBRARIES = [pair for pair in COMBINATIONS if pair[0] != "plain"]

# Names of our weights and of the baseline's, as patterns; the first that matches is taken.
TIMM_ENCODER = {r"target\.encoder\.module\.": "teacher.module.", r"encoder\.": "encoder."}
NAMES = {
    ("timm", "ijepa"): {
        **TIMM_ENCODER,
        r"predictor\.embed_in": "predictor.embed",
        r"predictor\.proj_out": "predictor.proj",
    },
    ("timm", "mae"): {**TIMM_ENCODER, r"decoder\.embed_in": "decoder.embed", r"decoder\.proj_out": "decoder.predict"},
    ("timm", "dino"): {
        r"teacher_encoder\.module\.": "teacher.module.0.",
        r"teacher_head\.module\.last_layer\.weight_g": "teacher.module.1.last_layer.parametrizations.weight.original0",
        r"teacher_head\.module\.last_layer\.weight_v": "teacher.module.1.last_layer.parametrizations.weight.original1",
        r"teacher_head\.module\.": "teacher.module.1.",
        r"head\.last_layer\.weight_g": "student.1.last_layer.parametrizations.weight.original0",
        r"head\.last_layer\.weight_v": "student.1.last_layer.parametrizations.weight.original1",
        r"head\.": "student.1.",
        r"encoder\.": "student.0.",
    },
    ("lightly", "ijepa"): {
        r"target\.encoder\.module\.": "teacher.vit.",
        r"encoder\.": "backbone.vit.",
        r"predictor\.embed_in": "predictor.predictor_embed",
        r"predictor\.proj_out": "predictor.predictor_proj",
        r"predictor\.": "predictor.decoder.",
    },
    ("lightly", "mae"): {
        r"encoder\.": "backbone.vit.",
        r"decoder\.embed_in": "decoder_embed",
        r"decoder\.proj_out": "prediction_head",
    },
    ("lightly", "dino"): {
        r"teacher_encoder\.module\.": "teacher_backbone.vit.",
        r"teacher_head\.module\.mlp\.": "teacher_head.layers.",
        r"teacher_head\.module\.": "teacher_head.",
        r"encoder\.": "student_backbone.vit.",
        r"head\.mlp\.": "student_head.layers.",
        r"head\.": "student_head.",
    },
    ("stable-pretraining", "ijepa"): {
        r"target\.encoder\.module\.": "wrapper.teacher.vit.",
        r"encoder\.": "wrapper.student.vit.",
        r"predictor\.embed_in": "predictor.context_proj",
        r"predictor\.proj_out": "predictor.output_proj",
        r"predictor\.norm": "predictor.final_norm",
    },
    ("stable-pretraining", "dino"): {
        r"teacher_encoder\.module\.": "model.backbone.teacher.",
        r"teacher_head\.module\.mlp\.": "model.projector.teacher.",
        r"teacher_head\.module\.last_layer\.weight_v": "model.projector.teacher.6.weight",
        r"encoder\.": "model.backbone.student.",
        r"head\.mlp\.": "model.projector.student.",
        r"head\.last_layer\.weight_v": "model.projector.student.6.weight",
    },
}


def tiny(method: str, *overrides: str) -> RunConfig:
    return compose(f"configs/{method}/demo.yaml", [*TINY, *HEADS[method], *overrides]).config


def batch_of(config: RunConfig) -> Batch:
    views = build_views(config.views, config.backbone)
    batch = plan_batch(
        views, build_generators(views, config.masks, config.backbone), num_images=4, batch_size=4, device="cpu"
    )
    generator = torch.Generator().manual_seed(0)
    return Batch(
        {name: torch.randn(view.shape, generator=generator) for name, view in batch.views.items()}, batch.masks
    )


def installed(name: str, config: RunConfig) -> Baseline:
    if message := not_installed(name):
        pytest.skip(message)
    torch.manual_seed(0)
    return build_baseline(name, config)


def weights_for(pair: tuple[str, str], ours: nn.Module) -> Mapping[str, Tensor]:
    weights = {}
    for name, tensor in ours.state_dict().items():
        for pattern, new in NAMES[pair].items():
            if re.match(pattern, name):
                name = re.sub(f"^{pattern}", new, name)
                break
        weights[name] = F.normalize(tensor, dim=1) if name.endswith("6.weight") else tensor  # no weight_norm there
    return weights


def loss_difference(name: str, method: str) -> float:
    """Return by how much the losses of our method and of a baseline with its weights differ, relatively."""
    config, pair = tiny(method, *(EQUAL_CROPS if method == "dino" else [])), (name, method)
    baseline, ours, batch = installed(name, config), build_run_method(config), batch_of(config)
    weights = weights_for(pair, ours)
    baseline.load_state_dict(weights, strict=False)
    loaded = {tensor.data_ptr() for key, tensor in baseline.state_dict().items() if key in weights}
    missing = {key for key, parameter in baseline.named_parameters() if parameter.data_ptr() not in loaded}
    assert {key for key in missing if not re.search("query_proj|(backbone|teacher).mask_token", key)} == set()
    expected = ours(batch, plan_step(ours, "cpu")).loss
    return abs(baseline(batch).item() / expected.item() - 1)


@pytest.mark.parametrize("method", ["ijepa", "mae", "dino"])
def test_timm_baseline_has_the_loss_of_our_method_with_equal_weights(method: str) -> None:
    assert loss_difference("timm", method) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "method"), [pair for pair in NAMES if pair[0] != "timm"])
def test_library_has_the_loss_of_our_method_with_equal_weights(name: str, method: str) -> None:
    tolerance = 1e-3 if name == "stable-pretraining" else 1e-5  # layer norms of its predictor have another epsilon
    assert loss_difference(name, method) < tolerance


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_ijepa_has_the_loss_of_our_method_with_its_weights() -> None:
    config = tiny("ijepa")
    baseline, ours, batch = installed("transformers", config), build_run_method(config), batch_of(config)
    for encoder in (ours.encoder, ours.target.encoder.module):
        encoder.load_state_dict(official_names(baseline.encoder.state_dict())[0])
    renamed = {"embed.": "embed_in.", "proj.": "proj_out.", "blocks.": "layers."}
    predictor = {
        re.sub(r"^(embed|proj|blocks)\.", lambda found: renamed[found[0]], name): tensor
        for name, tensor in baseline.predictor.state_dict().items()
    }
    ours.predictor.load_state_dict(official_names(predictor)[0])
    expected = ours(batch, plan_step(ours, "cpu")).loss
    assert baseline(batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_mae_has_the_loss_of_our_method_with_its_weights_and_our_masks() -> None:
    config = tiny("mae", "backbone.class_token=true")
    baseline, ours, batch = installed("transformers", config), build_run_method(config), batch_of(config)
    weights = official_names(baseline.model.state_dict())[0]
    for name, new in (("pred", "proj_out"), ("embed", "embed_in")):
        weights = {key.replace(f"decoder_{name}.", f"decoder.{new}."): tensor for key, tensor in weights.items()}
    weights = {re.sub("^decoder_", "decoder.", key): tensor for key, tensor in weights.items()}
    weights["decoder.mask_token"] = weights.pop("mask_token")
    ours.load_state_dict({key if "decoder." in key else f"encoder.{key}": tensor for key, tensor in weights.items()})
    masks = batch.masks["image"]
    order = torch.cat([masks.context[:, 0], masks.targets[:, 0]], dim=1)  # the model keeps the patches of least noise
    expected = ours(batch, plan_step(ours, "cpu")).loss
    loss = baseline.model(batch.views["image"], noise=order.argsort(dim=1).float()).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def check_work(name: str, method: str) -> None:
    """Check parameters and tokens against our method, and that eight steps on one batch lower the loss."""
    config = tiny(method)
    baseline, batch = installed(name, config), batch_of(config)
    ours = build_run_method(config)
    has_class_token = any("its class token" in difference for difference in baseline.differences)
    extra = config.backbone.embed_dim * 2 if has_class_token else 0  # the token and its position
    assert count(baseline.encoder) == count(ours.encoder) + extra
    counted = counted_tokens(baseline, lambda: baseline(batch))
    expected = counted_tokens(ours, lambda: ours(batch, plan_step(ours, "cpu")))
    assert counted == expected + (batch.num_images if has_class_token else 0)
    training = BaselineTraining(baseline, torch.device("cpu"), Precision.fp32)
    losses = [training.step(batch).item() for _ in range(8)]
    assert losses[-1] < losses[1]  # the first step of stable-pretraining has no center yet


def check_flops(name: str, method: str) -> None:
    config = compose(f"configs/{method}/cifar10_vitt4.yaml", ["optim=adamw"]).config
    training = BaselineTraining(installed(name, config), torch.device("cpu"), Precision.fp32)
    views = build_views(config.views, config.backbone)
    ours = count_flops(
        build_run_method(config, device="meta"), views, build_generators(views, config.masks, config.backbone)
    )
    # More: the last block of a predictor for context tokens, predictions of visible patches, a class token.
    assert 0.99 < training.flops_per_image()["forward"] / ours["forward"] < 1.1


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def counted_tokens(network: nn.Module, forward) -> int:
    """Count the tokens that enter the first block of the trained encoder in a forward pass."""
    blocks = getattr(network.encoder, "blocks", None) or network.encoder.layers
    tokens: list[int] = []
    with blocks[0].register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0].shape[:-1].numel())):
        forward()
    return sum(tokens)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "method"), LIBRARIES)
def test_library_does_the_work_of_the_recipe(name: str, method: str) -> None:
    check_work(name, method)
    check_flops(name, method)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_library_that_rounds_the_number_of_visible_patches_otherwise_has_a_difference() -> None:
    config = tiny("mae", "masks.mask_ratio=0.6")  # of 36 patches: 14.4 visible, 21.6 masked
    assert "15 instead of 14 visible patches" in installed("stable-pretraining", config).differences
    assert not any("visible" in difference for difference in installed("transformers", config).differences)


def test_every_parameter_that_a_baseline_trains_moves_and_so_do_ema_weights() -> None:
    config = tiny("ijepa")
    for name in ("plain", "timm"):
        baseline = build_baseline(name, config)
        trained = {key: p.detach().clone() for key, p in baseline.named_parameters() if p.requires_grad}
        teacher = [p.detach().clone() for p in baseline.teacher.parameters()]
        BaselineTraining(baseline, torch.device("cpu"), Precision.fp32).step(batch_of(config))
        state = baseline.state_dict()
        assert not [key for key, before in trained.items() if torch.equal(state[key], before)]
        assert any(not torch.equal(p, b) for p, b in zip(baseline.teacher.parameters(), teacher, strict=True))


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("ijepa", ["optim=muon"], "trains with AdamW: add optim=adamw"),
        ("ijepa", ["method.context_loss_weight=0.5"], "method.context_loss_weight=0.5: set it to 0"),
        ("ijepa", ["masks=random"], "set masks=multiblock"),
        ("mae", ["backbone.image_width=64"], "backbone.image_width=64: set it to 48"),
        ("dino", ["method.sinkhorn_iterations=3"], "method.sinkhorn_iterations=3: set it to 0"),
    ],
)
def test_a_setting_that_baselines_lack_is_refused_with_what_to_set(
    method: str, overrides: list[str], message: str
) -> None:
    config = compose(f"configs/{method}/demo.yaml", ["optim=adamw", *overrides]).config
    with pytest.raises(ValueError, match=re.escape(message)):
        build_baseline("timm", config)


def test_a_method_that_a_baseline_lacks_is_refused_with_the_combinations() -> None:
    with pytest.raises(ValueError, match=r"transformers has no dino; there are .*transformers: ijepa, mae; .*timm: "):
        build_baseline("transformers", tiny("dino"))
