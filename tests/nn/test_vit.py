from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from ssl_zoo.nn import (
    BACKBONES,
    Initialization,
    Positions,
    ViT,
    ViTConfig,
    set_fused_attention,
    sincos_positions,
    take,
)

TINY = ViTConfig(image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4)  # a 4x4 grid
VARIANTS = {
    "plain": TINY,
    "class token and registers": replace(TINY, class_token=True, num_registers=3),
    "learned": replace(TINY, positions=Positions.learned, class_token=True),
    "no positions": replace(TINY, positions=Positions.none, num_registers=1),
    "layer scale": replace(TINY, layer_scale=0.5),
    "wide image": replace(TINY, image_width=32),
}


def build(config: ViTConfig, seed: int = 0) -> ViT:
    """Build a network with perturbed biases, norms and tokens, whose neutral initial values would hide mistakes."""
    torch.manual_seed(seed)
    vit = BACKBONES.build(config)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter) if "norm" not in name else 0.1)
    return vit.eval()


def images(config: ViTConfig, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, *config.image_shape, generator=torch.Generator().manual_seed(1))


def sample_patches(batch: int, count: int, num_patches: int, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num_patches, generator=generator)[:count] for _ in range(batch)])


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def vit(request: pytest.FixtureRequest) -> ViT:
    return build(request.param)


# Inputs: visible and masked patches, prefix tokens


def test_output_has_prefix_tokens_then_all_patches(vit: ViT) -> None:
    tokens = vit(images(vit.config))
    assert tokens.shape == (3, vit.num_prefix_tokens + vit.num_patches, 48)


def test_output_of_a_one_block_network_is_its_written_out_formula() -> None:
    vit = build(replace(TINY, depth=1, class_token=True, positions=Positions.learned))
    x = images(vit.config)
    patches = vit.patch_embed.proj(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([vit.cls_token.expand(3, -1, -1), patches], dim=1) + vit.pos_embed
    block = vit.blocks[0]
    normed = nn.functional.layer_norm(tokens, (48,), block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (part.unflatten(-1, (4, 12)).transpose(1, 2) for part in block.attn.qkv(normed).chunk(3, dim=-1))
    attended = (q @ k.mT / 12**0.5).softmax(-1) @ v
    tokens = tokens + block.attn.proj(attended.transpose(1, 2).flatten(2))
    normed = nn.functional.layer_norm(tokens, (48,), block.norm2.weight, block.norm2.bias, 1e-6)
    tokens = tokens + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(normed)))
    expected = nn.functional.layer_norm(tokens, (48,), vit.norm.weight, vit.norm.bias, 1e-6)
    close(vit(x), expected)


def test_keeping_all_patches_equals_no_keep(vit: ViT) -> None:
    x = images(vit.config)
    everything = torch.arange(vit.num_patches).expand(3, -1)
    close(vit(x, everything), vit(x))


def test_visible_patches_equal_the_gathered_embedding_whether_or_not_the_rest_is_embedded(vit: ViT) -> None:
    x, keep = images(vit.config), sample_patches(3, 5, vit.num_patches)
    close(vit(x, keep), vit.encode(take(vit.embed(x), keep), keep))


def test_visible_patches_do_not_attend_to_the_others() -> None:
    vit = build(TINY)
    x, keep = images(TINY), torch.tensor([[0, 1, 4]]).expand(3, -1)
    changed = x.clone()
    changed[:, :, 8:] += 1.0  # rows 2 and 3 of the grid
    close(vit(changed, keep), vit(x, keep), tolerance=0)
    assert (vit(changed) - vit(x))[:, 0].abs().max() > 1e-3


def test_permuting_visible_patches_permutes_the_output(vit: ViT) -> None:
    x, keep, order = images(vit.config), sample_patches(3, 6, vit.num_patches), torch.tensor([3, 0, 5, 1, 4, 2])
    prefix = vit.num_prefix_tokens
    close(vit(x, keep[:, order])[:, prefix:], vit(x, keep)[:, prefix:][:, order])


@pytest.mark.parametrize("count", [3, 9], ids=["fewer patches than the image", "more patches than the image"])
def test_several_contexts_equal_a_loop_over_them(vit: ViT, count: int) -> None:
    x = images(vit.config)
    keep = torch.stack([sample_patches(3, count, vit.num_patches, seed) for seed in range(4)], dim=1)
    expected = torch.stack([vit(x, keep[:, context]) for context in range(4)], dim=1)
    assert expected.shape == (3, 4, vit.num_prefix_tokens + count, 48)
    close(vit(x, keep), expected)
    for together, alone in zip(vit(x, keep, layers=[0, 1]), vit(x, keep[:, 2], layers=[0, 1]), strict=True):
        close(together[:, 2], alone)


def test_gradient_is_the_same_whether_or_not_the_rest_is_embedded() -> None:
    vit = build(replace(TINY, positions=Positions.learned))
    x, keep = images(TINY), sample_patches(3, 5, 16)
    names = [name for name, p in vit.named_parameters() if p.requires_grad]
    params = [p for p in vit.parameters() if p.requires_grad]
    weight = torch.randn(3, 5, 48)
    cheap = torch.autograd.grad((vit(x, keep) * weight).sum(), params)
    full = torch.autograd.grad((vit.encode(take(vit.embed(x), keep), keep) * weight).sum(), params)
    for name, a, b in zip(names, cheap, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


def test_masked_patches_are_replaced_before_positions_are_added(vit: ViT) -> None:
    x, mask_token = images(vit.config), torch.randn(1, 1, 48)
    masked = torch.rand(3, vit.num_patches) < 0.5
    patches = vit.patch_embed(x)
    positions = vit.embed(x) - patches
    expected = torch.where(masked[..., None], mask_token, patches) + positions
    close(vit.embed(x, masked, mask_token), expected)
    close(vit(x, masked=masked, mask_token=mask_token), vit.encode(expected))


def test_pixels_of_masked_patches_do_not_matter_and_the_mask_token_gets_a_gradient() -> None:
    vit, mask_token = build(TINY), torch.randn(1, 1, 48, requires_grad=True)
    x, masked = images(TINY), torch.zeros(3, 16, dtype=torch.bool)
    masked[:, 8:] = True
    changed = x.clone()
    changed[:, :, 8:] = 7.0
    out = vit(x, masked=masked, mask_token=mask_token)
    close(vit(changed, masked=masked, mask_token=mask_token), out, tolerance=0)
    (out * torch.randn_like(out)).sum().backward()
    assert mask_token.grad.abs().max() > 1e-3


def test_class_token_has_its_own_position_and_registers_have_none() -> None:
    vit = build(replace(TINY, positions=Positions.learned, class_token=True, num_registers=2))
    inputs = []
    vit.blocks[0].register_forward_pre_hook(lambda block, args: inputs.append(args[0]))
    vit(images(TINY))
    close(inputs[0][0, :1], vit.cls_token[0] + vit.pos_embed[0, :1], tolerance=0)
    close(inputs[0][0, 1:3], vit.reg_token[0], tolerance=0)
    assert vit.pos_embed.shape == (1, 1 + 16, 48)


def test_sincos_position_of_the_class_token_is_zero() -> None:
    vit = ViT(replace(TINY, class_token=True))
    assert vit.pos_embed[0, 0].abs().max() == 0
    close(vit.pos_embed[:, 1:], sincos_positions((4, 4), 48), tolerance=0)


# Outputs: inner layers


def test_layers_are_the_block_outputs_of_a_manual_loop_in_the_requested_order(vit: ViT) -> None:
    x = images(vit.config)
    outputs = []
    hooks = [block.register_forward_hook(lambda block, args, out: outputs.append(out)) for block in vit.blocks]
    final = vit(x)
    for hook in hooks:
        hook.remove()
    last, first = vit(x, layers=[-1, 0])
    close(last, outputs[1], tolerance=0)
    close(first, outputs[0], tolerance=0)
    close(vit.norm(last), final, tolerance=0)


def test_no_block_after_the_last_requested_layer_runs() -> None:
    vit = build(TINY)
    vit.blocks[1] = nn.Linear(1, 1)  # fails on these tokens
    (tokens,) = vit(images(TINY), layers=[-2])
    assert tokens.shape == (3, 16, 48)


@pytest.mark.parametrize("layers", [[], [2], [0, -3]])
def test_layers_that_do_not_exist_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"layers=\[.*-2\.\.1"):
        build(TINY)(images(TINY), layers=layers)


# Other resolutions


@pytest.mark.parametrize("positions", list(Positions))
def test_patches_shared_by_two_resolutions_have_the_right_positions(positions: Positions) -> None:
    vit = build(replace(TINY, positions=positions, class_token=True))
    for height, width in ((16, 32), (24, 8), (32, 32)):
        x = torch.randn(2, 3, height, width)
        assert vit(x).shape == (2, 1 + height * width // 16, 48)
        added = vit.embed(x) - vit.patch_embed(x)
        if positions is Positions.sincos:
            close(added, sincos_positions((height // 4, width // 4), 48).expand(2, -1, -1), tolerance=1e-6)
        if positions is Positions.none:
            close(added, torch.zeros_like(added), tolerance=0)


def test_non_square_model_numbers_patches_row_by_row() -> None:
    vit = build(replace(TINY, image_width=32))
    assert vit.grid == (4, 8)
    x = torch.zeros(1, 3, 16, 32)
    x[:, :, 4:8, 12:16] = 1.0  # row 1, column 3
    changed = (vit.embed(x) - vit.embed(torch.zeros_like(x))).abs().sum(-1)[0].nonzero()
    assert changed.flatten().tolist() == [1 * 8 + 3]


def test_learned_positions_get_a_gradient_at_another_resolution() -> None:
    vit = build(replace(TINY, positions=Positions.learned))
    vit.embed(torch.randn(1, 3, 24, 20)).sum().backward()
    assert (vit.pos_embed.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 222}, "backbone.image_size=222 is no multiple of patch_size=16; nearest: 208, 224"),
        ({"image_width": 230}, "backbone.image_width=230 is no multiple of patch_size=16; nearest: 224, 240"),
        ({"image_size": 3}, "backbone.image_size=3 is no multiple of patch_size=16; nearest: 16"),
        ({"num_heads": 5}, "backbone.embed_dim=768 is no multiple of backbone.num_heads=5"),
        ({"embed_dim": 50, "num_heads": 5}, "backbone.embed_dim=50 must be a multiple of 4"),
        ({"depth": 0}, "backbone.depth=0 must be at least 1"),
        ({"drop_path": 1.0}, "backbone.drop_path=1.0 must be at least 0 and below 1"),
    ],
)
def test_impossible_config_names_the_key(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTConfig(**changes)


def test_images_that_patches_do_not_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="image width=18 is no multiple of patch_size=4; nearest: 16, 20"):
        build(TINY)(torch.randn(1, 3, 16, 18))


# Kernels, names and statistics


@pytest.mark.parametrize("count", [5, 16])
def test_fused_and_plain_attention_agree(count: int) -> None:
    vit = build(TINY)
    x, keep = images(TINY), sample_patches(3, count, 16)
    set_fused_attention(vit, True)
    fused = vit(x, keep)
    set_fused_attention(vit, False)
    assert not any(block.attn.fused_attn for block in vit.blocks)
    close(vit(x, keep), fused)


def test_weights_and_features_are_those_of_timms_vision_transformer() -> None:
    torch.manual_seed(0)
    reference = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    config = ViTConfig(embed_dim=192, num_heads=3, positions=Positions.learned, class_token=True)
    vit = ViT(config).eval()
    vit.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        close(vit(x), reference.forward_features(x), tolerance=2e-5)


def test_blocks_have_the_attributes_of_timm_that_we_rely_on() -> None:
    block = ViT(replace(TINY, layer_scale=0.1, drop_path=0.2)).blocks[1]
    assert (block.attn.num_heads, block.attn.attn_drop.p) == (4, 0)
    assert hasattr(block.attn, "fused_attn")
    assert block.ls1.gamma.tolist() == pytest.approx([0.1] * 48)
    assert block.drop_path1.drop_prob == block.drop_path2.drop_prob == 0.2
    assert block.mlp.fc1.out_features == 4 * 48


def test_drop_path_rises_linearly_from_zero_in_the_first_block() -> None:
    blocks = ViT(replace(TINY, depth=5, drop_path=0.4)).blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_normal_initialization_is_that_of_ijepa_without_a_depth_rescale() -> None:
    torch.manual_seed(0)
    vit = ViT(replace(TINY, embed_dim=192, depth=4, class_token=True, num_registers=4))
    for name, parameter in vit.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif name != "pos_embed":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15 if "token" in name else 0.03), name
            assert parameter.numel() < 1000 or parameter.abs().max() > 2.5 * 0.02, name  # not truncated


def test_xavier_uniform_initialization_is_that_of_mae() -> None:
    torch.manual_seed(0)
    vit = ViT(replace(TINY, embed_dim=192, class_token=True, initialization=Initialization.xavier_uniform))
    fc1, conv = vit.blocks[1].mlp.fc1, vit.patch_embed.proj
    for weight, fan in ((fc1.weight, 192 + 768), (conv.weight, 192 + 3 * 4 * 4)):
        bound = (6 / fan) ** 0.5
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert fc1.bias.abs().max() == 0
    assert 0 < conv.bias.abs().max() <= (3 * 4 * 4) ** -0.5  # torch's default
    assert vit.cls_token.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_model_built_on_meta_and_reset_equals_one_built_directly(config: ViTConfig) -> None:
    with torch.device("meta"):
        late = ViT(config)
    late.to_empty(device="cpu")
    for parameter in late.parameters():
        parameter.data.fill_(torch.nan)
    late.reset_parameters()
    direct = ViT(config)
    torch.manual_seed(3)
    direct.reset_parameters()
    torch.manual_seed(3)
    late.reset_parameters()
    for (name, a), b in zip(late.named_parameters(), direct.parameters(), strict=True):
        assert a.isfinite().all(), name
        assert torch.equal(a, b), name
        assert a.requires_grad == b.requires_grad, name
