"""Intervals: paired bootstraps over passages, drawn by document.

Passages of one document are alike, so documents are drawn whole, with replacement (Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8: resampling clusters). Numbers
of two models are compared passage by passage, which takes out what makes a passage hard for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean for each labelled token, and its 95 % interval.

    Attributes:
        value: `Σ sums / Σ tokens`.
        low: the lower end.
        high: the upper end.
    """

    value: float
    low: float
    high: float


class Bootstrap:
    """Draws of documents, the same for everything that is measured on one set of texts.

    Args:
        documents: the document of each passage.
        tokens: how many tokens of each passage count.
        seed: of the draws.
    """

    def __init__(
        self, documents: Sequence[str], tokens: Float64[np.ndarray, " passages"], seed: int = 0
    ) -> None:
        names = {name: number for number, name in enumerate(dict.fromkeys(documents))}
        self._of_passage = np.array([names[name] for name in documents])
        self._count = len(names)
        self._tokens = tokens
        dice = np.random.default_rng(seed)
        drawn = dice.integers(0, self._count, (DRAWS, self._count))
        # How often each document is in each draw: draws × documents.
        self._times = np.stack([np.bincount(draw, minlength=self._count) for draw in drawn])

    def estimate(self, sums: Float64[np.ndarray, " passages"]) -> Estimate:
        """The mean of a number for each token, with its interval.

        Args:
            sums: what each passage has of it, over all its tokens; a difference of two models is
                paired by being taken passage by passage.
        """
        above, below = self._by_document(sums), self._by_document(self._tokens)
        value = float(above.sum() / below.sum())
        if self._count < 2:
            return Estimate(value, float("nan"), float("nan"))
        means = (self._times @ above) / (self._times @ below)
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, float(low), float(high))

    def _by_document(self, values: Float64[np.ndarray, " passages"]) -> np.ndarray:
        return np.bincount(self._of_passage, values, minlength=self._count)
