"""GradientEditor: draw the layer weights of a merge with mouse, pen, finger or keyboard.

The widget is one Python class, its JavaScript and its style sheet (`editor.js`, `editor.css`),
served as they are written, behind the pieces that widgets share (`sources.py`); nothing is fetched
from a network. The browser paints and sends weights, at most one message every 50 ms and always the
last one. What a list of numbers means, what a preset is and how to round is decided here, by
`Gradient`, so that Python and the screen cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.gradients.presets import SHAPES, preset
from labkit.widgets.sources import scripted, styled

MOST_EVIDENCE = 2
"""Texts whose evidence is shown at once: each has its place in a layer's column."""
REVERSED = "reversed"
"""The entry of the list of presets that reverses the weights on the screen."""


class GradientEditor(anywidget.AnyWidget):
    """Draw a gradient: one bar for each layer, over what the LoRA changes there.

    Read and set `.gradient`; `editor.observe(function, "weights")` calls back on every change.

    Args:
        gradient: the weights to start with.
        norms: ‖ΔW‖/‖W‖ of each layer, drawn behind the bars; left out where unknown.
        evidence: which layers matter, drawn in place of the norms: for one text or two, by name,
            an (estimate, low, high) for each layer, in nats per token. Below 0 the layer makes the
            text more likely, which is drawn upwards; where low and high are None, no interval is
            known. An interval that includes 0 is grey.
        evidence_note: what was measured, how and at which gradient, in a sentence.
        others: other gradients in force beside this one, by name; drawn as outlines over the bars.
        names: the base model's name and the LoRA's, for the legend.
        bounds: lowest and highest weight that can be drawn; from 0 to 1 if left out. They are
            wider while a weight, typed or assigned, lies beyond them.
        step: what a drawn weight is rounded to, and what an arrow key adds.

    Raises:
        LabkitError: as `Gradient` says for bad weights.
        traitlets.TraitError: a bad value for one of the others.
    """

    _esm = scripted("painting.js", "editor.js")
    _css = styled("editor.css")

    weights = traitlets.List(traitlets.Float()).tag(sync=True)
    start = traitlets.List(traitlets.Float()).tag(sync=True)
    """The weights that resetting a layer goes back to."""
    bounds = traitlets.Tuple(traitlets.Float(), traitlets.Float(), default_value=(0.0, 1.0)).tag(
        sync=True
    )
    step = traitlets.Float(0.01).tag(sync=True)
    norms = traitlets.List(traitlets.Float()).tag(sync=True)
    evidence = traitlets.Dict().tag(sync=True)
    evidence_note = traitlets.Unicode("").tag(sync=True)
    others = traitlets.Dict().tag(sync=True)
    names = traitlets.List(traitlets.Unicode(), default_value=["base model", "LoRA"]).tag(sync=True)
    presets = traitlets.List(traitlets.Unicode(), default_value=[*SHAPES, REVERSED]).tag(sync=True)
    picture_id = traitlets.Unicode("").tag(sync=True)
    """Static pictures of the class `labkit-picture-ID` are hidden while the editor is shown."""

    origin = traitlets.Unicode("").tag(sync=True)
    """What sets the weights in Python: all that one origin sets, until somebody draws, is one step
    of undo. Without an origin each change is a step."""

    subject = traitlets.Unicode("").tag(sync=True)
    """Which of several gradients is drawn: each has its own history of undo. Set it together with
    the weights, under `hold_sync`."""

    others_can_be_chosen = traitlets.Bool(False).tag(sync=True)
    """A press on another gradient, or on its name, asks for it: its name is then in `chosen`."""
    chosen = traitlets.Unicode("").tag(sync=True)

    request = traitlets.Dict().tag(sync=True)
    """The browser's latest request. It is a trait and not a message: it arrives after the weights
    that were drawn before it, which a message could overtake."""

    def __init__(
        self,
        gradient: Gradient | Iterable[float],
        *,
        norms: Sequence[float] = (),
        evidence: Mapping[str, Sequence[Sequence[float | None]]] | None = None,
        evidence_note: str = "",
        others: Mapping[str, Gradient | Sequence[float]] | None = None,
        names: Sequence[str] = ("base model", "LoRA"),
        bounds: tuple[float, float] | None = None,
        step: float = 0.01,
        **traits: Any,
    ) -> None:
        first = gradient if isinstance(gradient, Gradient) else Gradient(gradient)
        self._layers = len(first)
        self._fitting = False
        self._asked_bounds = (0.0, 1.0) if bounds is None else bounds
        weights = list(first)
        super().__init__(bounds=self._asked_bounds, step=step, **traits)
        self.weights = weights
        self.start = weights
        self.norms = [float(norm) for norm in norms]
        self.evidence = dict(evidence or {})
        self.evidence_note = evidence_note
        self.others = {name: list(each) for name, each in (others or {}).items()}
        self.names = [shown(name, 60) for name in names]

    @property
    def gradient(self) -> Gradient:
        """What the editor shows, as a value."""
        return Gradient(self.weights)

    @gradient.setter
    def gradient(self, gradient: Gradient | Iterable[float]) -> None:
        checked = gradient if isinstance(gradient, Gradient) else Gradient(gradient)
        checked.require(self._layers, "the editor")
        self.weights = list(checked)

    # What the traits may hold

    @traitlets.validate("weights", "start")
    def _check_weights(self, proposal: Any) -> list[float]:
        try:
            gradient = Gradient(proposal["value"])
            gradient.require(self._layers, f"{proposal['trait'].name} of the editor")
        except LabkitError as error:
            raise traitlets.TraitError(str(error)) from None
        if proposal["trait"].name == "weights":
            self._fit(gradient, wider=True)
        return list(gradient)

    @traitlets.validate("others")
    def _check_others(self, proposal: Any) -> dict[str, list[float]]:
        checked = {}
        for name, weights in proposal["value"].items():
            try:
                gradient = Gradient(weights)
                gradient.require(self._layers, f"{shown(name)} in the editor")
            except LabkitError as error:
                raise traitlets.TraitError(str(error)) from None
            checked[shown(name, 60)] = list(gradient)
        return checked

    @traitlets.observe("weights", "others")
    def _weights_changed(self, _: Any) -> None:
        self._fit(self.weights)

    @traitlets.observe("bounds")
    def _bounds_changed(self, change: Any) -> None:
        if not self._fitting:
            self._asked_bounds = tuple(change["new"])

    def _fit(self, weights: Iterable[float], wider: bool = False) -> None:
        """Make the bounds as wide as the weights need, and no wider than they and the user do."""
        seen = [
            *self._asked_bounds,
            *weights,
            *(one for each in self.others.values() for one in each),
        ]
        if wider:
            seen += self.bounds
        self._fitting = True
        try:
            self.bounds = (min(seen), max(seen))
        finally:
            self._fitting = False

    @traitlets.validate("bounds")
    def _check_bounds(self, proposal: Any) -> tuple[float, float]:
        low, high = proposal["value"]
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise traitlets.TraitError(
                f"the editor's bounds are two finite numbers, the lower first; found {low}, {high}"
            )
        for layer, weight in enumerate(self.weights):
            if not low <= weight <= high:
                raise traitlets.TraitError(
                    f"the bounds {low} to {high} leave out the weight {weight} of layer {layer}"
                )
        return (low, high)

    @traitlets.validate("step")
    def _check_step(self, proposal: Any) -> float:
        step = float(proposal["value"])
        if not 1e-6 <= step <= 1:
            raise traitlets.TraitError(f"the editor's step lies from 0.000001 to 1, found {step}")
        return step

    @traitlets.validate("norms")
    def _check_norms(self, proposal: Any) -> list[float]:
        norms = list(proposal["value"])
        if norms and len(norms) != self._layers:
            raise traitlets.TraitError(
                f"{len(norms)} norms for {self._layers} layers; give one norm for each layer, or []"
            )
        for layer, norm in enumerate(norms):
            if not (math.isfinite(norm) and norm >= 0):
                raise traitlets.TraitError(
                    f"the norm of layer {layer} is {norm}; a norm is finite and not negative"
                )
        return norms

    @traitlets.validate("evidence")
    def _check_evidence(self, proposal: Any) -> dict[str, list[list[float | None]]]:
        given = proposal["value"]
        if len(given) > MOST_EVIDENCE:
            raise traitlets.TraitError(
                f"evidence is shown for {MOST_EVIDENCE} texts at most, found {len(given)}"
            )
        return {
            shown(name, 40): self._checked_evidence(str(name), rows) for name, rows in given.items()
        }

    def _checked_evidence(self, name: str, rows: Any) -> list[list[float | None]]:
        rows = [list(row) for row in rows]
        if len(rows) != self._layers:
            raise traitlets.TraitError(
                f"the evidence on {shown(name)!r} has {len(rows)} entries for {self._layers} "
                "layers; give one (estimate, low, high) for each layer"
            )
        for layer, row in enumerate(rows):
            known = row[:1] if row[1:] == [None, None] else row
            finite = all(isinstance(one, (int, float)) and math.isfinite(one) for one in known)
            if len(row) != 3 or not finite or (known is row and row[1] > row[2]):
                raise traitlets.TraitError(
                    f"the evidence on {shown(name)!r} for layer {layer} is {shown(row)}; expected "
                    "estimate, low and high, finite, low not above high (or None for both)"
                )
        return [[None if one is None else float(one) for one in row] for row in rows]

    @traitlets.validate("names")
    def _check_names(self, proposal: Any) -> list[str]:
        names = list(proposal["value"])
        if len(names) != 2:
            raise traitlets.TraitError(
                f"names are two, the base model's and the LoRA's; found {len(names)}"
            )
        return names

    # What the browser asks for

    @traitlets.observe("request")
    def _asked(self, change: Any) -> None:
        """Answer the browser; what is wrong with its request is shown under the text field."""
        content = change["new"]
        number = content.get("number")  # the view that asked knows its answer by it
        try:
            self._do(content)
        except (LabkitError, traitlets.TraitError) as error:
            found = self._stretchable(content)
            problem = {"kind": "problem", "number": number, "text": str(error), "found": found}
            self.send(problem)
        else:
            self.send({"kind": "done", "number": number})

    def _do(self, content: dict[str, Any]) -> None:
        kind = content.get("kind")
        if kind == "parse":
            self.gradient = Gradient.parse(str(content.get("text", "")), self._layers)
        elif kind == "stretch":
            listed = Gradient.parse(str(content.get("text", "")))
            self.gradient = listed.resample(self._layers).rounded(2)
        elif kind == "round":
            self.gradient = self.gradient.rounded(2)
        elif kind == "preset":
            first, last = self._range(content)
            name = str(content.get("name", ""))
            if name not in self.presets:
                raise LabkitError(
                    f"no preset {shown(name)!r}; the presets are {', '.join(self.presets)}"
                )
            part = Gradient(self.weights[first : last + 1])
            shape = part.reversed() if name == REVERSED else preset(name, len(part))
            self.gradient = Gradient([*self.weights[:first], *shape, *self.weights[last + 1 :]])
        else:
            raise LabkitError(f"the editor does not know the request {shown(kind)!r}")

    def _range(self, content: dict[str, Any]) -> tuple[int, int]:
        first, last = int(content.get("first", 0)), int(content.get("last", self._layers - 1))
        if not 0 <= first <= last < self._layers:
            raise LabkitError(f"layers {first} to {last} are no range of {self._layers} layers")
        return first, last

    def _stretchable(self, content: dict[str, Any]) -> int:
        """The length of the list, if it can be read and only its length is wrong; else 0."""
        if content.get("kind") != "parse":
            return 0
        try:
            found = len(Gradient.parse(str(content.get("text", ""))))
        except LabkitError:
            return 0
        return found if found != self._layers else 0
