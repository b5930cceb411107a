"""The lab's fit: `lk.fit`'s search on a few passages, and what its evaluations say of any strength.

Values and derivatives of NLL and KL are kept apart, so that every evaluation serves every strength:
a quadratic model of them says at once where the minimum for another strength should be. Whether it
is there, only an evaluation says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from labkit.inference.live_model import LiveModel
from labkit.merging.recipe import Term
from labkit.probing.families import DECIMALS, Cells
from labkit.probing.fitting import SMOOTH, search_once
from labkit.probing.quadratic import FIRST_RADIUS, expected_at
from labkit.probing.searching import Search, Stopped, Wanted
from labkit.probing.text_plane import Given, excerpt

EVALUATIONS = 8
TOKENS = 40
"""Tokens of each passage that are read, for somebody waits."""
NEAR = 0.02
"""Closer to an evaluated point, derivatives in bfloat16 say nothing of the curvature between."""
WANTED = Wanted(strength=0.3, smooth=SMOOTH, bounds=(0.0, 1.0))
"""As `lk.fit` has it, but for the strength."""


@dataclass(frozen=True)
class Worth:
    """What a merge is worth: the target's NLL, and the KL to the base on the text to keep.

    Both are means, in nats a token.
    """

    nll: float
    kl: float


class StrengthFit:
    """Evaluations on the beginnings of a few passages, and what follows from them.

    Args:
        model: the live model.
        texts: what the merge is for and what it should leave alone, by name.

    Attributes:
        model: the live model.
        texts: as given.
        read: of how many passages of each text was read.
    """

    def __init__(self, model: LiveModel, texts: Mapping[str, Given]) -> None:
        self.model, self.texts = model, dict(texts)
        target, keep = (excerpt(model, *each, TOKENS) for each in texts.items())
        self.read = len(target), len(keep)
        self._told = _Told()
        self._search = Search(model, [target], [keep], TOKENS, "layer", None, None, self._told)

    def search(
        self, strength: float, stopped: threading.Event, tell: Callable[[int, str], None]
    ) -> None:
        """From the best constant on, or from a better point seen, so many evaluations at most.

        Args:
            strength: the weight of the KL.
            stopped: set from another thread to end early; what was found is kept.
            tell: told after each evaluation how many were made, and what the last one found.
        """
        self._search.go_on(stopped)
        self._told.begin(tell)
        wanted = replace(WANTED, strength=strength)
        search_once(self._search, wanted, "free", EVALUATIONS, rivals=())
        self._told.begin(None)

    @property
    def evaluations(self) -> int:
        """How many were made."""
        return len(self._search.history.made)

    def best(self, strength: float) -> Cells | None:
        """The best layer weights evaluated; nothing where none were."""
        return self._search.best(replace(WANTED, strength=strength), "free")

    def proposed(self, strength: float) -> Cells:
        """The minimum of the quadratic model of all evaluations; at least one was made."""
        wanted = replace(WANTED, strength=strength)
        seen = list(self._search.history.made)
        center = min(seen, key=lambda one: self._search.worth(one, wanted))
        model = self._search.quadratic(wanted, seen, center, FIRST_RADIUS)
        found = model.minimum(np.eye(len(center.point)), wanted.bounds, FIRST_RADIUS)
        return np.round(found, DECIMALS)

    def predicted(self, cells: Cells) -> Worth:
        """What all evaluations say of layer weights, the nearest above all; one was made."""
        seen = self._search.history.made
        points = [one.point for one in seen]
        nll = expected_at(
            cells, points, [one.nll for one in seen], [np.array(one.nll_slopes) for one in seen]
        )
        kls, slopes = [one.kl for one in seen], [np.array(one.kl_slopes) for one in seen]
        nothing = np.zeros(len(cells))
        if not self._search.weights.modules(nothing).any():
            # The base itself: its KL is 0, and least there.
            points, kls, slopes = [nothing, *points], [0.0, *kls], [nothing, *slopes]
        return Worth(nll, max(0.0, expected_at(cells, points, kls, slopes)))

    def measured(self, cells: Cells, strength: float, stopped: threading.Event) -> Worth | None:
        """Evaluate layer weights, which the models know from then on; nothing if stopped."""
        self._search.go_on(stopped)
        points = [one.point for one in self._search.history.made]
        if any(np.abs(point - cells).max() < NEAR for point in points):
            return self._read(cells)
        try:
            made = self._search.evaluate(cells, replace(WANTED, strength=strength), "free")
        except Stopped:
            return None
        return Worth(made.nll, made.kl)

    def _read(self, cells: Cells) -> Worth:
        """What layer weights are worth, by a pass forwards."""
        scores = self._search.objective.scores(self._search.weights.modules(cells))
        return Worth(*self._search.objective.means(scores))

    def best_constant(self, strength: float) -> float:
        """The best constant, for all adapters; interpolated, after the first search."""
        curve = self._search.curve((1.0,) * self._search.weights.adapters, WANTED.bounds[1])
        return round(curve.best(strength), DECIMALS)

    def constant(self, weight: float) -> Worth:
        """What a constant is worth."""
        weights = self._search.weights
        return self._read(weights.constant([weight] * weights.adapters))

    def terms(self, cells: Cells) -> tuple[Term, ...]:
        """Layer weights as terms of a recipe, one for each adapter."""
        return self._search.weights.terms(cells)


class _Told:
    """What a search shows, where it expects a bar."""

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, tell: Callable[[int, str], None] | None) -> None:
        self._tell, self._made = tell, 0

    def update(self, count: int) -> None:
        self._made += count

    def set_postfix(self, **shown: Any) -> None:
        if self._tell is not None:
            said = ", ".join(f"{name} {value}" for name, value in shown.items())
            self._tell(self._made, said)
