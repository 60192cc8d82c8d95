"""CAE against its formulas."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import TINY_BACKBONE, step_of, tiny_batch, tiny_method
from torch import Tensor, nn

from ssl_zoo.data.batch import Batch
from ssl_zoo.masks import MASKS, Masks
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.nn import SincosLayout, ViTConfig, sincos_positions
from ssl_zoo.targets import PixelsConfig, TokensConfig


@pytest.fixture
def method() -> Method:
    torch.manual_seed(0)
    backbone = replace(TINY_BACKBONE, class_token=True, sincos_layout=SincosLayout.row_first)
    config = METHODS.config_of("cae")(regressor_depth=2, decoder_depth=1, layer_scale=0.5, alignment_weight=3.0)
    built = build_method(config, backbone, TokensConfig(num_tokens=32), seed=0)
    with torch.no_grad():
        for parameter in built.parameters():  # else norms and biases are neutral
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


@pytest.fixture
def batch(method: Method) -> Batch:
    return tiny_batch(method, "cae", num_images=3, mask_ratio=0.5)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int = 4) -> Tensor:
    parts = [(q[:, s] @ k[:, s].T / (48 / heads) ** 0.5).softmax(-1) @ v[:, s] for s in torch.arange(48).chunk(heads)]
    return torch.cat(parts, dim=1)


def regress(block: nn.Module, x: Tensor, visible: Tensor, at_x: Tensor, at_visible: Tensor) -> Tensor:
    both, at_both = torch.cat([visible, x]), torch.cat([at_visible, at_x])
    cross = block.cross_attn
    q, k, v = cross.q(block.norm1_q(x + at_x)), cross.k(block.norm1_k(both + at_both)), cross.v(block.norm1_v(both))
    x = block.norm2(x + block.ls1.gamma * cross.proj(attention(q, k, v)))
    return x + block.ls2.gamma * block.mlp(x)


def test_the_loss_equals_an_independent_loop_over_images(method: Method, batch: Batch) -> None:
    masks, positions = batch.masks["image"], sincos_positions((4, 4), 48, SincosLayout.row_first)[0]
    tokens, distances = [], []
    for i in range(3):
        image, context, masked = batch.views["image"][i : i + 1], masks.context[i, 0], masks.targets[i, 0]
        visible = method.encoder(image, keep=context[None])[0, 1:]
        latents = method.encoder(image, keep=masked[None])[0, 1:].detach()
        x = method.mask_token[0].expand(len(masked), -1)
        for block in method.regressor.blocks:
            x = regress(block, x, visible, positions[masked], positions[context])
        x = method.regressor.norm(x)
        distances.append((x - latents).square().mean())
        logits = method.decoder.head(method.decoder.norm(method.decoder.blocks[0]((x + positions[masked])[None])))[0]
        labels = method.target(batch, masks, method.encoder)[i, 0]
        tokens.append(-logits.log_softmax(-1).gather(1, labels[:, None]).mean())
    output = method(batch, step_of(method))
    torch.testing.assert_close(output.losses["tokens"], torch.stack(tokens).mean())
    torch.testing.assert_close(output.losses["alignment"], 3 * torch.stack(distances).mean())


def test_pixels_of_a_masked_patch_reach_the_loss_only_as_its_target_and_latent(method: Method, batch: Batch) -> None:
    masks = batch.masks["image"]
    hidden = masks.all_masked(16).unflatten(1, (4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    images = batch.views["image"]
    changed = torch.where(hidden, torch.randn_like(images), images)
    for before, after in zip(method.predict(images, masks), method.predict(changed, masks), strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(method.latents(images, masks), method.latents(changed, masks))


def test_no_gradient_reaches_the_encoder_through_the_latents_to_predict(method: Method, batch: Batch) -> None:
    latents = method.latents(batch.views["image"], batch.masks["image"])
    assert not latents.requires_grad
    expected = method.encoder(batch.views["image"], keep=batch.masks["image"].targets)[:, :, 1:]
    torch.testing.assert_close(latents, expected)


def test_the_order_of_patches_does_not_matter(method: Method, batch: Batch) -> None:
    masks = batch.masks["image"]
    reordered = Masks(masks.context.flip(-1), masks.targets.flip(-1), masks.pairing, masks.masked)
    first, second = (
        method(replace(batch, masks={"image": m}), step_of(method)).loss.item() for m in (masks, reordered)
    )
    assert first == pytest.approx(second, rel=1e-5)


def test_target_blocks_are_predicted_apart(method: Method) -> None:
    images, index = torch.randn(2, 3, 16, 16), torch.arange(16).expand(2, 1, -1)
    context, targets = index[..., :6], index[..., 6:].unflatten(2, (2, 5)).squeeze(1)
    both = method.predict(images, Masks(context, targets))[1]
    for block in (0, 1):
        alone = method.predict(images, Masks(context, targets[:, block : block + 1]))[1]
        torch.testing.assert_close(both[:, :, block : block + 1], alone)


def test_a_fresh_network_is_as_unsure_as_a_uniform_guess_among_all_tokens() -> None:
    backbone = ViTConfig(image_size=64, embed_dim=192, depth=1, num_heads=3, class_token=True, key_bias=False)
    method = build_method(METHODS.config_of("cae")(), backbone, TokensConfig(), seed=0)
    masks = MASKS.build(MASKS.config_of("blockwise")(mask_ratio=0.5, min_block_area=4), (4, 4))(
        4, torch.Generator().manual_seed(0)
    )
    batch = Batch({"image": torch.randn(4, 3, 64, 64)}, {"image": masks})
    assert method(batch, step_of(method)).losses["tokens"].item() == pytest.approx(math.log(8192), abs=0.2)  # 9.011


def test_other_targets_get_a_squared_error() -> None:
    method = build_method(METHODS.config_of("cae")(), TINY_BACKBONE, PixelsConfig(), seed=0)
    batch = tiny_batch(method, "cae")
    masks = batch.masks["image"]
    expected = F.mse_loss(
        method.predict(batch.views["image"], masks)[2][:, 0], method.target(batch, masks, method.encoder)
    )
    output = method(batch, step_of(method))
    torch.testing.assert_close(output.losses["reconstruction"], expected)
    assert set(output.losses) == {"alignment", "reconstruction"}


def test_a_narrower_decoder_predicts_projected_latents() -> None:
    method = tiny_method("cae", decoder_dim=32)
    batch = tiny_batch(method, "cae")
    latents = method.latents(batch.views["image"], batch.masks["image"])
    encoded = method.encoder(batch.views["image"], keep=batch.masks["image"].targets)
    torch.testing.assert_close(latents, method.project(encoded))
    assert latents.shape[-1] == 32
    loss = method(batch, step_of(method)).loss
    loss.backward()
    assert method.project[0].weight.grad.any() and loss.isfinite()


def test_the_number_of_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"method\.decoder_dim=20 .* 8 attention heads; set method\.decoder_heads"):
        tiny_method("cae", decoder_dim=20, decoder_heads=8)
