"""Tokens: the random-projection quantizer and DALL-E's encoder against their definitions; files of weights."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_methods import TINY_BACKBONE, tiny_batch, tiny_method
from torch import Tensor

from ssl_zoo.config import compose_section
from ssl_zoo.data.batch import ViewSpec
from ssl_zoo.engine.build import build_views
from ssl_zoo.method import METHODS, Method, build_method
from ssl_zoo.nn import BACKBONES, patchify
from ssl_zoo.targets import TARGETS, Tokenizer, Tokens, TokensConfig

WIDTH, VOCABULARY = 8, 32


def official(seed: int = 0, width: int = WIDTH, vocabulary: int = VOCABULARY) -> dict[str, Tensor]:
    """Random weights under the names of openai/DALL-E's encoder."""
    shapes = {"input": (width, 3, 7), "output.conv": (vocabulary, 8 * width, 1)}
    dim = width
    for group in range(1, 5):
        for block in (1, 2):
            name, out = f"group_{group}.block_{block}", width * 2 ** (group - 1)
            if dim != out:
                shapes[f"{name}.id_path"] = (out, dim, 1)
            inner = out // 4
            for number, shape in enumerate(((inner, dim, 3), (inner, inner, 3), (inner, inner, 3), (out, inner, 1)), 1):
                shapes[f"{name}.res_path.conv_{number}"] = shape
            dim = out
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (out, dim_in, kernel) in shapes.items():
        scale = (dim_in * kernel**2) ** -0.5
        weights[f"blocks.{name}.w"] = scale * torch.randn(out, dim_in, kernel, kernel, generator=generator)
        weights[f"blocks.{name}.b"] = 0.01 * torch.randn(out, generator=generator)
    return weights


def reference_tokens(w: dict[str, Tensor], pixels: Tensor) -> Tensor:
    def conv(name: str, x: Tensor) -> Tensor:
        weight = w[f"blocks.{name}.w"]
        return F.conv2d(x, weight, w[f"blocks.{name}.b"], padding=weight.shape[-1] // 2)

    x = conv("input", 0.8 * pixels + 0.1)
    for group in range(1, 5):
        for block in (1, 2):
            name, branch = f"group_{group}.block_{block}", x
            for number in (1, 2, 3, 4):
                branch = conv(f"{name}.res_path.conv_{number}", F.relu(branch))
            x = (conv(f"{name}.id_path", x) if f"blocks.{name}.id_path.w" in w else x) + branch / 64
        if group < 4:
            x = F.max_pool2d(x, 2)
    return conv("output.conv", F.relu(x)).argmax(1)


def config(path: Path | str, **settings: object) -> TokensConfig:
    sizes = {"num_tokens": VOCABULARY, "dalle_width": WIDTH}
    return TokensConfig(Tokenizer.dalle, weights=str(path), **{**sizes, **settings})


def built(tokens: TokensConfig) -> Tokens:
    return TARGETS.build(tokens, BACKBONES.build(TINY_BACKBONE))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(official(), tmp_path / "dalle.safetensors")
    return tmp_path / "dalle.safetensors"


def two_renderings(**settings: object) -> dict[str, ViewSpec]:
    overrides = [f"views.{key}={value}" for key, value in settings.items()]
    views = compose_section("views", ["views=cae_dalle", *overrides])
    return {spec.name: spec for spec in build_views(views, TINY_BACKBONE)}


def cae(tokens: TokensConfig, seed: int = 0) -> Method:
    return build_method(METHODS.config_of("cae")(regressor_depth=1, decoder_depth=1), TINY_BACKBONE, tokens, seed=seed)


def test_the_quantizer_finds_the_nearest_code_of_the_normalised_patch() -> None:
    target = built(TokensConfig(num_tokens=64, code_dim=8))
    encoder = BACKBONES.build(TINY_BACKBONE)
    batch = tiny_batch(tiny_method("cae"), "cae")
    tokens = target(batch, batch.masks["image"], encoder)[:, 0]
    patches = patchify(batch.views["image"], 4)
    for i, index in enumerate(batch.masks["image"].targets[:, 0]):
        for token, patch in zip(tokens[i].tolist(), patches[i, index], strict=True):
            normalised = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            projected = F.normalize(normalised @ target.tokenizer.projection, dim=0)
            assert (projected - target.tokenizer.codes).norm(dim=1).argmin().item() == token


def test_projection_and_codes_depend_on_the_seed_of_the_targets_alone() -> None:
    first, again, other = (
        cae(TokensConfig(num_tokens=16, seed=seed), run_seed).target.state_dict()
        for seed, run_seed in ((0, 0), (0, 1), (1, 0))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_quantizer_spreads_smooth_patches_over_most_of_its_tokens() -> None:
    target, method = built(TokensConfig(num_tokens=64)), tiny_method("cae")
    batch = tiny_batch(method, "cae", num_images=64)
    smooth = F.interpolate(torch.randn(64, 3, 4, 4), (16, 16), mode="bicubic")
    tokens = target(replace(batch, views={"image": smooth}), batch.masks["image"], method.encoder)
    assert tokens.dtype is torch.int64 and tokens.unique().numel() > 32


def test_bf16_changes_no_token() -> None:
    target, method = built(TokensConfig()), tiny_method("cae")
    batch = tiny_batch(method, "cae")
    exact = target(batch, batch.masks["image"], method.encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(target(batch, batch.masks["image"], method.encoder), exact)


def test_the_dalle_encoder_gives_each_masked_patch_the_token_of_its_place_in_the_second_rendering(
    weights: Path,
) -> None:
    target, method = built(config(weights)), tiny_method("cae")
    batch = tiny_batch(method, "cae")
    pixels = F.interpolate(torch.rand(8, 3, 4, 4), (32, 32))
    tokens = target(replace(batch, views={**batch.views, "tokenizer": pixels}), batch.masks["image"], method.encoder)
    expected = reference_tokens(official(), pixels)
    rows, columns = (batch.masks["image"].targets[:, 0] // 4, batch.masks["image"].targets[:, 0] % 4)
    assert torch.equal(tokens[:, 0], expected[torch.arange(8)[:, None], rows, columns])
    assert expected.unique().numel() > 2


def test_the_published_encoder_has_53_8_million_weights_none_of_which_is_trained() -> None:
    with torch.device("meta"):
        target = built(TokensConfig(Tokenizer.dalle, weights="not/read/on/meta.safetensors"))
    assert sum(p.numel() for p in target.parameters()) == 53_786_240
    assert not any(p.requires_grad for p in target.parameters())


def test_a_second_rendering_shows_the_same_crop_in_pixels(weights: Path) -> None:
    views = two_renderings(rendering_scale=2)
    image, second = views["image"], views["tokenizer"]
    assert (second.size, second.same_as, second.masked) == ((32, 32), "image", False)
    assert (second.config.crop_scale, second.config.horizontal_flip) == (image.config.crop_scale, 0.5)
    shown = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(second.normalize(shown), shown / 255)
    cae(config(weights)).check_inputs(views, tiny_batch(tiny_method("cae"), "cae").masks)


def test_the_dalle_encoder_refuses_images_that_are_not_rgb_and_other_pixels_than_0_to_1(weights: Path) -> None:
    views = two_renderings(rendering_scale=2)
    grey = {name: replace(spec, channels=1) for name, spec in views.items()}
    masks = tiny_batch(tiny_method("cae"), "cae").masks
    with pytest.raises(ValueError, match=r"knows RGB images, but backbone\.in_channels=1; targets\.tokenizer=rpq"):
        cae(config(weights)).check_inputs(grey, masks)
    normalised = {**views, "tokenizer": replace(views["tokenizer"], config=views["image"].config)}
    with pytest.raises(ValueError, match=r"needs pixels in 0\.\.1, but .* mean=\[0\.485, 0\.456, 0\.406\]"):
        cae(config(weights)).check_inputs(normalised, masks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, r"a second rendering of each crop, the view tokenizer, beside image: choose views=cae_dalle"),
        ({}, r"the view tokenizer of 8x8 pixels must be 32x32 for 4x4 patches; set views\.rendering_scale=2$"),
    ],
)
def test_views_without_the_right_rendering_are_refused(weights: Path, settings: dict | None, message: str) -> None:
    views = {"image": two_renderings()["image"]} if settings is None else two_renderings(**settings)
    with pytest.raises(ValueError, match=message):
        cae(config(weights)).check_inputs(views, tiny_batch(tiny_method("cae"), "cae").masks)


def test_the_digest_of_the_file_is_checked(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    built(config(weights, sha256=digest.upper()))
    with pytest.raises(ValueError, match=f"has the SHA-256 {digest}, not targets.sha256=0000"):
        built(config(weights, sha256="0" * 64))
    with pytest.raises(ValueError, match=r"targets\.sha256='abc' is no SHA-256: it has 64 hex digits"):
        config(weights, sha256="abc")


def test_files_that_are_missing_pickled_truncated_or_of_another_layout_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with pytest.raises(ValueError, match=r"targets\.weights=.*weights: no such file"):
        built(config(path))
    torch.save(official(), path)
    with pytest.raises(ValueError, match=r"no safetensors file .* Pickled files such as encoder\.pkl are not read"):
        built(config(path))
    save_file(official(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"targets\.weights=.* is truncated or no safetensors file"):
        built(config(path))
    lacking = official()
    del lacking["blocks.input.w"]
    save_file(lacking | {"quantize.embed": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"lacks blocks\.input\.w; has the unknown quantize\.embed"):
        built(config(path))
    save_file(official(vocabulary=16), path)
    with pytest.raises(
        ValueError, match=r"targets\.num_tokens=32 .* has blocks\.output\.conv\.w of shape \[16, 64, 1, 1\] instead of"
    ):
        built(config(path))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets\.tokenizer=dalle needs targets\.weights"):
        TokensConfig(Tokenizer.dalle)
    with pytest.raises(ValueError, match=r"targets\.weights=a\.safetensors belongs to targets\.tokenizer=dalle"):
        TokensConfig(weights="a.safetensors")


def test_a_training_with_dalle_tokens_needs_no_file_to_be_the_same_after_a_state_dict(weights: Path) -> None:
    save_file(official(seed=1), weights.with_name("other.safetensors"))
    method, other = cae(config(weights)), cae(config(weights.with_name("other.safetensors")))
    batch = tiny_batch(method, "cae")
    batch = replace(batch, views={**batch.views, "tokenizer": torch.rand(8, 3, 32, 32)})
    other.load_state_dict(method.state_dict())
    mask = batch.masks["image"]
    assert torch.equal(method.target(batch, mask, method.encoder), other.target(batch, mask, other.encoder))
