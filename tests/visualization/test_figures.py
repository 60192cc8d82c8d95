"""Figures of an encoder: attention and PCA maps against slow restatements, and which errors name which bounds."""

from dataclasses import replace

import pytest
import torch
from tiny_methods import TINY_BACKBONE
from tiny_subject import TOKENS, subject

from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.sources import Split
from ssl_zoo.data.sources.scenes import RenderedScenes, ScenesConfig
from ssl_zoo.nn.attention_weights import attention_weights
from ssl_zoo.visualization import choose_images, patch_similarities, plot_attention, plot_components, plot_similarity
from ssl_zoo.visualization.attention import attention_maps


@pytest.mark.parametrize(("patch", "query"), [(None, 0), ((1, 2), 4 + 6)])
def test_the_map_of_a_query_leaves_out_exactly_class_token_and_registers(patch, query) -> None:
    shown = subject(TOKENS)
    [maps] = attention_maps(shown, [1], patch)
    [weights] = attention_weights(shown.encoder, shown.views, [1])
    torch.testing.assert_close(maps, weights[:, :, query, 4:])
    torch.testing.assert_close(maps.sum(-1) + weights[:, :, query, :4].sum(-1), torch.ones(3, 4))


def test_without_class_token_the_map_is_the_mean_over_the_queries_of_all_patches() -> None:
    shown = subject()
    [maps] = attention_maps(shown, [0])
    [weights] = attention_weights(shown.encoder, shown.views, [0])
    torch.testing.assert_close(maps, weights.mean(dim=2))
    assert "the average patch" in plot_attention(shown).title


def test_each_patch_has_the_colour_of_its_weight_and_the_largest_is_yellow() -> None:
    shown = subject(TOKENS)
    figure = plot_attention(shown, layers=[0, -1], heads=[2])
    titles = ["image", "block 0 mean of 4 heads", "block 0 head 2", "block 1 mean of 4 heads", "block 1 head 2"]
    assert [column.title for column in figure.columns] == titles
    [_, maps] = attention_maps(shown, [0, 1])
    panel = figure.columns[-1].images[0, :, ::4, ::4].flatten(1)
    brightest = int(maps[0, 2].argmax())
    assert panel[0, brightest] > 0.95 and panel[1, brightest] > 0.85
    assert f"in all {maps[0, 2].sum():.0%}" in figure.columns[-1].captions[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, r"--layers 2: the encoder has blocks 0..1, or -2..-1 counted from the last"),
        ({"heads": [0, 4]}, r"--heads 4: its blocks have heads 0..3, or -4..-1"),
        ({"patch": (0, 4)}, r"--patch 0,4: the images have 4 x 4 patches, rows 0..3 and columns 0..3"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_bounds(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_attention(subject(), **options)


def test_pca_maps_are_the_projections_that_an_svd_of_centred_features_gives() -> None:
    shown = subject(TOKENS)
    features = shown.patch_features().double()
    assert features.shape == (3, 16, 48)
    flat = features.flatten(0, 1)
    _, singular, rows = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    colours = plot_components(shown).columns[1].images[:, :, ::4, ::4].flatten(2).transpose(1, 2)
    for number in range(3):
        expected = (features - flat.mean(0)) @ rows[number]
        low, high = expected.flatten().quantile(torch.tensor([0.02, 0.98], dtype=torch.float64))
        scaled = ((expected - low) / (high - low)).clamp(0, 1).float()
        given = colours[..., number]  # the sign of a component is free
        assert torch.allclose(given, scaled, atol=1e-5) or torch.allclose(given, 1 - scaled, atol=1e-5)
    fraction = (singular.square() / singular.square().sum())[0]
    assert plot_components(shown).columns[2].title == f"component 1, {fraction:.0%} of the variance"


def test_an_encoder_before_training_has_a_column_with_components_of_its_own() -> None:
    shown, initial = subject(), subject(replace(TINY_BACKBONE, mlp_ratio=2.0)).encoder
    with_initial, own = plot_components(shown, initial), plot_components(replace(shown, encoder=initial))
    assert torch.equal(with_initial.columns[-1].images, own.columns[1].images)


def test_patch_similarities_are_cosines_and_the_framed_patch_is_most_similar_to_itself() -> None:
    shown = subject()
    features, similarity = shown.patch_features(), patch_similarities(shown)
    expected = torch.nn.functional.cosine_similarity(features[0, 3], features[0, 9], dim=0)
    torch.testing.assert_close(similarity[0, 3, 9], expected)
    torch.testing.assert_close(similarity.diagonal(dim1=1, dim2=2), torch.ones(3, 16))
    image, panel = (column.images[0] for column in plot_similarity(shown, (1, 3)).columns)
    assert image[0, 4, 12] == 1.0 and panel[0, 5, 13] > 0.95 > panel[2, 5, 13]


def test_maps_of_images_that_are_not_square_have_their_grid() -> None:
    shown = subject(replace(TINY_BACKBONE, image_size=16, image_width=24))
    shown = replace(shown, rendering=replace(shown.rendering, size=(16, 24)))
    for figure in (plot_attention(shown), plot_components(shown), plot_similarity(shown)):
        assert all(column.images.shape[-2:] == (16, 24) for column in figure.columns)


def test_names_are_those_of_the_samples_with_their_label() -> None:
    shown = subject()
    assert shown.names[1] == f"scene test/2, distance {int(shown.source.labels[2])}"


def test_images_of_a_source_are_spread_over_it_and_replaced_where_they_can_not_be_decoded() -> None:
    class Damaged(RenderedScenes):
        def image(self, index: int) -> torch.Tensor:
            if index in (0, 3):
                raise CorruptImage("damaged", str(index))
            return super().image(index)

    source = Damaged(ScenesConfig(num_train=1, num_test=9, image_size=16), Split.test)
    samples, images = choose_images(source, 3)
    assert samples == [6, 1, 2] and torch.equal(images[0], source.image(6))
    assert choose_images(source, 20)[0] == [1, 2, 4, 5, 6, 7, 8]
    with pytest.raises(CorruptImage):
        choose_images(source, 3, must_decode=True)
