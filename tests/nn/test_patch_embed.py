import torch

from ssl_zoo.nn.patch_embed import PatchEmbedding


def test_matmul_equals_the_convolution_on_non_square_images() -> None:
    torch.manual_seed(0)
    embed, images = PatchEmbedding(None, 4, 3, 8), torch.randn(2, 3, 8, 12)
    expected = embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embed(images.to(memory_format=torch.channels_last)), expected, rtol=0, atol=1e-5)


def test_parameters_are_those_of_a_convolution() -> None:
    shapes = {name: tuple(p.shape) for name, p in PatchEmbedding(None, 4, 3, 8).named_parameters()}
    assert shapes == {"proj.weight": (8, 3, 4, 4), "proj.bias": (8,)}
