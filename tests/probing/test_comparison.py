"""The constants' curve and the constant of the same KL, on numbers whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from labkit.probing.comparison import ConstantsCurve, SameKl, held_out_rows
from labkit.probing.intervals import Bootstrap, Estimate
from labkit.probing.objective import Objective, Scores
from labkit.probing.texts import Texts

PASSAGES = 12
COUNTS = np.full(PASSAGES, 10.0)
HARD = np.linspace(20, 40, PASSAGES)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def objective():
    made = Objective.__new__(Objective)
    texts = [Texts(name, [f"{name} {one}" for one in range(PASSAGES)]) for name in ("t", "k")]
    made.targets, made.keeps = ([SimpleNamespace(texts=one, counts=COUNTS)] for one in texts)
    return made


def at(constant, gain=0.0):
    """NLL falls as 3c - c² and KL rises as c²: a nat a token is 10 of a passage's sum."""
    nll = HARD - 10 * (3 * constant - constant**2) + 10 * gain
    return Scores((nll,), (np.full(PASSAGES, 10 * constant**2),))


@pytest.fixture
def curve():
    return ConstantsCurve(objective(), SHARES, [at(share) for share in SHARES])


def test_the_curve_between_the_constants_that_were_measured(curve):
    assert curve.share_of(0.09) == pytest.approx(0.3, abs=1e-5)
    assert curve.share_of(0.0) == 0
    assert curve.share_of(1.01) is None
    np.testing.assert_allclose(curve.nll_at(0.3)[0], at(0.3).nll[0])
    # 3c - c² less s·c² is largest at 3 / (2 + 2s).
    assert curve.best(1.0) == pytest.approx(0.75, abs=1e-3)
    assert curve.best(0.1) == 1.0


def test_a_merge_is_compared_with_the_constant_of_its_own_kl(curve):
    draws = [Bootstrap([str(one) for one in range(PASSAGES)], COUNTS)]
    better = Scores(at(0.6, gain=-0.05).nll, at(0.6).kl)
    same = curve.compare(better, draws)
    assert same.share == pytest.approx(0.6, abs=1e-5)
    assert same.gains[0].value == pytest.approx(-0.05, abs=1e-4)
    assert same.better
    # As good as constant 0.8, but at the KL of constant 0.9: no better.
    dear = Scores(at(0.8).nll, at(0.9).kl)
    assert not curve.compare(dear, draws).better
    assert curve.compare(dear, draws).gains[0].value > 0
    assert not curve.compare(at(0.37), draws).better
    beyond = curve.compare(Scores(at(1.0, -1.0).nll, (np.full(PASSAGES, 20.0),)), draws)
    assert beyond.share is None
    assert not beyond.better


def test_a_constant_that_is_measured_counts_more_than_the_curve(curve):
    """Between the knots the truth lies 0.2 off the curve in NLL, and the KL 0.01."""

    def measure(share):
        return Scores(at(share, 0.2).nll, (at(share).kl[0] + 0.1,))

    draws = [Bootstrap([str(one) for one in range(PASSAGES)], COUNTS)]
    merge = Scores(at(0.6).nll, (at(0.6).kl[0] + 0.1,))
    exact = curve.compare(merge, draws, measure)
    assert exact.share == pytest.approx(0.6, abs=1e-4)
    assert exact.gains[0].value == pytest.approx(-0.2, abs=1e-3)
    # The curve alone takes a larger constant to have that KL.
    assert curve.compare(merge, draws).share == pytest.approx(0.37**0.5, abs=1e-4)


def test_where_a_smaller_constant_is_better_it_is_the_one_to_beat():
    def harmful(constant, gain=0.0):
        return Scores((HARD + 10 * constant + 10 * gain,), at(constant).kl)

    curve = ConstantsCurve(objective(), SHARES, [harmful(share) for share in SHARES])
    draws = [Bootstrap([str(one) for one in range(PASSAGES)], COUNTS)]
    for measure in (None, harmful):
        # Better than constant 0.6, but worse than none at all.
        same = curve.compare(harmful(0.6, -0.3), draws, measure)
        assert (same.share, same.less, same.better) == (0.0, True, False)
        assert same.gains[0].value == pytest.approx(0.3)
        assert curve.compare(harmful(0.6, -0.7), draws, measure).better


def test_where_a_gain_is_not_sure_it_is_none(curve):
    draws = [Bootstrap([str(one) for one in range(PASSAGES)], COUNTS)]
    uneven = np.where(np.arange(PASSAGES) % 2, 4.0, -5.0)
    same = curve.compare(Scores((at(0.6).nll[0] + uneven,), at(0.6).kl), draws)
    assert same.gains[0].value == pytest.approx(-0.05, abs=1e-4)
    assert same.gains[0].high > 0
    assert not same.better


def test_rows(curve):
    merges = {"base": at(0.0), "mine": Scores(at(0.6, -0.05).nll, at(0.6).kl)}
    means = {"base": 0.0, "mine": 0.6}
    rows, same = held_out_rows(objective(), merges, means, at(0.0), curve, 0, at, (), {})
    assert [(row["gradient"], row["text"], row["metric"]) for row in rows] == [
        ("base", "t", "nll"), ("base", "k", "kl"), ("mine", "t", "nll"), ("mine", "k", "kl"),
    ]  # fmt: skip
    mine = rows[2]
    assert mine["estimate"] == pytest.approx(HARD.mean() / 10 - 1.44 - 0.05)
    assert mine["from_base"] == pytest.approx(-1.44 - 0.05)
    assert mine["from_constant"] == pytest.approx(-0.05, abs=1e-4)
    assert mine["from_constant_low"] <= mine["from_constant"] <= mine["from_constant_high"]
    assert np.isnan(rows[3]["from_constant"])
    assert rows[3]["estimate"] == pytest.approx(0.36)
    assert same["mine"].better
    # A constant that the curve misses by a little is itself the constant of its KL.
    rows, same = held_out_rows(objective(), merges, means, at(0.0), curve, 0, at, (), {"mine": 0.6})
    assert [rows[2][f"from_constant{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert same["mine"].share == 0.6
    assert not same["mine"].better


@pytest.mark.parametrize(
    ("gains", "better"),
    [
        ([(-0.03, -0.05, -0.01)], True),
        ([(-0.03, -0.05, 0.01)], False),  # the interval includes 0
        ([(-0.013, -0.017, -0.010)], False),  # sure, and too small to speak of
        ([(-0.04, -0.07, -0.01), (-0.01, -0.03, -0.001)], True),  # the mean counts
        ([(-0.05, -0.07, -0.01), (-0.01, -0.03, 0.001)], False),  # and each interval
        ([], False),
    ],
)
def test_better_is_sure_and_worthwhile(gains, better):
    same = SameKl(0.5, False, tuple(Estimate(*gain) for gain in gains))
    assert same.better is better
