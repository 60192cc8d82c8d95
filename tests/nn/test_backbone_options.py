"""BEiT's and data2vec 2.0's options of the vision transformer."""

import math

import pytest
import torch

from ssl_zoo.nn import Initialization, LayerOutput, NormPosition, Positions, ViT, ViTConfig, set_fused_attention, take

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def vit(**options: object) -> ViT:
    torch.manual_seed(0)
    encoder = ViT(ViTConfig(**{**TINY, **options}))
    if encoder.rel_pos_bias is not None:  # starts at zero, where it has no effect
        torch.nn.init.normal_(encoder.rel_pos_bias.relative_position_bias_table)
    return encoder.eval()


def test_bias_table_of_a_14_by_14_grid_has_732_rows() -> None:
    config = ViTConfig(class_token=True, positions=Positions.none, relative_position_bias=True)
    with torch.device("meta"):
        assert ViT(config).rel_pos_bias.relative_position_bias_table.shape == (732, 12)


@pytest.mark.parametrize("class_token", [True, False])
def test_bias_depends_on_the_offset_and_the_class_token_has_rows_of_its_own(class_token: bool) -> None:
    bias = vit(relative_position_bias=True, class_token=class_token).rel_pos_bias
    rows = bias.relative_position_index[int(class_token) :, int(class_token) :]
    for query, key in ((0, 5), (5, 10), (2, 7)):  # one down, one right
        assert rows[query, key] == rows[0, 5] == (-1 + 3) * 7 + (-1 + 3)
    if class_token:
        index = bias.relative_position_index
        assert (index[0, 1:] == 49).all() and (index[1:, 0] == 50).all() and index[0, 0] == 51


def test_bias_of_visible_patches_is_a_submatrix_of_the_full_bias() -> None:
    bias = vit(relative_position_bias=True, class_token=True).rel_pos_bias
    keep = torch.tensor([[3, 0, 9], [15, 7, 8]])
    full, visible = bias(), bias(keep)
    for image in range(2):
        tokens = torch.cat([torch.tensor([0]), keep[image] + 1])
        assert torch.equal(visible[image], full[0][:, tokens][:, :, tokens])


@pytest.mark.parametrize(
    "options",
    [
        {"relative_position_bias": True, "class_token": True, "positions": Positions.none},
        {"relative_position_bias": True},
        {"norm_position": NormPosition.post, "class_token": True},
        {"key_bias": False, "layer_scale": 0.1},
    ],
)
class TestEveryOption:
    def test_keeping_all_patches_changes_nothing(self, options: dict) -> None:
        encoder = vit(**options)
        order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
        prefix = encoder.num_prefix_tokens
        kept = encoder(IMAGES, keep=order)[:, prefix:]
        torch.testing.assert_close(kept, take(encoder(IMAGES)[:, prefix:], order), atol=1e-5, rtol=1e-5)

    def test_fused_attention_computes_the_same(self, options: dict) -> None:
        encoder = vit(**options)
        results = []
        for fused in (True, False):
            set_fused_attention(encoder, fused)
            results.append(encoder(IMAGES))
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)

    def test_the_output_of_the_last_block_is_the_input_of_the_final_norm(self, options: dict) -> None:
        encoder = vit(**options)
        [last] = encoder(IMAGES, layers=[-1])
        assert torch.equal(encoder.norm(last), encoder(IMAGES))

    def test_bf16_autocast_runs_and_gradients_reach_everything(self, options: dict) -> None:
        encoder = vit(**options).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoder(IMAGES).float().square().sum().backward()
        assert [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


def test_ffn_output_of_a_pre_norm_block_is_its_mlp_branch() -> None:
    encoder = vit()
    before, after = encoder(IMAGES, layers=[0, 1])
    [branch] = encoder(IMAGES, layers=[1], layer_output=LayerOutput.ffn)
    block = encoder.blocks[1]
    middle = before + block.attn(block.norm1(before))
    torch.testing.assert_close(middle + branch, after, atol=1e-6, rtol=1e-6)


def test_ffn_output_of_a_post_norm_block_is_its_mlp_before_the_sum() -> None:
    encoder = vit(norm_position=NormPosition.post)
    before, after = encoder(IMAGES, layers=[0, 1])
    [branch] = encoder(IMAGES, layers=[1], layer_output=LayerOutput.ffn)
    block = encoder.blocks[1]
    middle = block.norm1(before + block.attn(before))
    torch.testing.assert_close(branch, block.mlp(middle), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(block.norm2(middle + branch), after, atol=1e-6, rtol=1e-6)


def test_scaled_truncated_normal_weights_end_at_one_std_and_shrink_with_depth() -> None:
    torch.manual_seed(0)
    encoder = ViT(ViTConfig(embed_dim=192, depth=3, num_heads=3, initialization=Initialization.trunc_normal_scaled))
    weight = encoder.blocks[0].attn.qkv.weight
    assert weight.abs().max() <= 0.02 and weight.std().item() == pytest.approx(0.0108, abs=2e-4)
    for number, block in enumerate(encoder.blocks, start=1):
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.0108 / math.sqrt(2 * number), rel=0.03)


def test_xavier_weights_come_with_a_truncated_normal_patch_embedding_and_class_token() -> None:
    torch.manual_seed(0)
    scheme = Initialization.xavier_uniform_normal_patch_embed
    encoder = ViT(ViTConfig(depth=1, class_token=True, key_bias=False, initialization=scheme))
    assert encoder.blocks[0].mlp.fc1.weight.abs().max().item() == pytest.approx(0.03953, abs=1e-5)  # measured: CAE
    assert encoder.patch_embed.proj.weight.std().item() == pytest.approx(0.0108, abs=2e-4)
    assert encoder.cls_token.abs().max() <= 0.02 and not encoder.patch_embed.proj.bias.any()


def test_default_patch_embedding_keeps_torchs_initialization() -> None:
    torch.manual_seed(0)
    scheme = Initialization.normal_default_patch_embed
    encoder = ViT(ViTConfig(embed_dim=192, depth=1, num_heads=3, initialization=scheme))
    bound = 1 / math.sqrt(3 * 16 * 16)
    assert encoder.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert encoder.patch_embed.proj.bias.any()
    assert encoder.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_xavier_patch_embedding_comes_with_a_class_token_of_unit_std() -> None:
    torch.manual_seed(0)
    scheme = Initialization.normal_xavier_patch_embed
    encoder = ViT(ViTConfig(embed_dim=192, depth=1, num_heads=3, class_token=True, initialization=scheme))
    bound = math.sqrt(6 / (192 + 3 * 16 * 16))
    assert encoder.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert encoder.cls_token.std().item() == pytest.approx(1, rel=0.2)
    assert encoder.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_without_key_bias_the_keys_get_none() -> None:
    attention = vit(key_bias=False).blocks[0].attn
    torch.nn.init.ones_(attention.qkv.q_bias)
    torch.nn.init.ones_(attention.qkv.v_bias)
    packed = attention.qkv(torch.zeros(1, 1, 24)).view(3, 24)
    assert packed[0].eq(1).all() and packed[1].eq(0).all() and packed[2].eq(1).all()


def test_bias_refuses_registers_and_images_of_another_size() -> None:
    with pytest.raises(ValueError, match="num_registers"):
        ViTConfig(relative_position_bias=True, num_registers=2)
    with pytest.raises(ValueError, match="16 patches, not 4"):
        vit(relative_position_bias=True)(IMAGES[..., :8, :8])
