import math

import numpy as np
import pytest

from labkit.deltas import passes
from labkit.deltas.low_rank import LowRank
from labkit.deltas.passes import largest, ordered_blocks, sum_in_order
from labkit.deltas.replacements import WholeReplacement
from labkit.deltas.row_block import RowBlock
from labkit.deltas.scaling import Scaling
from labkit.deltas.total import Total

DICE = np.random.default_rng(3)


def chosen_by_sorting(values, count):
    """The marks of the `count` largest magnitudes, of equals the first."""
    flat = np.abs(values).reshape(-1)
    order = np.argsort(-flat, kind="stable")
    marks = np.zeros(flat.size, bool)
    marks[order[:count]] = True
    return marks


def dense(delta, base):
    return np.concatenate([values for _, values, _ in ordered_blocks(delta, base)])


@pytest.fixture(params=["in one block", "in blocks of some rows"])
def blocks(request, monkeypatch):
    if request.param != "in one block":
        monkeypatch.setattr(passes, "NORM_ELEMENTS", 40)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("few", [0, 7, 1 << 16])
@pytest.mark.parametrize("count", [1, 17, 100, 207, 208])
@pytest.mark.parametrize("kind", ["factors", "equals", "zeros", "replaced"])
def test_the_largest_are_those_that_sorting_finds(stored, monkeypatch, kind, count, few):
    monkeypatch.setattr(passes, "FEW", few)
    base = stored("base", DICE.standard_normal((16, 13)).astype(np.float32))
    delta = LowRank(DICE.standard_normal((16, 3)), DICE.standard_normal((3, 13)))
    if kind == "equals":  # three magnitudes, with both signs
        delta = LowRank(DICE.integers(-1, 2, (16, 2)) * 1.0, DICE.integers(-1, 2, (2, 13)) * 1.0)
    elif kind == "zeros":
        delta = delta.times(0.0)
    elif kind == "replaced":
        saved = stored("saved", DICE.standard_normal((16, 13)).astype(np.float16))
        delta = WholeReplacement(saved, base)
    values = dense(delta, base)
    marks = largest(delta, base, count).keeps(values, np.arange(values.size))
    np.testing.assert_array_equal(marks, np.where(chosen_by_sorting(values, count), -1, 0))


def rows_of_many_sizes(rows, columns):
    """Factors whose rows are as different as a LoRA's, and few with none at all."""
    left = DICE.standard_normal((rows, 4)) * np.exp(DICE.standard_normal((rows, 1)))
    left[::17] = 0
    return LowRank(left, DICE.standard_normal((4, columns)))


@pytest.fixture
def no_digits(monkeypatch):
    """The quick way alone: the slow one finds all."""

    def fail(delta, base, count):
        raise AssertionError("the cut was not found between two guesses")

    monkeypatch.setattr(passes, "_largest_by_digits", fail)


@pytest.mark.usefixtures("no_digits")
@pytest.mark.parametrize("share", [1e-4, 0.02, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["factors", "replaced", "16 bits"])
def test_the_cut_of_a_large_tensor_is_found_between_two_guesses(stored, kind, share):
    rows, columns = 700, 300
    numbers = DICE.standard_normal((rows, columns)).astype(np.float32)
    base = stored("base", numbers)
    delta = rows_of_many_sizes(rows, columns)
    if kind == "replaced":
        delta = WholeReplacement(stored("saved", numbers + 0.1 * numbers[::-1]), base)
    elif kind == "16 bits":  # few magnitudes, each of many elements
        base = stored("base", numbers.astype(np.float16))
        saved = numbers.astype(np.float16) + np.float16(2e-3) * (numbers[::-1] > 0.5)
        delta = WholeReplacement(stored("saved", saved), base)
    values = dense(delta, base)
    count = int(share * values.size)
    marks = largest(delta, base, count).keeps(values, np.arange(values.size))
    np.testing.assert_array_equal(marks, np.where(chosen_by_sorting(values, count), -1, 0))


@pytest.mark.parametrize("count", [1, 50_000, 60_000, 209_000])
def test_a_cut_that_is_not_between_the_guesses_is_found_too(stored, monkeypatch, count):
    base = stored("base", DICE.standard_normal((700, 300)).astype(np.float32))
    delta = rows_of_many_sizes(700, 300)
    values = dense(delta, base)
    expected = np.where(chosen_by_sorting(values, count), -1, 0)
    some = np.sort(np.abs(values))[::-1][100_000]
    for low, high in ((some, some), (-1.0, 0.0), (1e300, math.inf)):
        monkeypatch.setattr(passes, "_guess", lambda *_, low=low, high=high: (low, high))
        marks = largest(delta, base, count).keeps(values, np.arange(values.size))
        np.testing.assert_array_equal(marks, expected)
    monkeypatch.setattr(passes, "_guess", lambda *_: (-1.0, math.inf))
    for held in (passes.MOST_HELD, 1000):
        monkeypatch.setattr(passes, "MOST_HELD", held)
        marks = largest(delta, base, count).keeps(values, np.arange(values.size))
        np.testing.assert_array_equal(marks, expected)


def test_every_pass_sees_the_bits_of_single_elements(stored):
    numbers = DICE.standard_normal((12, 10))
    base = stored("base", numbers)
    parts = [
        WholeReplacement(stored("saved", DICE.standard_normal((12, 10))), base, 0.3),
        Scaling(DICE.standard_normal(12), False, base),
        LowRank(DICE.standard_normal((12, 5)), DICE.standard_normal((5, 10))),
        RowBlock(LowRank(DICE.standard_normal((4, 3)), DICE.standard_normal((3, 10))), 6),
    ]
    rows, columns = (each.reshape(-1) for each in np.indices((12, 10)))
    for delta in (*parts, Total(parts, base)):
        single = np.zeros(120)
        delta.add_entries_to(single, numbers.reshape(-1), rows, columns)
        for start, stop in ((0, 12), (3, 8), (7, 8), (0, 6), (10, 12)):
            block = np.zeros((stop - start, 10))
            delta.add_rows_in_order(block, start, numbers[start:stop])
            np.testing.assert_array_equal(block, single.reshape(12, 10)[start:stop])


def test_a_row_longer_than_a_block_is_summed_as_single_elements_are(monkeypatch):
    monkeypatch.setattr("labkit.deltas.low_rank.ORDERED_ELEMENTS", 7)
    delta = LowRank(DICE.standard_normal((5, 6)), DICE.standard_normal((6, 9)))
    block = np.zeros((4, 9))
    delta.add_rows_in_order(block, 1, block)
    rows, columns = (each.reshape(-1) for each in np.indices((4, 9)))
    np.testing.assert_array_equal(block.reshape(-1), delta.entries(rows + 1, columns))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 1000, 1001])
def test_a_sum_in_order_is_the_sum(count):
    values = DICE.standard_normal(count)
    assert sum_in_order(values) == pytest.approx(math.fsum(values), abs=1e-12)


def test_a_sum_in_order_adds_halves():
    # 1e16 + 1 is 1e16 again, so the order shows.
    assert sum_in_order(np.array([1e16, 1.0, -1e16, 1.0])) == 2
    assert sum_in_order(np.array([1e16, -1e16, 1.0, 1.0])) == 0
