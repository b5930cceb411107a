import math
import re

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.deltas import passes
from labkit.merging.methods.dare import key_of
from labkit.merging.methods.della import Della, Drawn
from tests.merging.methods.dense import assert_merged, deltas_of, layer_of, merge, numbers_of
from tests.merging.methods.test_dare import splitmix64

FIRST, SECOND = [1.0, 0.25, 0.0], [0.5, -0.75, 2.0]


def by_mergekits_formula(delta, density, epsilon, seed, name, term):
    """`della_magprune` of mergekit 0.1.5's sparsify.py, written again for numpy; its draw is ours.

    Ranks from 1, min and max of them, `rank_norm`, `probs`, a mask, and the L1 rescaling.
    """
    magnitudes = np.abs(delta)
    ranks = np.argsort(np.argsort(magnitudes, axis=1, kind="stable"), axis=1) + 1.0
    least, most = ranks.min(axis=1, keepdims=True), ranks.max(axis=1, keepdims=True)
    rank_norm = ((ranks - least) / (most - least)).clip(0, 1)
    probs = (density - epsilon) + rank_norm * 2 * epsilon
    numbers = splitmix64(key_of(seed, name, term))
    drawn = np.array([next(numbers) / 2**64 for _ in range(math.prod(delta.shape))])
    kept = delta * (drawn.reshape(delta.shape) < probs)
    return kept, kept * (magnitudes.sum() / np.abs(kept).sum())


@pytest.mark.parametrize(("rescale", "density"), [("l1", 0.4), ("none", [0.3, 0.5, 0.6])])
def test_large_elements_stay_more_often(pair, tmp_path, monkeypatch, rescale, density):
    monkeypatch.setattr(passes, "NORM_ELEMENTS", 333)  # blocks of rows that begin within a byte
    base, *adapters = pair
    old = numbers_of(base)
    both = [deltas_of(adapter, old) for adapter in adapters]
    expected = {}
    for name in both[0]:
        change = np.zeros_like(old[name])
        here = density if rescale == "l1" else density[layer_of(name)]
        for term, (deltas, gradient) in enumerate(zip(both, (FIRST, SECOND), strict=True)):
            weight = gradient[layer_of(name)]
            if name in deltas and weight:
                kept, scaled = by_mergekits_formula(deltas[name], here, 0.2, 7, name, term)
                change += weight * (scaled if rescale == "l1" else kept)
        if change.any():
            expected[name] = change
    terms = [(adapters[0], FIRST), (adapters[1], SECOND)]
    method = {"della": {"density": density, "epsilon": 0.2, "rescale": rescale, "seed": 7}}
    assert_merged(merge(base, terms, method, tmp_path / "out"), old, expected)


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("columns", [1, 2, 100, 129])
def test_ranks_count_the_lowest_bits_and_of_equals_the_first(of, columns):
    dice = np.random.default_rng(2)
    rows = np.abs(dice.standard_normal((12, columns)))
    rows[1] = dice.integers(0, 3, columns)  # equals, and zeros
    rows[2] = 1 + dice.permutation(columns) * 2.0**-52
    rows[3, ::2] = rows[3, -1] * (1 + 2.0**-52)
    rows[4] = 5e-324 * dice.permutation(columns)
    limits = np.asarray(Della(0.5, epsilon=0.2)._limits(0.5, of(rows))).reshape(rows.shape)
    ranks = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1)
    expected = 0.3 + 0.4 * ranks / max(1, columns - 1)
    np.testing.assert_allclose(limits * 2.0**-53, expected, rtol=1e-15)


def test_bits_are_found_where_they_were_packed():
    marks = np.random.default_rng(0).random(101) < 0.5
    drawn = Drawn(np.packbits(marks))
    marks = np.where(marks, -1, 0)
    np.testing.assert_array_equal(drawn.keeps(np.arange(101)), marks)
    order = np.array([[100, 3], [8, 77]])
    np.testing.assert_array_equal(drawn.keeps(order), marks[order])


def test_the_mask_counts_in_the_forecast(llamas):
    def planned(method):
        terms = [lk.Term(llamas[1], [1.0] * 3)]
        return lk.plan(lk.Recipe(llamas[0], terms, method=method))

    plan = planned("della")
    largest = max(change.tensor.elements for change in plan.changes.values())
    few = planned("dare").forecast().peak_memory
    assert plan.forecast().peak_memory - few > 4 * largest // 8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"density": 0.9}, "density 0.9 ± epsilon 0.15 must lie between 0 and 1; choose a smaller"),
        ({"density": [0.5, 0.1]}, "density 0.1 ± epsilon 0.15 must lie between 0 and 1; choose a"),
        ({"epsilon": -0.6}, "density 0.5 ± epsilon -0.6 must lie between 0 and 1; choose a small"),
        ({"epsilon": "much"}, "epsilon is 'much'; expected a finite number"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number from 0 on"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        Della(**parameters)
