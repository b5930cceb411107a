"""The trail of a lab: its runs as rows of a table and points of a plane, which bring them back."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.bench import view
from labkit.bench.answering import Heard
from labkit.bench.runs import BEST, Question, Run, Runs, Weights, weights_of
from labkit.errors import shown
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import LiveModel, Mix
from labkit.merging.recipe import Term
from labkit.probing.evaluation import BASE, CONSTANTS, FULL
from labkit.probing.intervals import Estimate
from labkit.probing.text_plane import Given, Pair, Reading, TextPlane, as_texts
from labkit.widgets.runs_plane import RunsPlane
from labkit.widgets.runs_table import RunsTable

LONGEST_SAID = 160


@dataclass(frozen=True)
class _Tried:
    """What the models are asked about at the moment."""

    weights: Weights
    texts: tuple[tuple[str, str], ...]
    question: Question


class Trail:
    """Keeps what is tried, and shows it.

    Args:
        runs: the runs kept so far.
        terms: the terms of the lab's recipe, at any gradient.
        recall: brings a run's gradient and question back into the lab.
        show: told the HTML of a comparison.

    Attributes:
        table: the runs as rows.
        map: their points on the two texts shown now.
        plane: what was measured on these texts; nothing before that.
        shown: called when the runs were shown anew.
    """

    def __init__(
        self,
        runs: Runs,
        terms: Sequence[Term],
        recall: Callable[[Run], None],
        show: Callable[[str], None],
    ) -> None:
        self.runs, self._recall, self._show_compared = runs, recall, show
        self._layers, self._adapters = len(terms[0].weights), len(terms)
        self.shown: Callable[[], None] = lambda: None
        self.plane: TextPlane | None = None
        self._now: _Tried | None = None
        self._rows: dict[str, tuple[Run, Any, dict[str, Any]]] = {}
        self._texts: tuple[tuple[str, str], ...] = (("", ""), ("", ""))
        actions: dict[str, Callable[..., None]] = {
            "recall": self.recall, "rename": self._rename, "star": self._star,
            "compare": self._compare,
        }  # fmt: skip
        self.table, self.map = RunsTable(actions), RunsPlane(self.recall)
        self.map.layout = {"flex": "1 1 360px", "max_width": "440px", "min_width": "0"}
        for key, name, weight in (("base", BASE, 0.0), ("full", FULL, 1.0), ("best", BEST, 0.5)):
            runs.always[key] = self._constant(key, name, weight)

    def begin(self, terms: Sequence[Term], texts: Mapping[str, Given], question: Question) -> None:
        """Say what the models will be asked about."""
        named = tuple((name, as_texts(name, given).sha256) for name, given in texts.items())
        self._now = _Tried(weights_of(terms), named, question)
        if named != self._texts:
            self._texts = named
            for key, run in self.runs.always.items():
                weight = run.mean_weight if key != "best" else 0.5
                self.runs.always[key] = self._constant(key, run.name, weight)
        self.show()

    def heard(self, heard: Heard) -> None:
        """Keep the answers to what was begun."""
        now = self._now
        assert now is not None  # noqa: S101 - `begin` comes first
        base, merged, full = heard.texts
        self.runs.heard(now.weights, now.texts, now.question, merged, heard.seconds)
        for key, answer in (("base", base), ("full", full)):
            known = self.runs.always[key]
            self.runs.always[key] = self._constant(
                key, known.name, known.mean_weight, known.readings, now.question, answer
            )
        self.show()

    def place(self, model: LiveModel, texts: Mapping[str, Given], mix: Mix) -> None:
        """Measure what was begun on the two texts, and the texts' own base and full LoRA first."""
        now = self._now
        assert now is not None  # noqa: S101
        if self.plane is None or self.plane.texts != texts or self.plane.model is not model:
            self.plane = TextPlane(model, texts)
        for key, readings in (("base", self.plane.base), ("full", self.plane.full)):
            known = self.runs.always[key]
            self.runs.always[key] = self._constant(
                key, known.name, known.mean_weight, readings, known.question, known.answer
            )
        self.runs.measured(now.weights, now.texts, self.plane.read(mix))
        self.show()

    def place_constants(self, stopped: threading.Event) -> None:
        """Measure the constants that are missing in the plane, and mark the best one."""
        plane = self.plane
        assert plane is not None  # noqa: S101 - `place` comes first
        missing = [weight for weight in CONSTANTS if weight not in plane.constants]
        for weight in missing:
            if stopped.is_set():
                return
            plane.read_constant(weight)
        best = plane.best_constant
        if best is not None and self.runs.always["best"].readings is None:
            self.runs.always["best"] = self._constant("best", BEST, best, plane.constants[best])
        if missing:
            self.show()

    def recall(self, key: str) -> None:
        """Bring a run back into the lab.

        Raises:
            LabkitError: there is no such run, or the lab cannot show it.
        """
        self._recall(self.runs[key])

    def choices(self) -> list[Run]:
        """What can be listened to: what is always there, and the runs, the latest first."""
        return [*self.runs.always.values(), *reversed(list(self.runs))]

    def starred(self) -> list[Run]:
        """The runs with a star; without one, the run on the screen."""
        found = [run for run in self.runs if run.starred]
        return found or [run for run in self.runs if run.key == self.table.current]

    def show(self) -> None:
        """Show the runs as they are now."""
        table, plane, now = self.table, self.map, self._now
        current = None
        if now is not None:
            current = self.runs.found(now.weights, now.texts, now.question)
        names = [shown(name, 40) for name, _ in self._texts]
        always = list(self.runs.always.values())
        runs = [*always, *self.runs]
        with table.hold_sync():
            table.texts, table.rows = names, [self._row(run) for run in runs]
            table.current = current.key if current else ""
            table.compared = [key for key in table.compared if any(key == run.key for run in runs)]
        points = {run.weights: run for run in self.runs if self._on_screen(run)}
        if current is not None and current.readings is not None:
            points.pop(current.weights, None)
            points[current.weights] = current
        placed = [*(run for run in always if run.readings), *points.values()]
        with plane.hold_sync():
            plane.texts, plane.line = names, self._line()
            plane.points = [self._point(run, current) for run in placed]
            plane.current = current.key if current and current.readings else ""
        self.shown()

    def _constant(
        self,
        key: str,
        name: str,
        weight: float,
        readings: Pair | None = None,
        question: Question | None = None,
        answer: str = "",
    ) -> Run:
        weights = ((Gradient.constant(self._layers, weight).runs(), ()),) * self._adapters
        return Run(key, name, weights, self._texts, question, answer, math.nan, readings, kind=name)

    def _on_screen(self, run: Run) -> bool:
        return run.readings is not None and run.texts == self._texts

    def _line(self) -> list[list[float]]:
        plane = self.plane
        if plane is None or len(plane.constants) < len(CONSTANTS) or not self._measured_now():
            return []
        constants = [plane.constants[weight] for weight in sorted(plane.constants)]
        return [[one.mean.value for one in pair] for pair in (plane.base, *constants, plane.full)]

    def _measured_now(self) -> bool:
        return self.runs.always["base"].readings is not None

    def _row(self, run: Run) -> dict[str, Any]:
        """A run's row, which is made anew only where the run or the texts are others."""
        known = self._rows.get(run.key)
        if known is None or known[0] is not run or known[1] is not self._texts:
            known = self._rows[run.key] = run, self._texts, self._new_row(run)
        return known[2]

    def _new_row(self, run: Run) -> dict[str, Any]:
        readings: Sequence[Reading | None] = run.readings or (None, None)
        here = [
            reading if run.texts[axis] == self._texts[axis] else None
            for axis, reading in enumerate(readings)
        ]
        divergence = here[1].divergence if here[1] else None
        gradients = [Gradient.parse(one) for each in run.weights for one in _gradients(each)]
        return {
            "key": run.key,
            "name": shown(run.name, 60),
            "fixed": run.key in self.runs.always,
            "starred": run.starred,
            "said": _said(run),
            "gradient": shown(run.gradient, 400),
            "bars": [[round(weight, 2) for weight in one] for one in gradients],
            "mean": run.mean_weight,
            "first": _numbers(here[0], run.key),
            "second": _numbers(here[1], run.key),
            "kl": divergence and _finite(divergence.value),
            "seconds": _finite(run.seconds),
            "time": _finite(run.time),
        }

    def _point(self, run: Run, current: Run | None) -> dict[str, Any]:
        assert run.readings is not None  # noqa: S101 - only runs with a point are placed
        kind = run.key if run.key in self.runs.always else "run"
        label = {"base": BASE, "full": FULL, "best": f"{BEST} {run.mean_weight:g}"}.get(kind, "")
        if run is current:
            label = "merged"
        elif run.starred:
            label = shown(run.name, 24)
        first, second = run.readings
        return {
            "key": run.key,
            "kind": kind,
            "x": first.mean.value,
            "y": second.mean.value,
            "across": _whisker(first),
            "up": _whisker(second),
            "label": label,
            "said": self._said_of(run),
        }

    def _said_of(self, run: Run) -> str:
        assert run.readings is not None  # noqa: S101
        on = []
        for (name, _), reading in zip(self._texts, run.readings, strict=True):
            change = (
                "" if run.key == "base" else f" ({view.interval(reading.from_base)} to the base)"
            )
            on.append(f"{shown(name, 40)} {reading.mean.value:.3f}{change}")
        divergence = run.readings[1].divergence
        kl = "" if divergence is None else f"; KL to the base {divergence.value:.3f}"
        gradient = shown(run.gradient, 120)
        return f"{shown(run.name, 60)}: NLL on {', on '.join(on)}{kl}; gradient {gradient}"

    def _rename(self, key: str, name: str) -> None:
        self.runs.rename(key, name)
        self.show()

    def _star(self, key: str, starred: bool) -> None:
        self.runs.star(key, starred)
        self.show()

    def _compare(self, keys: Sequence[str]) -> None:
        if len(keys) != 2:
            self._show_compared("")
            return
        one, other = sorted((self.runs[key] for key in keys), key=self._order)
        self._show_compared(view.compared(one, other))

    def _order(self, run: Run) -> tuple[bool, float]:
        """Rows that are always there come first, and others as they were tried."""
        always = run.key in self.runs.always
        return (not always, list(self.runs.always).index(run.key) if always else run.time)


def _gradients(each: tuple[str, tuple[tuple[str, str], ...]]) -> list[str]:
    weights, patterns = each
    return [weights, *(own for _, own in patterns)]


def _said(run: Run) -> str:
    if run.question is None:
        return "" if run.kind == run.name else "no answer; its point alone"
    said = f"{run.question.prompt.strip()} → {run.answer.strip()}"
    return shown(" ".join(said.split()), LONGEST_SAID)


def _numbers(reading: Reading | None, key: str) -> list[float | None] | None:
    if reading is None or _finite(reading.mean.value) is None:
        return None
    change = reading.from_base
    if key == "base":
        return [reading.mean.value, None, None, None]
    return [reading.mean.value, *map(_finite, (change.value, change.low, change.high))]


def _whisker(reading: Reading) -> list[float] | None:
    """The ends of the interval of the difference to the base, where the point lies."""
    change: Estimate = reading.from_base
    if not math.isfinite(change.low) or change.low == change.high:
        return None
    base = reading.mean.value - change.value
    return [base + change.low, base + change.high]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
