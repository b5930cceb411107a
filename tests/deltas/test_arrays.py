"""The same code on numpy's arrays and on torch's tensors gives the same numbers."""

import math

import numpy as np
import pytest
import torch

from labkit.deltas import arrays

DICE = np.random.default_rng(8)
BOTH = pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])


@BOTH
def test_what_is_what(of):
    values = of(DICE.standard_normal((3, 4)))
    assert arrays.of_numpy(values) == (of is np.asarray)
    np.testing.assert_array_equal(arrays.as_numpy(values), np.asarray(values))
    made = arrays.zeros((2, 5), values)
    assert type(made) is type(values)
    assert made.dtype == values.dtype
    assert np.asarray(made).tolist() == [[0.0] * 5] * 2
    assert arrays.all_finite(values)
    values[1, 2] = math.inf
    assert not arrays.all_finite(values)


@BOTH
def test_bits_and_marks(of):
    values = of(np.array([1.5, -0.0, 5e-324, -math.inf]))
    bits = arrays.bits_of(values)
    assert np.asarray(bits).tolist() == [0x3FF8 << 48, -(1 << 63), 1, -(0x10 << 48)]
    assert arrays.floats_of(bits)[0] == 1.5
    marks = arrays.marks_of(values > 0)
    assert np.asarray(marks).tolist() == [-1, 0, -1, 0]
    assert np.asarray(arrays.only(marks, values)).tolist() == [1.5, 0, 5e-324, 0]
    assert np.asarray(arrays.only(~marks, 2.5)).tolist() == [0, 2.5, 0, 2.5]
    numbers = of(np.array([-1, 1 << 62, 5]))
    assert np.asarray(arrays.shifted(numbers, 11)).tolist() == [(1 << 53) - 1, 1 << 51, 0]


@BOTH
def test_places_and_counts(of):
    values = of(np.array([0, 3, 3, 1]))
    found = arrays.places(7, 10, values)
    assert type(found) is type(values)
    assert np.asarray(found).tolist() == [7, 8, 9]
    assert np.asarray(arrays.places_where(values == 3)).tolist() == [1, 2]
    assert arrays.counts(values, 6).tolist() == [1, 1, 0, 2, 0, 0]


@BOTH
def test_rows(of):
    rows = of(DICE.integers(0, 4, (5, 9)))
    plain = np.asarray(rows).copy()
    assert np.asarray((rows == 3).any(axis=1)).tolist() == (plain == 3).any(axis=1).tolist()
    order = np.argsort(plain, axis=1, kind="stable")
    np.testing.assert_array_equal(arrays.stable_order(rows), order)
    np.testing.assert_array_equal(arrays.put_in_rows(of(order), np.arange(9)), np.argsort(order))
    np.testing.assert_array_equal(arrays.sorted_rows(rows), np.sort(plain, axis=1))


def test_numbers_go_to_a_device():
    assert arrays.on_device("cpu", np.arange(3)).tolist() == [0, 1, 2]
