"""What an adapter holds in place of the base's numbers, against the formula written out."""

import numpy as np
import pytest

from labkit.deltas.replacements import RowReplacement, WholeReplacement
from tests.deltas.dense import added_by, some, with_new_rows

WEIGHTS = (0.5, -1.25, 1.0, 2.0)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_whole_tensor_is_mixed_with_the_base(stored, weight):
    base, saved = some(6, 5), some(6, 5)
    delta = WholeReplacement(stored("saved", saved), stored("base", base), weight=weight)
    assert delta.row_count == 6
    expected = weight * (saved - base)
    np.testing.assert_allclose(added_by(delta, base), expected, atol=1e-12)
    np.testing.assert_allclose(added_by(delta, base[2:5], 2), expected[2:5], atol=1e-12)
    assert delta.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-12)
    assert delta.rank is None
    assert delta.singular_values() is None


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("start", [0, 3, 5, 6, 7])
def test_new_tokens_have_the_adapters_rows_at_every_weight(stored, weight, start):
    """There is nothing of the base to mix them with: a row half as long would be no token's."""
    base, saved = some(6, 5), some(9, 5)
    delta = WholeReplacement(stored("saved", saved), stored("base", base), weight=weight)
    assert delta.row_count == 9
    whole = with_new_rows(base, 3)
    expected = np.concatenate([weight * (saved[:6] - base), saved[6:]])
    np.testing.assert_allclose(added_by(delta, whole[start:], start), expected[start:], atol=1e-12)
    np.testing.assert_array_equal(added_by(delta, whole, 0)[6:], saved[6:])
    assert delta.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-12)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("start", [0, 2, 5])
def test_rows_that_are_held_apart_count_in_place_of_the_saved_ones(stored, weight, start):
    base, saved, apart = some(6, 5), some(8, 5), some(3, 5)
    indices = np.array([7, 1, 5])
    whole = saved.copy()
    whole[indices] = apart
    delta = WholeReplacement(stored("saved", saved), stored("base", base), weight, (indices, apart))
    expected = np.concatenate([weight * (whole[:6] - base), whole[6:]])
    all_rows = with_new_rows(base, 2)
    for stop in range(start + 1, 9):
        found = added_by(delta, all_rows[start:stop], start)
        np.testing.assert_allclose(found, expected[start:stop], atol=1e-12)
    doubled = added_by(delta.times(2.0), all_rows)
    np.testing.assert_allclose(doubled[:6], 2 * expected[:6], atol=1e-12)
    np.testing.assert_array_equal(doubled[6:], expected[6:])


def test_at_weight_1_exactly_the_adapters_numbers_are_left(stored):
    # 1e-17 and 1 in one sum: whatever of the base were left would show.
    base, saved = some(4, 3) * 1e17, some(4, 3)
    delta = WholeReplacement(stored("saved", saved), stored("base", base))
    total = base.copy()
    delta.add_rows_to(total, 0, base)
    np.testing.assert_array_equal(total, saved)
    rows, columns = (each.reshape(-1) for each in np.indices(base.shape))
    entries = base.reshape(-1).copy()
    delta.add_entries_to(entries, base.reshape(-1), rows, columns)
    np.testing.assert_array_equal(entries, saved.reshape(-1))


def test_weights_multiply(stored):
    base, saved = some(4, 3), some(5, 3)
    whole = WholeReplacement(stored("saved", saved), stored("base", base), weight=0.5).times(-3.0)
    expected = np.concatenate([-1.5 * (saved[:4] - base), saved[4:]])
    np.testing.assert_allclose(added_by(whole, with_new_rows(base, 1)), expected, atol=1e-12)
    rows = RowReplacement(np.array([1]), saved[:1], stored("base", base), 0.5).times(-3.0)
    found = added_by(rows, base)
    np.testing.assert_allclose(found[1], -1.5 * (saved[0] - base[1]), atol=1e-12)
    assert rows.norm() == pytest.approx(1.5 * np.linalg.norm(saved[0] - base[1]))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("start", [0, 1, 2, 3, 5])
def test_single_tokens_rows_are_mixed_with_the_base(stored, weight, start):
    base, saved = some(7, 4), some(3, 4)
    indices = np.array([5, 2, 6])
    delta = RowReplacement(indices, saved, stored("base", base), weight)
    expected = np.zeros((7, 4))
    expected[indices] = weight * (saved - base[indices])
    for stop in (start + 1, 6, 7):
        if stop > start:
            found = added_by(delta, base[start:stop], start)
            np.testing.assert_allclose(found, expected[start:stop], atol=1e-12)
    assert delta.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-12)
    at_one = base.copy()
    RowReplacement(indices, saved, delta.base).add_rows_to(at_one, 0, base)
    np.testing.assert_array_equal(at_one[indices], saved)


def test_a_weight_again_keeps_base_adapter_and_rows_apart(stored):
    base, saved, rows = some(4, 3), some(5, 3), some(2, 3)
    where = np.array([1, 4])
    whole = WholeReplacement(stored("saved", saved), stored("base", base), 0.5, (where, rows))
    held = saved.copy()
    held[where] = rows
    expected = np.concatenate([-1.5 * (held[:4] - base), held[4:]])
    found = added_by(whole.times(-3.0), with_new_rows(base, 1))
    np.testing.assert_allclose(found, expected, atol=1e-12)
