import pytest
import torch
from sklearn.metrics import average_precision_score
from tiny_probes import encoder, probe
from torch.nn.functional import normalize

from ssl_zoo.eval import retrieval
from ssl_zoo.eval.features import Features, Pooling
from ssl_zoo.eval.retrieval import Gallery, RetrievalConfig, average_precisions


def features(count: int, seed: int, classes: int = 4, dim: int = 6, levels: int | None = None) -> Features:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, dim, generator=generator)
    if levels is not None:  # few different vectors: many ties
        values = values[torch.randint(levels, (count,), generator=generator)]
    return Features(values, torch.randint(classes, (count,), generator=generator), torch.arange(count))


def by_definition(query: torch.Tensor, label: int, values: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean, over relevant images, of the precision among all images that are at least as similar."""
    similarity = (normalize(values.double(), dim=1) @ normalize(query.double(), dim=0)).mul(1e9).round()
    relevant = labels == label
    precisions = [relevant[similarity >= s].double().mean() for s in similarity[relevant]]
    return float(sum(precisions) / len(precisions))


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("is_leave_one_out", [True, False])
def test_average_precision_is_that_of_its_definition_and_of_sklearn(monkeypatch, levels, is_leave_one_out):
    monkeypatch.setattr(retrieval, "_BLOCK_BYTES", 8 * 40 * 3)  # three queries at once
    monkeypatch.setattr(retrieval, "_GALLERY_PER_BLOCK", 16)
    queries = features(40, 0, levels=levels)
    gallery = queries if is_leave_one_out else features(40, 1, levels=levels)
    found, has_relevant = average_precisions(queries, gallery, is_leave_one_out=is_leave_one_out)
    assert has_relevant.all()
    for row in range(40):
        kept = torch.arange(40) != (row if is_leave_one_out else -1)
        values, labels = gallery.values[kept], gallery.labels[kept]
        query, label = queries.values[row], int(queries.labels[row])
        assert found[row].item() == pytest.approx(by_definition(query, label, values, labels), abs=1e-12)
        similarity = (normalize(values.double(), dim=1) @ normalize(query.double(), dim=0)).mul(1e9).round()
        assert found[row].item() == pytest.approx(average_precision_score(labels == label, similarity), abs=1e-12)


def test_the_order_of_the_gallery_and_the_size_of_blocks_do_not_matter(monkeypatch):
    queries, gallery = features(30, 0, levels=5), features(50, 1, levels=5)
    expected, _ = average_precisions(queries, gallery, is_leave_one_out=False)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    shuffled = Features(gallery.values[order], gallery.labels[order], gallery.index[order])
    monkeypatch.setattr(retrieval, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(retrieval, "_GALLERY_PER_BLOCK", 7)
    assert torch.allclose(average_precisions(queries, shuffled, is_leave_one_out=False)[0], expected, atol=1e-12)


def test_queries_without_an_image_of_their_class_are_left_out_and_counted():
    values = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    alone = Features(values, torch.tensor([0, 0, 1]), torch.arange(3))
    precisions, has_relevant = average_precisions(alone, alone, is_leave_one_out=True)
    assert has_relevant.tolist() == [True, True, False] and precisions.tolist() == [1, 1, 0]


def test_the_gallery_is_the_test_split_without_the_query_or_the_train_split():
    (own,) = probe(evaluators=["retrieval"])(encoder())
    train_gallery = RetrievalConfig(gallery=Gallery.train)
    (other,) = probe(evaluators=["retrieval"], retrieval=train_gallery)(encoder())
    assert own.name == "retrieval_map" and own.details == {"queries": 40, "without_relevant_image": 0}
    assert own.protocol["gallery"] == "test" and own.protocol_hash != other.protocol_hash
    model = probe(evaluators=[]).evaluated_model(encoder())
    train, test = model.features(train_gallery)
    expected = average_precisions(test, train, is_leave_one_out=False)[0].mean().item()
    assert other.value == expected != own.value


def test_leave_one_out_encodes_no_train_image():
    checked = probe(evaluators=["retrieval"])
    model = checked.evaluated_model(encoder())
    model.train = None
    assert average_precisions(*[model.test_features(RetrievalConfig())] * 2, is_leave_one_out=True)[1].all()


def test_data_that_rank_nothing_are_refused():
    with pytest.raises(ValueError, match="no labels"):
        probe(evaluators=["retrieval"], labelled=False)
    with pytest.raises(ValueError, match=r"no two test images are of one class; raise probe\.test_samples"):
        probe(evaluators=["retrieval"], test_samples=1)
    with pytest.raises(ValueError, match="another pooling than tokens"):
        probe(evaluators=["retrieval"], retrieval=RetrievalConfig(pooling=Pooling.tokens))(encoder())
