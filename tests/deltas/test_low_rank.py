import numpy as np
import pytest
from jaxtyping import TypeCheckError

from labkit.deltas.low_rank import LowRank
from tests.deltas.dense import added_by


def some(rows=12, columns=20, rank=3):
    dice = np.random.default_rng(rank)
    return LowRank(dice.standard_normal((rows, rank)), dice.standard_normal((rank, columns)))


def test_everything_agrees_with_the_dense_product():
    delta = some()
    dense = delta.dense()
    assert delta.shape == dense.shape
    assert delta.norm() == pytest.approx(np.linalg.norm(dense), rel=1e-12)
    values = np.linalg.svd(dense, compute_uv=False)[: delta.rank]
    np.testing.assert_allclose(delta.singular_values(), values)
    np.testing.assert_allclose(delta.rows(2, 7), dense[2:7])
    rows, columns = np.array([0, 11, 3]), np.array([19, 0, 4])
    np.testing.assert_allclose(delta.entries(rows, columns), dense[rows, columns])
    np.testing.assert_allclose(delta.transposed().dense(), dense.T)
    total = np.ones((5, 20))
    delta.add_rows_to(total, 4, np.zeros((5, 20)))
    np.testing.assert_allclose(total, 1 + dense[4:9])
    delta.write_sum_to(total, np.full((5, 20), 2.0), 4)
    np.testing.assert_allclose(total, 2 + dense[4:9])
    np.testing.assert_allclose(delta.times(-0.5).dense(), -0.5 * dense)


def test_deltas_are_added_and_never_factors():
    one, two = some(rank=3), some(rank=5)
    summed = LowRank.weighted_sum([(0.5, one), (-2.0, two)])
    np.testing.assert_allclose(summed.dense(), 0.5 * one.dense() - 2 * two.dense())
    assert summed.rank == 8


def test_every_way_to_add_is_the_dense_product():
    delta = some()
    dense = delta.dense()
    base = np.random.default_rng(1).standard_normal((12, 20))
    np.testing.assert_allclose(added_by(delta, base), dense, atol=1e-12)
    np.testing.assert_allclose(added_by(delta, base[3:8], 3), dense[3:8], atol=1e-12)


def test_one_delta_alone_is_its_own_sum():
    delta = some()
    assert LowRank.stacked([delta]) is delta
    np.testing.assert_allclose(LowRank.weighted_sum([(3.0, delta)]).dense(), 3 * delta.dense())


def test_the_decomposition_is_the_dense_products():
    delta = some()
    u, values, v = delta.svd()
    np.testing.assert_allclose(u * values @ v.T, delta.dense(), atol=1e-12)
    for basis in (u, v):
        np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    assert values.tolist() == sorted(values.tolist(), reverse=True)


def test_rank_above_the_size_of_the_matrix():
    delta = some(rows=2, columns=4, rank=6)
    np.testing.assert_allclose(
        delta.singular_values()[:2], np.linalg.svd(delta.dense(), compute_uv=False)
    )


def test_shapes_are_enforced_while_tests_run():
    with pytest.raises(TypeCheckError):
        LowRank(np.zeros((4, 2)), np.zeros((3, 4)))
    with pytest.raises(TypeCheckError):
        LowRank(np.zeros((4, 2), np.float32), np.zeros((2, 4), np.float32))
