"""Rows and columns of the base, each times a number of its own."""

import numpy as np
import pytest

from labkit.deltas.replacements import WholeReplacement
from labkit.deltas.scaling import Scaling
from tests.deltas.dense import added_by, some


@pytest.mark.parametrize("of_columns", [False, True])
@pytest.mark.parametrize("start", [0, 2])
def test_it_scales_the_bases_own_numbers(stored, of_columns, start):
    base = some(5, 5)
    factors = some(5)
    expected = base * (factors[None, :] if of_columns else factors[:, None])
    scaling = Scaling(factors, of_columns, stored("base", base))
    found = added_by(scaling, base[start:], start)
    np.testing.assert_allclose(found, expected[start:], atol=1e-12)
    np.testing.assert_allclose(added_by(scaling.times(-0.5), base), -0.5 * expected, atol=1e-12)
    assert scaling.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-12)
    assert scaling.times(-0.5).norm() == pytest.approx(0.5 * np.linalg.norm(expected), rel=1e-12)
    assert scaling.to("cpu").base is scaling.base


@pytest.mark.parametrize("of_columns", [False, True])
@pytest.mark.parametrize("start", [0, 2])
def test_it_scales_what_stands_in_place_of_the_base(stored, of_columns, start):
    base, saved, factors = some(5, 5), some(5, 5), some(5)
    expected = saved * (factors[None, :] if of_columns else factors[:, None])
    there = stored("base", base)
    replaced = WholeReplacement(stored("saved", saved), there)
    scaling = Scaling(factors, of_columns, there, replaced)
    found = added_by(scaling, base[start:], start)
    np.testing.assert_allclose(found, expected[start:], atol=1e-12)
    np.testing.assert_allclose(added_by(scaling.times(-0.5), base), -0.5 * expected, atol=1e-12)
    assert scaling.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-12)
