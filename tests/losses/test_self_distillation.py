"""Sinkhorn-Knopp and me-max against their formulas."""

import math

import pytest
import torch
from tiny_world import on_ranks
from torch import Tensor

from ssl_zoo.losses.self_distillation import entropy, mean_entropy_gap, sinkhorn
from ssl_zoo.world import World


def slow(scores: Tensor, iterations: int) -> Tensor:
    """The algorithm of SwAV (arXiv 2006.09882, appendix A): rows of Q are prototypes, columns are samples."""
    q = scores.double().exp().T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T.float()


@pytest.mark.parametrize("iterations", [1, 3])
def test_balanced_distributions_are_those_of_the_algorithm_without_logarithms(iterations: int) -> None:
    scores = 5 * torch.randn(3, 4, 6)
    expected = slow(scores.flatten(0, 1), iterations).view_as(scores)
    torch.testing.assert_close(sinkhorn(scores, World(), iterations), expected)


def test_each_row_sums_to_one_and_each_prototype_gets_an_equal_share_in_the_end() -> None:
    balanced = sinkhorn(3 * torch.randn(12, 4), World(), 200)
    torch.testing.assert_close(balanced.sum(1), torch.ones(12))
    torch.testing.assert_close(balanced.sum(0), torch.full((4,), 3.0), rtol=1e-3, atol=1e-3)


def test_without_iterations_the_scores_are_kept() -> None:
    log_p = torch.randn(5, 4).log_softmax(-1)
    torch.testing.assert_close(sinkhorn(log_p, World(), 0), log_p.exp())


def test_scores_of_any_size_give_distributions() -> None:
    scores = torch.tensor([[900.0, 0.0], [-900.0, -2000.0], [0.0, 0.0]])  # exp overflows, and empties the second row
    balanced = sinkhorn(scores, World(), 3)
    torch.testing.assert_close(balanced.sum(1), torch.ones(3))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_balance_as_one_process(ranks: int) -> None:
    scores, counted = 5 * torch.randn(8, 6), torch.arange(8) % 3 > 0
    for rows in (None, counted):
        parts = on_ranks(
            ranks,
            lambda w, rows=rows: sinkhorn(
                scores.chunk(ranks)[w.rank], w, 3, None if rows is None else rows.chunk(ranks)[w.rank]
            ),
        )
        torch.testing.assert_close(torch.cat(parts), sinkhorn(scores, World(), 3, rows))


def test_rows_that_are_not_counted_change_no_other_row_and_all_may_be_left_out() -> None:
    scores, counted = 5 * torch.randn(8, 6), torch.arange(8) % 2 == 0
    torch.testing.assert_close(sinkhorn(scores, World(), 3, counted)[counted], sinkhorn(scores[counted], World(), 3))
    nothing = torch.zeros(8, dtype=torch.bool)
    torch.testing.assert_close(sinkhorn(scores, World(), 3, nothing), scores.softmax(-1))


def test_the_me_max_gap_is_zero_for_equal_use_and_ln_k_for_one_prototype() -> None:
    torch.testing.assert_close(mean_entropy_gap(torch.eye(4), World()), torch.tensor(0.0))
    single = torch.eye(4)[[0, 0, 0]].requires_grad_()
    gap = mean_entropy_gap(single, World())
    gap.backward()
    assert gap.item() == pytest.approx(math.log(4)) and single.grad.isfinite().all()


def test_the_me_max_gap_of_ranks_is_that_of_all_rows() -> None:
    p = torch.randn(8, 5).softmax(-1)
    gaps = on_ranks(2, lambda world: mean_entropy_gap(p.chunk(2)[world.rank], world))
    torch.testing.assert_close(torch.stack(gaps), (math.log(5) - entropy(p.mean(0))).expand(2))
