import numpy as np
import pytest

from labkit.deltas import elementwise
from labkit.deltas.arrays import marks_of, only
from labkit.deltas.elementwise import Elementwise
from labkit.deltas.low_rank import LowRank
from tests.deltas.dense import added_by, some


@pytest.mark.parametrize("exact", [True, False])
def test_a_rule_sees_each_element_with_its_place(stored, exact, monkeypatch):
    numbers = some(9, 7)
    base = stored("base", numbers)
    first, second = LowRank(some(9, 3), some(3, 7)), LowRank(some(9, 2), some(2, 7))

    def rule(values, old, positions, bounds):
        larger = marks_of(values[0] > values[1])
        unsure = exact and isinstance(old, np.ndarray)
        marks = np.ones(len(old), bool) if unsure else None
        return only(larger, values[0]) + only(~larger, old) + positions, marks

    delta = Elementwise([first, second], rule, base, jumps=exact)
    assert not delta.by_element
    if exact:  # an element that is unsure is made as single elements are
        rows, columns = (each.reshape(-1) for each in np.indices((9, 7)))
        single = np.zeros(63)
        delta.add_entries_to(single, numbers.reshape(-1), rows, columns)
        np.testing.assert_array_equal(added_by(delta, numbers).reshape(-1), single)
    a, b = first.left @ first.right, second.left @ second.right
    expected = np.where(a > b, a, numbers) + np.arange(63).reshape(9, 7)
    np.testing.assert_allclose(added_by(delta, numbers), expected, atol=1e-12)
    np.testing.assert_allclose(added_by(delta, numbers[4:7], 4), expected[4:7], atol=1e-12)
    monkeypatch.setattr(elementwise, "RULE_ELEMENTS", 15)  # two rows at a time
    np.testing.assert_allclose(added_by(delta, numbers[1:], 1), expected[1:], atol=1e-12)
    half = added_by(delta.times(0.5), numbers)
    np.testing.assert_allclose(half, expected / 2, atol=1e-12)
    assert np.isclose(delta.norm(), np.linalg.norm(expected))
