import pytest
import torch
from torch import nn

from ssl_zoo.nn import Initialization, PatchStem, ViT, ViTConfig
from ssl_zoo.nn.patch_embed import ConvolutionalPatchEmbedding, PatchEmbedding


def test_matmul_equals_the_convolution_on_non_square_images() -> None:
    torch.manual_seed(0)
    embed, images = PatchEmbedding(None, 4, 3, 8), torch.randn(2, 3, 8, 12)
    expected = embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embed(images.to(memory_format=torch.channels_last)), expected, rtol=0, atol=1e-5)


def test_parameters_are_those_of_a_convolution() -> None:
    shapes = {name: tuple(p.shape) for name, p in PatchEmbedding(None, 4, 3, 8).named_parameters()}
    assert shapes == {"proj.weight": (8, 3, 4, 4), "proj.bias": (8,)}


@pytest.mark.parametrize(("patch_size", "convolutions"), [(2, 1), (4, 2), (14, 4), (16, 4)])
def test_a_convolutional_stem_halves_patches_of_any_size_to_one_token(patch_size: int, convolutions: int) -> None:
    embed = ConvolutionalPatchEmbedding(patch_size, 3, 32)
    assert embed(torch.randn(2, 3, 2 * patch_size, 3 * patch_size)).shape == (2, 6, 32)
    assert sum(isinstance(layer, nn.Conv2d) for layer in embed.convolutions) == convolutions


def test_a_convolutional_stem_leaks_nothing_across_patches() -> None:
    torch.manual_seed(0)
    embed, images = ConvolutionalPatchEmbedding(4, 3, 16), torch.randn(2, 3, 8, 12)
    changed = images.clone()
    changed[:, :, :4, 4:8] += 1  # patch 1
    before, after = embed(images), embed(changed)
    others = [0, 2, 3, 4, 5]
    assert torch.equal(before[:, others], after[:, others]) and not torch.allclose(before[:, 1], after[:, 1])


@pytest.mark.parametrize("initialization", Initialization)
def test_an_encoder_with_a_convolutional_stem_encodes_kept_patches_as_all_and_can_be_reset(
    initialization: Initialization,
) -> None:
    config = ViTConfig(
        image_size=16, patch_size=4, embed_dim=48, depth=1, num_heads=4, patch_stem=PatchStem.convolutional,
        initialization=initialization,
    )  # fmt: skip
    with torch.device("meta"):
        vit = ViT(config)
    vit = vit.to_empty(device="cpu")
    for parameter in vit.parameters():
        nn.init.constant_(parameter, float("nan"))
    vit.reset_parameters()
    images, keep = torch.randn(2, 3, 16, 16), torch.tensor([[0, 5, 9], [3, 2, 14]])
    expected = vit.embed(images).gather(1, keep[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(vit._embed_kept(images, keep), expected)
    assert vit(images, keep=keep).isfinite().all()
