import pytest
import torch

from ssl_zoo.nn import Initialization, NarrowViT, sincos_positions


def build(**changes) -> NarrowViT:
    torch.manual_seed(0)
    sizes = {"dim_in": 48, "dim": 24, "dim_out": 12, "depth": 2, "num_heads": 4, "grid": (4, 5)}
    narrow = NarrowViT(**(sizes | changes))
    with torch.no_grad():
        for parameter in narrow.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return narrow.eval()


def patches(batch: int, *shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.stack([torch.randperm(20)[:count] for _ in range(batch)]).view(batch, *shape)


@pytest.mark.parametrize("num_prefix", [0, 1])
def test_predictions_equal_a_written_out_pass_per_target_block(num_prefix: int) -> None:
    narrow = build(num_prefix_tokens=num_prefix)
    context, targets = patches(3, 6), patches(3, 4, 5)
    tokens = torch.randn(3, num_prefix + 6, 48)
    positions = sincos_positions((4, 5), 24)[0]
    predictions = narrow(tokens, context, targets)
    assert predictions.shape == (3, 4, 5, 12)
    for image in range(3):
        for block in range(4):
            known = narrow.embed_in(tokens[image])
            known = torch.cat([known[:num_prefix], known[num_prefix:] + positions[context[image]]])
            x = torch.cat([known, narrow.mask_token[0] + positions[targets[image, block]]])[None]
            for layer in narrow.blocks:
                x = layer(x)
            expected = narrow.proj_out(narrow.norm(x))[0, -5:]
            torch.testing.assert_close(predictions[image, block], expected, rtol=0, atol=1e-5)


def test_target_blocks_do_not_attend_to_each_other() -> None:
    narrow, tokens = build(), torch.randn(2, 6, 48)
    context, targets = patches(2, 6), patches(2, 2, 5)
    moved = targets.clone()
    moved[:, 1] = targets[:, 1].roll(1, 0) if not torch.equal(*targets[:, 1]) else targets[:, 0]
    before, after = narrow(tokens, context, targets), narrow(tokens, context, moved)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_order_of_context_and_of_targets_does_not_matter() -> None:
    narrow, tokens = build(), torch.randn(2, 6, 48)
    context, targets, order = patches(2, 6), patches(2, 1, 5), torch.tensor([4, 1, 0, 3, 2])
    expected = narrow(tokens, context, targets)[:, :, order]
    shuffled = torch.tensor([5, 0, 3, 1, 4, 2])
    result = narrow(tokens[:, shuffled], context[:, shuffled], targets[:, :, order])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_every_trainable_parameter_gets_a_gradient_and_positions_get_none() -> None:
    narrow = build()
    narrow(torch.randn(2, 6, 48), patches(2, 6), patches(2, 2, 5)).square().sum().backward()
    for name, parameter in narrow.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == (name != "pos_embed"), name


def test_names_are_those_that_official_weights_map_to() -> None:
    names = set(build(depth=1).state_dict())
    assert {"embed_in.weight", "mask_token", "pos_embed", "norm.bias", "proj_out.bias"} <= names
    assert {"blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.bias"} <= names


def test_position_embeddings_of_prefix_tokens_are_zero() -> None:
    table = build(num_prefix_tokens=1).pos_embed
    assert table.shape == (1, 21, 24)
    assert table[0, 0].abs().max() == 0


def test_initialization_has_the_named_distribution_and_the_mask_token_is_not_zero() -> None:
    torch.manual_seed(0)
    sizes = {"dim_in": 192, "dim": 96, "dim_out": 192, "depth": 3, "num_heads": 3, "grid": (4, 4)}
    normal = NarrowViT(**sizes)
    for name, parameter in normal.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name
    assert normal.mask_token.std().item() == pytest.approx(0.02, rel=0.25)
    xavier = NarrowViT(**sizes, initialization=Initialization.xavier_uniform)
    bound = (6 / (192 + 96)) ** 0.5
    assert 0.99 * bound < xavier.embed_in.weight.abs().max() <= bound


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 24 of a predictor or decoder is no multiple of its 5 heads"):
        build(num_heads=5)
