"""Searches layer weights: what is searched, by which steps, and what was found on the way."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from labkit.inference.live_model import LiveModel
from labkit.probing.comparison import KNOTS, ConstantsCurve
from labkit.probing.evaluations import Evaluation, History
from labkit.probing.families import DECIMALS, Cells, Family, LayerWeights
from labkit.probing.objective import Objective
from labkit.probing.quadratic import FIRST_RADIUS, Quadratic, quadratic_model
from labkit.probing.texts import Texts

By = Literal["layer", "kind"]
LEAST_CHANGE = 1e-5
"""A step that is expected to bring less, in nats, ends a search."""


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """Somebody asked the search to stop."""


@dataclass(frozen=True)
class Wanted:
    """What to minimise: `nll + strength · kl + smooth · Σ (w_{l+1} - w_l)²`, within bounds."""

    strength: float
    smooth: float
    bounds: tuple[float, float]


class Search:
    """A model and texts, and every evaluation that was made of them.

    Args:
        model: the live model.
        targets: what is to become more likely.
        keeps: where the merge is to stay near the base.
        tokens: of each passage at most.
        by: layer weights by layer, or by layer and kind of module.
        history: as `History` takes it.
        stop: ends the search when it is set.
        bar: a progress bar.
        own: whether something else than NLL and KL is minimised.

    Attributes:
        weights: the model's layer weights as cells.
        objective: the texts, read.
        history: every evaluation.
        stopped: whether the search was stopped; it makes no more evaluations then.
    """

    def __init__(
        self,
        model: LiveModel,
        targets: Sequence[Texts],
        keeps: Sequence[Texts],
        tokens: int,
        by: By,
        history: Any,
        stop: threading.Event | None,
        bar: Any,
        own: bool = False,
    ) -> None:
        model.require_sum("a fit")
        self._model = model
        self.stopped = False
        self.weights = LayerWeights(model, by)
        self.objective = Objective(model, targets, keeps, tokens)
        self.history = History(history, _problem(model, targets, keeps, tokens, by, own))
        self._stop, self._bar = stop or threading.Event(), bar
        self._rough = self.weights.roughness()
        self._curves: dict[tuple[float, ...], ConstantsCurve] = {}

    def minimise(self, wanted: Wanted, family: Family, start: Cells, evaluations: int) -> None:
        """Make so many evaluations at most, each at the best point of the model so far.

        Args:
            wanted: what to minimise.
            family: the lists to choose among.
            start: a point of the family, which is evaluated first, unless some point of it was.
            evaluations: how many passes, forwards and backwards, over all texts.

        Raises:
            Stopped: it was asked to.
        """
        bases = self.weights.bases(family)
        span = wanted.bounds[1] - wanted.bounds[0]
        radius = FIRST_RADIUS * span
        center: Evaluation | None = None
        for _ in range(evaluations):
            seen = [one for one in self.history.made if one.nll_slopes]
            if center is None:
                inside = [one for one in seen if _lies_in(one.point, bases, wanted)]
                center = min(inside, key=lambda one: self.worth(one, wanted), default=None)
            if center is None:
                center = self.evaluate(start, wanted, family)
                continue
            model = self.quadratic(wanted, seen, center, radius)
            proposed = [model.minimum(basis, wanted.bounds, radius) for basis in bases]
            new = [one for one in proposed if not any(_same(one, old.point) for old in seen)]
            point = min(new, key=model.change, default=center.point)
            expected = model.change(point)
            if expected > -LEAST_CHANGE:
                return
            found = self.evaluate(point, wanted, family)
            # From the slopes at both ends: values of 16 bits differ by more than what is left to
            # gain, and slopes do not.
            step = point - center.point
            gained = float((self._slopes(center, wanted) + self._slopes(found, wanted)) @ step) / 2
            far = float(np.abs(step).max())
            if gained > expected / 4:
                radius = min(radius, far) / 2
            elif gained < expected * 3 / 4:
                radius = min(max(radius, 2 * far), span)
            if gained < 0:
                center = found

    def quadratic(
        self, wanted: Wanted, seen: Sequence[Evaluation], center: Evaluation, radius: float
    ) -> Quadratic:
        """The quadratic model of the objective, of evaluations with derivatives, around one."""
        return quadratic_model(
            [one.point for one in seen],
            [one.nll + wanted.strength * one.kl for one in seen],
            [one.slopes(wanted.strength) for one in seen],
            wanted.smooth * self._rough,
            seen.index(center),
            radius,
        )

    def go_on(self, stop: threading.Event) -> None:
        """Let a search that was stopped make evaluations again, until `stop` is set."""
        self.stopped, self._stop = False, stop

    def evaluate(self, point: Cells, wanted: Wanted, family: str) -> Evaluation:
        """One pass over all texts, forwards and backwards, which goes into the history.

        Raises:
            Stopped: it was asked to.
        """
        self._go_on()
        began = time.process_time()
        value = self.objective.value(self.weights.modules(point))
        made = Evaluation(
            family,
            self._objective(value.nll, value.kl, point, wanted),
            value.nll,
            value.kl,
            time.process_time() - began,
            point.tolist(),
            self.weights.slopes(value.nll_slopes).tolist(),
            self.weights.slopes(value.kl_slopes).tolist(),
            self.history.problem,
        )
        self.note(made)
        return made

    def judge(
        self,
        point: Cells,
        wanted: Wanted,
        family: str,
        own: Callable[[LiveModel], float] | None,
    ) -> float:
        """One pass forwards, or one's own objective, at some layer weights; into the history.

        Raises:
            Stopped: it was asked to.
        """
        self._go_on()
        began = time.process_time()
        nll = kl = math.nan
        if own is None:
            modules = self.weights.modules(point)
            nll, kl = self.objective.means(self.objective.scores(modules))
            objective = self._objective(nll, kl, point, wanted)
        else:
            before = self._model.terms
            try:
                self._model.use(self.weights.terms(point))
                objective = float(own(self._model))
            finally:
                self._model.use(before)
        seconds = time.process_time() - began
        problem = self.history.problem
        self.note(Evaluation(family, objective, nll, kl, seconds, point.tolist(), [], [], problem))
        return objective

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ends quietly when the search is stopped, or interrupted from the keyboard."""
        try:
            yield
        except (Stopped, KeyboardInterrupt):
            self.stopped = True

    def _go_on(self) -> None:
        if self.stopped or self._stop.is_set():
            raise Stopped

    def note(self, made: Evaluation) -> None:
        """Put an evaluation into the history, and show it."""
        self.history.add(made)
        self._bar.update(1)
        self._bar.set_postfix(objective=f"{made.objective:.4f}", NLL=f"{made.nll:.4f}",
                              KL=f"{made.kl:.4f}")  # fmt: skip

    def worth(self, made: Evaluation, wanted: Wanted) -> float:
        """The objective of an evaluation, perhaps made for another strength."""
        if math.isnan(made.nll):
            return made.objective
        return self._objective(made.nll, made.kl, made.point, wanted)

    def best(self, wanted: Wanted, family: Family) -> Cells | None:
        """The best point of a family so far, rounded; nothing where there is none."""
        bases = self.weights.bases(family)
        inside = [one for one in self.history.made if _lies_in(one.point, bases, wanted)]
        if not inside:
            return None
        return np.round(min(inside, key=lambda one: self.worth(one, wanted)).point, DECIMALS)

    def curve(self, direction: Sequence[float], largest: float) -> ConstantsCurve:
        """The constants `share · direction`, one for each adapter, by forward passes alone."""
        key = (*direction, largest)
        if key not in self._curves:
            shares = [share * largest for share in KNOTS]
            cells = [self.weights.constant(share * np.array(direction)) for share in shares]
            scores = [self.objective.scores(self.weights.modules(one)) for one in cells]
            self._curves[key] = ConstantsCurve(self.objective, shares, scores)
        return self._curves[key]

    def _slopes(self, made: Evaluation, wanted: Wanted) -> Cells:
        found: Cells = made.slopes(wanted.strength) + wanted.smooth * self._rough @ made.point
        return found

    def _objective(self, nll: float, kl: float, point: Cells, wanted: Wanted) -> float:
        rough = float(point @ self._rough @ point) / 2
        return nll + wanted.strength * kl + wanted.smooth * rough


def _same(one: Cells, other: Cells) -> bool:
    return bool(np.abs(one - other).max() < 1e-3)


def _lies_in(point: Cells, bases: Sequence[np.ndarray], wanted: Wanted) -> bool:
    low, high = wanted.bounds
    if point.min() < low - 1e-9 or point.max() > high + 1e-9:
        return False
    if any(len(basis) == len(point) for basis in bases):
        return True
    return any(
        _same(np.linalg.lstsq(basis.T, point, rcond=None)[0] @ basis, point) for basis in bases
    )


def _problem(
    model: LiveModel,
    targets: Sequence[Texts],
    keeps: Sequence[Texts],
    tokens: int,
    by: By,
    own: bool,
) -> str:
    """What ties an evaluation to a model, its adapters and the texts."""
    said = [
        model.base.name,
        [adapter.name for adapter in model.adapters],
        len(model.module_names),
        model.rest,
        [one.sha256 for one in targets],
        [one.sha256 for one in keeps],
        tokens,
        by,
        own,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
