"""The search in float32 with exact re-ranking against a full search in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_zoo.eval import nearest
from ssl_zoo.eval.nearest import UnitRows, bits_of, decode, nearest_keys, similarities
from ssl_zoo.precision import exact_matmuls

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest_rows(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    keys = nearest_keys(UnitRows(queries, CPU), UnitRows(bank, CPU), torch.arange(len(bank)), len(bank), k)
    return decode(keys, len(bank))


def full_search(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All similarities in float64, rounded to the grid; of equal ones the first row is the nearer."""
    scale = 2.0 ** (52 - bits_of(len(bank)))
    keys = (normalize(queries.double(), dim=1) @ normalize(bank.double(), dim=1).T * scale).round()
    order = keys.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k] / scale, order.indices[:, :k]


def near_ties(num_rows: int = 3000, dim: int = 64) -> Tensor:
    """Rows in groups that differ by far less than float32 resolves in a dot product."""
    return normal(num_rows // 50, dim).repeat(50, 1) + 1e-5 * normal(num_rows // 50 * 50, dim, seed=1)


def collapsed(num_rows: int = 3000, dim: int = 64) -> Tensor:
    """Rows that share nearly all of their direction, as those of a random network do."""
    return normal(1, dim, seed=2) + 1e-3 * normal(num_rows, dim, seed=3)


BANKS = {
    "spread": normal(3000, 64),
    "one image often": torch.cat([normal(1000, 64), normal(1, 64, seed=1).repeat(500, 1), normal(1000, 64, seed=2)]),
    "near-ties": near_ties(),
    "nearly collapsed": collapsed(),
    "collapsed": torch.ones(3000, 64),
    "zeros among them": normal(3000, 64) * (torch.arange(3000) % 7 > 0)[:, None],
    "fewer rows than candidates": normal(45, 64),
    "large and small": normal(3000, 64) * torch.logspace(-6, 6, 3000)[:, None],
}


@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("name", BANKS)
def test_neighbours_are_those_of_a_full_search_in_float64(name, k):
    bank = BANKS[name]
    queries = torch.cat([bank[:40], bank[:40] + 1e-3 * normal(len(bank[:40]), 64, seed=4), normal(40, 64, seed=5)])
    similarity, rows = nearest_rows(queries, bank, k)
    expected, expected_rows = full_search(queries, bank, k)
    assert torch.equal(rows, expected_rows)
    assert torch.allclose(similarity, expected, rtol=0, atol=2e-12)


@pytest.mark.parametrize("bank_per_block", [3, 1000])
def test_among_duplicates_the_first_rows_are_the_neighbours(monkeypatch, bank_per_block):
    for name in ("_BANK_PER_BLOCK", "_EXACT_BANK_PER_BLOCK"):
        monkeypatch.setattr(nearest, name, bank_per_block)
    rows = normal(5, 8)
    similarity, numbers = nearest_rows(rows, rows.repeat(40, 1), 6)  # row i repeats at i, i + 5, i + 10 ...
    assert numbers.tolist() == [[i + 5 * j for j in range(6)] for i in range(5)]
    assert torch.allclose(similarity, torch.ones(5, 6).double(), atol=1e-9)


@pytest.mark.parametrize("name", BANKS)
def test_parts_of_a_bank_have_the_keys_of_the_whole(name):
    bank, k = BANKS[name], 20
    queries, rows = bank[:50] + 1e-3 * normal(len(bank[:50]), 64), torch.arange(len(bank))
    search = lambda part: nearest_keys(UnitRows(queries, CPU), UnitRows(bank[part], CPU), part, len(bank), k)  # noqa: E731
    parts = [rows[rows % 7 == 3], rows[rows % 7 != 3], rows[:0]]
    merged = torch.cat([search(part) for part in parts], dim=1).topk(k, dim=1).values
    assert torch.equal(merged, search(rows))


@pytest.mark.parametrize("name", ["spread", "nearly collapsed"])
def test_few_queries_need_the_whole_bank(monkeypatch, name):
    searched: list[int] = []
    of_all = nearest._nearest_of_all

    def counted(queries, *others):
        searched.append(len(queries))
        return of_all(queries, *others)

    monkeypatch.setattr(nearest, "_nearest_of_all", counted)
    nearest_rows(BANKS[name][:500], BANKS[name], 20)
    assert sum(searched) < 10
    nearest_rows(BANKS["collapsed"][:500], BANKS["collapsed"], 20)
    assert sum(searched) >= 500


@pytest.mark.parametrize("dim", [3, 192, 5000])
def test_similarities_do_not_depend_on_the_order_of_summation(dim):
    queries, rows = (normalize(normal(20, dim, seed=seed).double(), dim=1) for seed in (0, 1))
    found = similarities(queries, rows)
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(2))
    assert torch.equal(similarities(queries[:, order], rows[:, order]), found)
    assert torch.equal(torch.cat([similarities(queries[i : i + 1], rows) for i in range(20)]), found)
    assert torch.allclose(found, queries @ rows.T, rtol=0, atol=dim * 2.0**-50)


def test_the_margin_covers_the_error_of_float32():
    bank, queries = normal(4000, 700), normal(200, 700, seed=1)
    rows, of_queries = UnitRows(bank, CPU), UnitRows(queries, CPU)
    found, numbers, error = nearest._candidates(of_queries, rows, 100)
    exact = (of_queries[:][:, None] * rows[numbers]).sum(dim=-1)
    difference = found - exact
    spread = (difference - difference.mean(dim=1, keepdim=True)).abs().max()  # the constant of a query aside
    assert 0.001 * error < spread < error < 1e-4


def test_norms_are_those_of_each_row_alone():
    values = normal(257, 193)
    alone = torch.cat([UnitRows(values[i : i + 1], CPU)[:] for i in range(257)])
    assert torch.equal(UnitRows(values, CPU)[:], alone)


def test_the_setting_of_float32_matmuls_is_restored():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with exact_matmuls():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)
