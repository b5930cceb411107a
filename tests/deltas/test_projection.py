"""Projected singular values, against those of the dense matrix."""

import numpy as np
import pytest

from labkit.deltas import passes, projection
from labkit.deltas.projection import project
from labkit.deltas.replacements import WholeReplacement

DICE = np.random.default_rng(11)


def pair(stored, rows, columns):
    """A base, a model's tensor that differs by a decaying spectrum, and the difference."""
    base = DICE.standard_normal((rows, columns)).astype(np.float32)
    count = min(60, rows, columns)
    u = np.linalg.qr(DICE.standard_normal((rows, count)))[0]
    v = np.linalg.qr(DICE.standard_normal((columns, count)))[0]
    new = (base + (u * 0.7 ** np.arange(count)) @ v.T).astype(np.float32)
    tensor = stored("base", base)
    return tensor, WholeReplacement(stored("new", new), tensor), new - base.astype(np.float64)


@pytest.mark.parametrize("held", [True, False])
def test_of_a_large_matrix_the_largest_values(stored, monkeypatch, held):
    monkeypatch.setattr(passes, "NORM_ELEMENTS", 2000)  # 11 rows at a time
    if not held:
        monkeypatch.setattr(projection, "HELD_ELEMENTS", 0)
    tensor, delta, dense = pair(stored, 200, 170)
    seen = project(delta, tensor, 8)
    u, values, vh = np.linalg.svd(dense)
    assert seen.norm == pytest.approx(np.linalg.norm(dense), rel=1e-12)
    np.testing.assert_allclose(seen.values, values[:8], rtol=1e-5)
    assert not seen.complete
    for found, expected in ((seen.left, u[:, :8]), (seen.right, vh[:8].T)):
        np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=0)), 1, rtol=1e-4)


def test_of_a_small_matrix_all(stored):
    tensor, delta, dense = pair(stored, 90, 40)
    seen = project(delta, tensor, 8)
    assert seen.complete
    np.testing.assert_allclose(seen.values, np.linalg.svd(dense, compute_uv=False), atol=1e-6)


def test_of_nothing_none(stored):
    numbers = DICE.standard_normal((50, 40)).astype(np.float32)
    tensor = stored("base", numbers)
    seen = project(WholeReplacement(stored("same", numbers), tensor), tensor, 8)
    assert (seen.norm, len(seen.values), seen.complete) == (0.0, 0, True)
