"""Neighbours of images are those that vote in the k-NN evaluator, and an image is no neighbour of itself."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_methods import TINY_BACKBONE

from ssl_zoo.data.image_list import ImageList
from ssl_zoo.data.sources import Source, Split
from ssl_zoo.data.sources.scenes import RenderedScenes, ScenesConfig
from ssl_zoo.eval.features import Features, Pooling
from ssl_zoo.eval.knn import KNNConfig, knn_predictions, nearest_neighbours
from ssl_zoo.nn import ViT
from ssl_zoo.plotting import Figure
from ssl_zoo.seeding import generator_for
from ssl_zoo.visualization import Bank, Rendering, Subject, choose_images, plot_neighbours
from ssl_zoo.visualization.neighbours import bank_features

K = 5


def subject(source: Source, num_images: int = 6) -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ViT(replace(TINY_BACKBONE, class_token=True)).eval()
    rendering = Rendering((16, 16), [0.5] * 3, [0.25] * 3)
    chosen = choose_images(source, num_images, must_decode=True)
    return Subject(encoder, rendering, source, *chosen, torch.device("cpu"), nullcontext())


@pytest.fixture(scope="module")
def scenes() -> tuple[RenderedScenes, RenderedScenes]:
    config = ScenesConfig(num_train=60, num_test=20, image_size=16)
    return RenderedScenes(config, Split.train), RenderedScenes(config, Split.test)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("pooling", [Pooling.average, Pooling.class_token])
def test_neighbours_vote_for_the_class_that_the_evaluator_predicts(scenes, standardize, pooling) -> None:
    train, test = scenes
    config = KNNConfig(k=[K], standardize=standardize, pooling=pooling)
    shown = subject(test, 20)
    bank = bank_features(shown, train, torch.arange(60), config)
    queries = bank_features(shown, test, torch.arange(20), config)
    similarity, rows = nearest_neighbours(bank, queries, config, K)
    votes = torch.zeros(20, int(train.labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, bank.labels[rows], (similarity / config.temperature).exp())
    assert torch.equal(votes.argmax(dim=1), knn_predictions(bank, queries, config)[0])


def test_neighbours_are_those_of_a_sort_of_all_similarities() -> None:
    bank, queries = (torch.randn(n, 8, generator=generator_for("features", n)) for n in (50, 7))
    features = [Features(values, None, torch.arange(len(values))) for values in (bank, queries)]
    similarity, rows = nearest_neighbours(*features, KNNConfig(), K)
    for query, of_query, found in zip(queries, similarity, rows, strict=True):
        cosines = torch.nn.functional.cosine_similarity(query[None].double(), bank.double())
        order = cosines.argsort(descending=True)[:K]
        assert torch.equal(found, order)
        torch.testing.assert_close(of_query, cosines[order], atol=1e-8, rtol=0)


def test_panels_are_the_neighbours_with_similarity_and_name(scenes) -> None:
    train, test = scenes
    shown, config, samples = subject(test), KNNConfig(), torch.arange(0, 60, 2)
    figure = plot_neighbours(shown, Bank(train, samples, "scenes"), config, K)
    features = [
        bank_features(shown, source, ids, config) for source, ids in ((train, samples), (test, torch.arange(6)))
    ]
    similarity, rows = nearest_neighbours(*features, config, K)
    assert [column.title for column in figure.columns] == ["query", *(f"neighbour {n + 1}" for n in range(K))]
    for place, column in enumerate(figure.columns[1:]):
        for query in range(6):
            sample = int(samples[rows[query, place]])
            assert column.captions[query].startswith(f"{similarity[query, place]:.3f}  scene train/{sample},")
            assert torch.equal(column.images[query], shown.rendering.pixels([train.image(sample)])[0])


@pytest.fixture
def folder(tmp_path: Path, scenes) -> Path:
    for number in range(6):
        pixels = scenes[0].image(number).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def own_neighbours(figure: Figure) -> list[bool]:
    query, *columns = figure.columns
    return [
        any(torch.equal(column.images[row], query.images[row]) for column in columns) for row in range(figure.num_rows)
    ]


def test_an_image_of_the_folder_is_not_its_own_neighbour_under_any_spelling_of_its_path(folder: Path) -> None:
    bank = ImageList([str(folder / ".." / folder.name)])
    shown = subject(ImageList([str(folder / "2.png"), str(folder)]), 3)
    assert shown.names == [f"{folder.parts[-2]}/{folder.name}/{name}.png" for name in (2, 0, 1)]
    figure = plot_neighbours(shown, Bank(bank, torch.arange(6), "folder"), KNNConfig(), 4)
    assert len(figure.columns) == 5 and not any(own_neighbours(figure))


def test_more_neighbours_than_other_images_are_refused(folder: Path) -> None:
    bank = Bank(ImageList([str(folder)]), torch.arange(6), "folder")
    with pytest.raises(ValueError, match="--num-neighbours 6: folder has 5 other images"):
        plot_neighbours(subject(bank.source), bank, KNNConfig(), 6)
    assert plot_neighbours(subject(bank.source), bank, KNNConfig(), 5)
