import pytest
import torch
from jaxtyping import TypeCheckError

from labkit.delta import LowRank


def some(rows=12, columns=20, rank=3):
    return LowRank(torch.randn(rows, rank).double(), torch.randn(rank, columns).double())


def test_everything_agrees_with_the_dense_product():
    delta = some()
    dense = delta.dense()
    assert delta.shape == dense.shape
    assert delta.norm() == pytest.approx(torch.linalg.norm(dense).item(), rel=1e-12)
    values = torch.linalg.svdvals(dense)[: delta.rank]
    torch.testing.assert_close(delta.singular_values(), values)
    torch.testing.assert_close(delta.rows(2, 7), dense[2:7])
    rows, columns = torch.tensor([0, 11, 3]), torch.tensor([19, 0, 4])
    torch.testing.assert_close(delta.entries(rows, columns), dense[rows, columns])
    torch.testing.assert_close(delta.transposed().dense(), dense.T)
    total = torch.ones(5, 20).double()
    delta.add_rows_to(total, 4)
    torch.testing.assert_close(total, 1 + dense[4:9])


def test_deltas_are_added_and_never_factors():
    one, two = some(rank=3), some(rank=5)
    summed = LowRank.weighted_sum([(0.5, one), (-2.0, two)])
    torch.testing.assert_close(summed.dense(), 0.5 * one.dense() - 2 * two.dense())
    assert summed.rank == 8


def test_rank_above_the_size_of_the_matrix():
    delta = some(rows=2, columns=4, rank=6)
    torch.testing.assert_close(delta.singular_values()[:2], torch.linalg.svdvals(delta.dense()))


def test_shapes_are_enforced_while_tests_run():
    with pytest.raises(TypeCheckError):
        LowRank(torch.zeros(4, 2).double(), torch.zeros(3, 4).double())
    with pytest.raises(TypeCheckError):
        LowRank(torch.zeros(4, 2), torch.zeros(2, 4))
