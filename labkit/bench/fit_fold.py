"""The lab's fold "Fit": a search, a slider of its strength, and what was predicted and measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labkit.bench import view
from labkit.bench.background import REST, Latest
from labkit.bench.evidence import quick_copy
from labkit.bench.panel import Panel
from labkit.bench.strength_fit import EVALUATIONS, TOKENS, StrengthFit, Worth
from labkit.errors import with_kind
from labkit.inference.live_model import LiveModel
from labkit.merging.recipe import Recipe, Term
from labkit.probing.families import Cells
from labkit.probing.text_plane import Given


class FitFold:
    """The buttons of the fold "Fit", and what they say.

    Args:
        panel: the lab's panel.
        recipe: gives what is drawn: the same object until something else is.
        draw: draws terms, whose origin it is told.
        model: gives the live model.
        texts: gives the texts: what the merge is for, and what it should leave alone.

    Attributes:
        fit: the evaluations made so far; None before the first search.
        error: what went wrong last.
        worker: where it searches and measures.
    """

    def __init__(
        self,
        panel: Panel,
        recipe: Callable[[], Recipe],
        draw: Callable[[Sequence[Term], str], None],
        model: Callable[[], LiveModel],
        texts: Callable[[], Mapping[str, Given]],
    ) -> None:
        self._panel, self._recipe, self._draw = panel, recipe, draw
        self._model, self._texts = model, texts
        self.fit: StrengthFit | None = None
        self.error: BaseException | None = None
        self.worker = Latest(self._failed)
        panel.fit.on_click(lambda _: self._ask())
        panel.strength.observe(lambda _: self._moved(), "value")

    def _ask(self) -> None:
        if self._has_own_gradients():
            return
        recipe, strength = self._recipe(), float(self._panel.strength.value)
        self.worker.submit(lambda stopped: self._search(recipe, strength, stopped))

    def _has_own_gradients(self) -> bool:
        """Whether some modules have a gradient of their own, which a fit would take away."""
        own = [
            self._panel.name_of(number, pattern)
            for number, term in enumerate(self._recipe().terms)
            for pattern in term.weights_for
        ]
        if own:
            self._panel.fit_said.value = view.problem(
                f"a fit draws one gradient for all modules; clear that of {' and '.join(own)} first"
            )
        return bool(own)

    def _search(self, recipe: Recipe, strength: float, stopped: threading.Event) -> None:
        """Search, and draw the best unless something else has been drawn meanwhile."""
        panel = self._panel
        self.error = None
        panel.fitting(True)

        def tell(made: int, said: str) -> None:
            panel.tell_fit(f"evaluation {made} of {EVALUATIONS}: {said}", made / EVALUATIONS)

        def stop(_: Any) -> None:
            self.worker.submit(lambda later: self._draw_best(recipe, strength, later))

        panel.stop_fit.on_click(stop)
        try:
            panel.tell_fit("looking for the best constant …")
            self.fit = self._of_these_texts()
            self.fit.search(strength, stopped, tell)
        finally:
            panel.stop_fit.on_click(stop, remove=True)
            panel.fitting(False)
        if not stopped.is_set():
            self._draw_best(recipe, strength, stopped)

    def _of_these_texts(self) -> StrengthFit:
        """What was evaluated of this model and these texts before; else a new one."""
        model, known = quick_copy(self._model()), self.fit
        if known is not None and known.model is model and known.texts == self._texts():
            return known
        return StrengthFit(model, self._texts())

    def _draw_best(self, recipe: Recipe, strength: float, stopped: threading.Event) -> None:
        cells = None if self.fit is None else self.fit.best(strength)
        if cells is None:
            self._panel.fit_said.value = view.done("stopped; nothing was evaluated yet")
        elif self._recipe() is not recipe:
            self._panel.fit_said.value = view.done(
                "found; you have drawn meanwhile, so it is drawn when you move the slider"
            )
        else:
            self._measure(cells, strength, self._draw_predicted(cells, strength), stopped)

    def _moved(self) -> None:
        """Draw what the evaluations so far say of this strength, and measure it when it rests."""
        if self.fit is None or not self.fit.evaluations or self._has_own_gradients():
            return
        strength = float(self._panel.strength.value)
        cells = self.fit.proposed(strength)
        recipe = self._draw_predicted(cells, strength)
        self.worker.submit(lambda stopped: self._measure(cells, strength, recipe, stopped), REST)

    def _draw_predicted(self, cells: Cells, strength: float) -> Recipe:
        """Draw layer weights as predicted; returns the recipe that has them."""
        fit = self.fit
        assert fit is not None  # noqa: S101 - what is drawn was found by it
        self._draw(fit.terms(cells), "fit")
        self._say(strength, fit.predicted(cells))
        return self._recipe()

    def _measure(
        self, cells: Cells, strength: float, recipe: Recipe, stopped: threading.Event
    ) -> None:
        fit = self.fit
        if fit is None or self._recipe() is not recipe:
            return
        self.error = None
        predicted = fit.predicted(cells)
        measured = fit.measured(cells, strength, stopped)
        if measured is None or stopped.is_set():
            return
        constant = fit.constant(fit.best_constant(strength))
        if self._recipe() is recipe and not stopped.is_set():
            self._say(strength, predicted, measured, constant)

    def _say(
        self,
        strength: float,
        predicted: Worth,
        measured: Worth | None = None,
        constant: Worth | None = None,
    ) -> None:
        fit = self.fit
        assert fit is not None  # noqa: S101
        several = len(self._recipe().terms) > 1
        of_all = " for all adapters" if several else ""
        rows = {
            "predicted": predicted,
            "measured": measured,
            f"best constant{of_all}, {fit.best_constant(strength):g}": constant,
        }
        said = (
            f"In nats per token, of the first {TOKENS} tokens of {fit.read[0]} and {fit.read[1]} "
            f"passages, on which it was searched: {fit.evaluations} evaluations. lk.fit measures "
            "on other passages, too."
            + (" Undo brings back the gradient on the screen, not those of the others." * several)
        )
        self._panel.fit_said.value = view.fitted(strength, list(fit.texts), rows, said)

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self._panel.fit_said.value = view.problem(with_kind(error))
