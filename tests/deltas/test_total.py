"""Sums of deltas of several kinds: their parts' sum, in the order that keeps numbers exact."""

import numpy as np
import pytest

from labkit.deltas.delta import NORM_ELEMENTS
from labkit.deltas.low_rank import LowRank
from labkit.deltas.replacements import RowReplacement, WholeReplacement
from labkit.deltas.row_block import RowBlock
from labkit.deltas.scaling import Scaling
from labkit.deltas.total import Total, total_of
from tests.deltas.dense import added_by, some, with_new_rows


def test_it_adds_what_its_parts_add(stored):
    base = some(6, 4)
    place = stored("base", base)
    parts = [
        RowBlock(LowRank(some(2, 1), some(1, 4)), 3),
        LowRank(some(6, 2), some(2, 4)),
        Scaling(some(6), False, place),
        LowRank(some(6, 1), some(1, 4)),
        WholeReplacement(stored("saved", some(6, 4)), place, weight=0.5),
        RowReplacement(np.array([4]), some(1, 4), place, 0.25),
    ]
    total = total_of(parts, place, 6)
    expected = sum(added_by(part, base) for part in parts)
    np.testing.assert_allclose(added_by(total, base), expected, atol=1e-12)
    np.testing.assert_allclose(added_by(total.times(-2.0), base), -2 * expected, atol=1e-12)
    assert total.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-12)
    assert total.times(-2.0).norm() == pytest.approx(2 * np.linalg.norm(expected), rel=1e-12)
    assert total.to("cpu").base is place
    # What replaces numbers comes first, then what scales them, one product, and blocks of rows.
    kinds = [WholeReplacement, RowReplacement, Scaling, LowRank, RowBlock]
    assert [type(part) for part in total.parts] == kinds
    assert total.parts[3].rank == 3
    again = total_of([total, parts[1]], place, 6)
    assert [type(part) for part in again.parts] == kinds
    np.testing.assert_allclose(added_by(again, base), expected + parts[1].dense(), atol=1e-12)


def test_products_alone_are_one_product(stored):
    one, two = LowRank(some(3, 2), some(2, 4)), LowRank(some(3, 1), some(1, 4))
    found = total_of([one, two], stored("base", some(3, 4)), 3)
    assert isinstance(found, LowRank)
    assert found.rank == 3
    np.testing.assert_allclose(found.dense(), one.dense() + two.dense())


def test_without_products(stored):
    base = some(3, 4)
    place = stored("base", base)
    parts = [Scaling(some(3), False, place), RowReplacement(np.array([2]), some(1, 4), place)]
    total = total_of(parts, place, 3)
    assert [type(part) for part in total.parts] == [RowReplacement, Scaling]
    expected = sum(added_by(part, base) for part in parts)
    np.testing.assert_allclose(added_by(total, base), expected, atol=1e-12)


def test_new_rows_count(stored):
    base, saved = some(4, 3), some(6, 3)
    place = stored("base", base)
    parts = [
        WholeReplacement(stored("saved", saved), place, weight=0.5),
        LowRank(some(6, 1), some(1, 3)),
    ]
    total = total_of(parts, place, 6)
    assert total.row_count == 6
    assert total.times(2.0).row_count == 6
    assert total.to("cpu").row_count == 6
    assert Total(parts, place).row_count == 4
    whole = with_new_rows(base, 2)
    expected = sum(added_by(part, whole) for part in parts)
    assert total.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-12)


def test_a_norm_of_many_blocks(stored):
    assert NORM_ELEMENTS == 131072  # the last bits of norms, and of DoRA's bytes, hang on it
    rows = 3 * NORM_ELEMENTS // 200 + 7
    base, factors = some(rows, 200), some(rows)
    scaling = Scaling(factors, False, stored("base", base))
    expected = np.linalg.norm(base * factors[:, None])
    assert scaling.norm() == pytest.approx(expected, rel=1e-12)
