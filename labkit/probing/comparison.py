"""Merges beside the constants' curve: which constant has the same KL, and which NLL it has.

Any merge that changes the model more can look better on its target text. So a merge is compared
with the constant that moves the model as far: the one of the same KL to the base on the texts to
keep; or with a smaller one where that is better, as 0 is for a LoRA that does harm. Between a few
constants that are measured, each passage's numbers are interpolated by the polynomial through all
of them; that finds the constant, which is then measured itself where much hangs on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from labkit.probing.intervals import Bootstrap, Estimate, beside_base
from labkit.probing.objective import Objective, Scores

KNOTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of the largest constant at which the curve is measured; it bends most near 0."""
FINE = 2001
WORTHWHILE = 0.02
"""Nats a token, as a mean over the target sets: smaller gains are called none. A LoRA of shuffled
rows can gain 0.01 for true, as any disturbance can that makes a model less sure of text unlike
that of its training."""


@dataclass(frozen=True)
class SameKl:
    """A merge against the constant of the same KL.

    Attributes:
        share: the constant, as a share of the curve's direction; nothing where each constant has
            a smaller KL.
        less: whether it is a constant of a smaller KL, since that one has a smaller NLL too.
        gains: NLL of the merge less that of the constant, for each target set; below 0 is better.
    """

    share: float | None
    less: bool
    gains: tuple[Estimate, ...]

    @property
    def better(self) -> bool:
        """Whether each interval lies below 0, and the gain is worthwhile."""
        return self.lower and math.fsum(gain.value for gain in self.gains) <= -WORTHWHILE * len(
            self.gains
        )

    @property
    def lower(self) -> bool:
        """Whether each interval lies below 0."""
        return bool(self.gains) and all(gain.high < 0 for gain in self.gains)


class ConstantsCurve:
    """The constants from 0 on, measured at a few places.

    Args:
        objective: the texts.
        shares: the constants measured, as shares of a direction.
        scores: what was measured at each.
    """

    def __init__(
        self, objective: Objective, shares: Sequence[float], scores: Sequence[Scores]
    ) -> None:
        self._objective = objective
        self._shares = np.array(shares)
        self._scores = list(scores)
        fine = np.linspace(self._shares.min(), self._shares.max(), FINE)
        means = np.array([objective.means(one) for one in self._scores])
        self.fine = fine
        self.nll, self.kl = (_lagrange(self._shares, fine) @ means).T

    def best(self, strength: float) -> float:
        """The share of the smallest `nll + strength · kl`."""
        return float(self.fine[np.argmin(self.nll + strength * self.kl)])

    def share_of(self, kl: float) -> float | None:
        """The smallest share of a KL; nothing where each constant has a smaller one."""
        above = np.flatnonzero(self.kl >= kl * (1 - 1e-9))
        if not len(above):
            return None
        index = int(above[0])
        if index == 0:
            return float(self.fine[0])
        part = (kl - self.kl[index - 1]) / (self.kl[index] - self.kl[index - 1])
        return float(self.fine[index - 1] + part * (self.fine[index] - self.fine[index - 1]))

    def nll_at(self, share: float) -> list[Float64[np.ndarray, " passages"]]:
        """The NLL of each passage at a share, for each target set."""
        weights = _lagrange(self._shares, np.array([share]))[0]
        return [
            np.array(weights @ np.stack([one.nll[number] for one in self._scores]))
            for number in range(len(self._objective.targets))
        ]

    def compare(
        self,
        scores: Scores,
        draws: Sequence[Bootstrap],
        measure: Callable[[float], Scores] | None = None,
    ) -> SameKl:
        """Compare a merge with the constant of the same KL, or the best one of a smaller KL.

        Args:
            scores: what was measured of the merge.
            draws: the draws of each target set.
            measure: measures a constant. The one of the same KL is measured then, and only what its
                KL still misses is interpolated.
        """
        kl = self._objective.means(scores)[1]
        share = self.share_of(kl)
        if share is None:
            return SameKl(None, False, ())
        reached = self.fine <= share
        best = float(self.fine[reached][np.argmin(self.nll[reached])])
        less = best < self.fine[reached][-1]
        if less:
            share = best
            its = self.nll_at(share) if measure is None else list(measure(share).nll)
        else:
            its = self.nll_at(share)
        if measure is not None and not less:
            there = measure(share)
            missed = kl - self._objective.means(there)[1]
            moved = self.share_of(float(np.interp(share, self.fine, self.kl)) + missed)
            moved = share if moved is None else moved
            changes = zip(there.nll, its, self.nll_at(moved), strict=True)
            share, its = moved, [seen + (after - before) for seen, before, after in changes]
        pairs = zip(draws, scores.nll, its, strict=True)
        return SameKl(share, less, tuple(draw.estimate(mine - one) for draw, mine, one in pairs))


def _lagrange(
    knots: Float64[np.ndarray, " knots"], places: Float64[np.ndarray, " places"]
) -> Float64[np.ndarray, "places knots"]:
    """How much of the value at each knot a value between them is made of."""
    found = np.ones((len(places), len(knots)))
    for index, knot in enumerate(knots):
        for other in np.delete(knots, index):
            found[:, index] *= (places - other) / (knot - other)
    return found


def held_out_rows(
    objective: Objective,
    measured: Mapping[str, Scores],
    mean_weights: Mapping[str, float],
    base: Scores,
    curve: ConstantsCurve,
    seed: int,
    measure: Callable[[float], Scores],
    exact: Collection[str],
    constants: Mapping[str, float],
) -> tuple[list[dict[str, Any]], dict[str, SameKl]]:
    """The rows of a held-out table, and each merge against the constant of the same KL.

    Args:
        objective: the held-out texts.
        measured: what was measured of each merge.
        mean_weights: the mean weight of each.
        base: what was measured of the base.
        curve: the constants' curve on these texts.
        seed: of the intervals' draws.
        measure: measures a constant.
        exact: the merges whose constant of the same KL is measured, not interpolated.
        constants: the merges that are constants of the curve, and so gain nothing: their shares.
    """
    of_targets, of_keeps = (
        [
            Bootstrap([passage.document for passage in read.texts], read.counts, seed)
            for read in reads
        ]
        for reads in (objective.targets, objective.keeps)
    )
    rows: list[dict[str, Any]] = []
    compared = {}
    for name, scores in measured.items():
        same = compared[name] = (
            SameKl(constants[name], False, tuple(Estimate(0.0, 0.0, 0.0) for _ in of_targets))
            if name in constants
            else curve.compare(scores, of_targets, measure if name in exact else None)
        )
        gains: Sequence[Estimate | None] = same.gains or [None] * len(of_targets)
        groups = (
            ("nll", objective.targets, of_targets, scores.nll, base.nll, gains),
            ("kl", objective.keeps, of_keeps, scores.kl, base.kl, [None] * len(of_keeps)),
        )
        for metric, reads, draws, mine, its, against in groups:
            for read, draw, sums, at_base, gain in zip(
                reads, draws, mine, its, against, strict=True
            ):
                estimate, change = draw.estimate(sums), draw.estimate(sums - at_base)
                rows.append(
                    {
                        "gradient": name,
                        "text": read.texts.name,
                        "metric": metric,
                        **beside_base(estimate, change),
                        "from_constant": gain.value if gain else np.nan,
                        "from_constant_low": gain.low if gain else np.nan,
                        "from_constant_high": gain.high if gain else np.nan,
                        "mean_weight": mean_weights[name],
                        "passages": len(read.texts),
                        "tokens": int(read.counts.sum()),
                        "method": "forward",
                    }
                )
    return rows, compared
