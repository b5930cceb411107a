"""`pick`: the front as a picture whose dots load their gradients into an editor or a lab."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from labkit.bench.lab import Lab
from labkit.errors import LabkitError, shown
from labkit.figures.front_figure import FIT_COLOR, axis_labels, front_points, strength_in
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR, MARK
from labkit.gradients.gradient import Gradient
from labkit.merging.recipe import Term
from labkit.probing.evaluation import BASE, FULL
from labkit.probing.front import Front
from labkit.widgets.editor import GradientEditor
from labkit.widgets.front_picker import FrontPicker
from labkit.widgets.plain_sliders import Sliders


def pick(front: Front, editor: Lab | GradientEditor | Sliders) -> FrontPicker:
    """Show a front whose dots are buttons: a click on one, or Enter, loads its gradient.

    A lab takes the gradients of every adapter and kind of module, and its recipe says what they
    were fitted on until something is drawn. The dot whose gradient is on the screen is marked.

    Args:
        front: what `lk.pareto` found.
        editor: where the gradient goes.

    Raises:
        LabkitError: another number of layers or other adapters than the front's; or an editor,
            which has one gradient, where the front has several.
    """
    points = front_points(front)
    terms = {name: found for name in points if (found := _terms_of(front, name))}
    first = next(iter(terms.values()))
    if isinstance(editor, Lab):
        editor.require(first)
        watched = editor.editor
    else:
        several = [one for one in front.gradients.values() if not isinstance(one, Gradient)]
        if several:
            raise LabkitError(
                f"the front has several gradients ({', '.join(map(shown, several[0]))}), and an "
                "editor has one; give a Lab"
            )
        first[0].weights.require(len(editor.gradient), "the front, for this editor")
        watched = editor

    def on_screen() -> Sequence[Term]:
        if isinstance(editor, Lab):
            return editor.recipe.terms
        return [replace(first[0], weights=editor.gradient)]

    def load(name: str) -> None:
        if isinstance(editor, Lab):
            editor.use(terms[name])
        else:
            editor.gradient = terms[name][0].weights
        mark()

    def mark() -> None:
        drawn = _drawn(on_screen())
        alike = (name for name, found in terms.items() if _drawn(found) == drawn)
        made.chosen = next(alike, "")

    dots = [_dot(name, points[name]) for name in terms]
    curve = front.curve[["kl", "nll"]].to_numpy().tolist()
    made = FrontPicker(dots, curve, axis_labels(front, lambda name: shown(name, 40)), load)
    watched.observe(lambda _: mark(), "weights")
    mark()
    return made


def _terms_of(front: Front, name: str) -> tuple[Term, ...]:
    """The terms of a merge in the front's table; none where the table does not say them all."""
    kind, strength = strength_in(name)
    if kind == "fit":
        return next(terms for one, terms in front.terms.items() if f"{one:g}" == strength)
    some = next(iter(front.terms.values()))
    if name in (BASE, FULL):
        weight = float(name == FULL)
    elif len(some) == 1:
        rows = front.table[front.table["gradient"] == name]
        weight = float(rows["mean_weight"].iloc[0])  # of a constant, it is the constant
    else:
        return ()
    constant = Gradient.constant(len(some[0].weights), weight).rounded(2)
    return tuple(Term(term.source, constant) for term in some)


def _dot(name: str, point: Mapping[str, float]) -> dict[str, object]:
    kind, strength = strength_in(name)
    colors = {BASE: BASE_COLOR, FULL: ADAPTER_COLOR, "fit": FIT_COLOR}
    said = f"{name}: NLL {point['nll']:.3f}, KL {point['kl']:.3f} (held out, nats a token)"
    low = high = None
    if kind == "fit" and math.isfinite(point["from_constant"]):
        at_constant = point["nll"] - point["from_constant"]
        ends = point["from_constant_low"], point["from_constant_high"]
        low, high = (at_constant + end for end in ends)
        gain = f"{point['from_constant']:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"
        said += f"; NLL less that of the constant of the same KL: {gain}"
    return {
        "name": name,
        "x": point["kl"],
        "y": point["nll"],
        "low": low,
        "high": high,
        "label": {"fit": strength, "constant": ""}.get(kind, name),
        "said": said,
        "color": colors.get(kind, MARK),
    }


def _drawn(terms: Sequence[Term]) -> list[tuple[Gradient, dict[str, Gradient]]]:
    return [(term.weights, dict(term.weights_for)) for term in terms]
