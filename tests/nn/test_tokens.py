import pytest
import torch

from ssl_zoo.nn import mean_per_patch, patchify, scatter_back, take, unpatchify


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3), (2, 2, 2, 3)])
def test_take_equals_indexing_image_by_image(shape: tuple[int, ...]) -> None:
    tokens, index = torch.randn(2, 6, 5), torch.randint(6, shape)
    expected = torch.stack([tokens[image][index[image]] for image in range(2)])
    assert torch.equal(take(tokens, index), expected)


def test_take_adds_the_gradients_of_a_token_that_is_taken_twice() -> None:
    tokens = torch.randn(1, 4, 2, requires_grad=True)
    take(tokens, torch.tensor([[3, 1, 3]])).sum().backward()
    assert tokens.grad[0, :, 0].tolist() == [0, 1, 0, 2]


def test_take_accepts_tokens_that_are_not_contiguous() -> None:
    tokens, index = torch.randn(5, 2, 6).permute(1, 2, 0), torch.tensor([[5, 0], [1, 2]])
    assert torch.equal(take(tokens, index), take(tokens.contiguous(), index))


def test_scatter_back_puts_tokens_at_their_patches_and_the_fill_elsewhere() -> None:
    tokens, index = torch.randn(2, 2, 3), torch.tensor([[4, 1], [0, 2]])
    full = scatter_back(tokens, index, torch.full((1, 5, 3), 9.0))
    assert torch.equal(take(full, index), tokens)
    assert (full[0, [0, 2, 3]] == 9).all()
    assert (full[1, [1, 3, 4]] == 9).all()


def test_scatter_back_undoes_take_and_leaves_the_fill_untouched() -> None:
    tokens, fill = torch.randn(2, 6, 3), torch.zeros(2, 6, 3)
    index = torch.stack([torch.randperm(6) for _ in range(2)])
    assert torch.equal(scatter_back(take(tokens, index), index, fill), tokens)
    assert fill.abs().max() == 0


def test_patch_pixels_run_over_y_then_x_then_colour() -> None:
    images = torch.arange(3 * 4 * 6.0).reshape(1, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (1, 2 * 3, 2 * 2 * 3)
    row, col = 1, 2
    expected = [images[0, c, 2 * row + y, 2 * col + x].item() for y in range(2) for x in range(2) for c in range(3)]
    assert patches[0, row * 3 + col].tolist() == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_unpatchify_undoes_patchify_on_non_square_images(channels: int) -> None:
    images = torch.randn(2, channels, 8, 12)
    assert torch.equal(unpatchify(patchify(images, 4), (2, 3), 4), images)


def test_the_mean_per_patch_counts_every_occurrence_of_a_patch() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [5.0]]])
    assert mean_per_patch(tokens, torch.tensor([[2, 2, 0]]), 4).flatten().tolist() == [5.0, 0.0, 2.0, 0.0]
