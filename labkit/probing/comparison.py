"""Merges beside the constants' curve: which constant has the same KL, and which NLL it has.

Any merge that changes the model more can look better on its target text. So a merge is compared
with the constant that moves the model as far: the one of the same KL to the base on the texts to
keep. Between the constants that were measured, each passage's numbers are interpolated by the
polynomial through all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from labkit.probing.intervals import Bootstrap, Estimate
from labkit.probing.objective import Objective, Scores

KNOTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the largest constant at which the curve is measured."""
FINE = 2001


@dataclass(frozen=True)
class SameKl:
    """A merge against the constant of the same KL.

    Attributes:
        share: the constant, as a share of the curve's direction; nothing where each constant has
            a smaller KL.
        gains: NLL of the merge less that of the constant, for each target set; below 0 is better.
    """

    share: float | None
    gains: tuple[Estimate, ...]

    @property
    def better(self) -> bool:
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
        above = np.flatnonzero(self.kl >= kl)
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

    def compare(self, scores: Scores, draws: Sequence[Bootstrap]) -> SameKl:
        """Compare a merge with the constant of the same KL.

        Args:
            scores: what was measured of the merge.
            draws: the draws of each target set.
        """
        share = self.share_of(self._objective.means(scores)[1])
        if share is None:
            return SameKl(None, ())
        pairs = zip(draws, scores.nll, self.nll_at(share), strict=True)
        return SameKl(share, tuple(draw.estimate(mine - its) for draw, mine, its in pairs))


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
) -> tuple[list[dict[str, Any]], dict[str, SameKl]]:
    """The rows of a held-out table, and each merge against the constant of the same KL.

    Args:
        objective: the held-out texts.
        measured: what was measured of each merge.
        mean_weights: the mean weight of each.
        base: what was measured of the base.
        curve: the constants' curve on these texts.
        seed: of the intervals' draws.
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
        same = compared[name] = curve.compare(scores, of_targets)
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
                        "estimate": estimate.value,
                        "low": estimate.low,
                        "high": estimate.high,
                        "from_base": change.value,
                        "from_base_low": change.low,
                        "from_base_high": change.high,
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
