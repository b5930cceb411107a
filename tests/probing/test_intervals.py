"""Intervals: how often they hold the truth, by simulation, and what documents do to them."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from labkit.probing.intervals import Bootstrap, expanded_tail


def coverage(documents, per_document, spread_between, trials=150):
    """How often the interval holds the true mean per token."""
    dice = np.random.default_rng(4)
    labels = [str(i // per_document) for i in range(documents * per_document)]
    held = 0
    for trial in range(trials):
        tokens = dice.integers(20, 60, len(labels)).astype(float)
        shifts = np.repeat(dice.normal(0, spread_between, documents), per_document)
        means = 0.3 + shifts + dice.normal(0, 0.2, len(labels))
        found = Bootstrap(labels, tokens, trial).estimate(means * tokens)
        held += found.low <= 0.3 <= found.high
    return held / trials


def test_intervals_hold_the_truth_as_often_as_they_say():
    assert 0.88 <= coverage(documents=40, per_document=1, spread_between=0) <= 0.99
    # Passages of one document alike: taken for independent ones, they would cover about 0.65.
    assert 0.86 <= coverage(documents=30, per_document=6, spread_between=0.2) <= 0.99


def test_intervals_of_20_documents_are_wide_enough():
    """The plain percentiles would hold the truth in 0.925, 0.935 and 0.928 of these trials."""
    assert 0.935 <= coverage(documents=20, per_document=4, spread_between=0.2, trials=400) <= 0.98
    assert 0.935 <= coverage(documents=20, per_document=1, spread_between=0, trials=400) <= 0.98
    assert 0.935 <= coverage(documents=32, per_document=2, spread_between=0.1, trials=400) <= 0.98


@pytest.mark.parametrize(("documents", "quantile"), [(10, 2.2622), (20, 2.0930), (100, 1.9842)])
def test_what_is_left_out_at_each_end(documents, quantile):
    """Student's quantiles as they stand in tables (0.975, of one degree less than documents)."""
    expected = NormalDist().cdf(-math.sqrt(documents / (documents - 1)) * quantile)
    assert expanded_tail(documents) == pytest.approx(expected, rel=0.02)


def test_the_estimate_is_the_mean_of_all_tokens():
    draws = Bootstrap(["a", "b", "c"], np.array([1.0, 2.0, 7.0]))
    found = draws.estimate(np.array([3.0, 2.0, 14.0]))
    assert found.value == pytest.approx(1.9)
    # The means of single documents are 3, 1 and 2.
    assert 1 <= found.low < 1.9 < found.high <= 3


def test_documents_make_intervals_wider():
    dice = np.random.default_rng(1)
    sums = np.repeat(dice.normal(size=10), 10) * 5
    tokens = np.full(100, 5.0)
    alone = Bootstrap([str(i) for i in range(100)], tokens).estimate(sums)
    together = Bootstrap([str(i // 10) for i in range(100)], tokens).estimate(sums)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)


def test_one_document_has_no_interval():
    found = Bootstrap(["a", "a"], np.ones(2)).estimate(np.array([1.0, 3.0]))
    assert found.value == 2
    assert math.isnan(found.low)
    assert math.isnan(found.high)
