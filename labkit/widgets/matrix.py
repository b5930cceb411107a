"""Matrix: paint the layer weights of each kind of module, as cells of a table.

The browser paints and sends cells (`matrix.js`, `matrix.css`; colours and buttons are those of
`editor.css`). What the rows are, and how they are written into a recipe, is decided in Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.widgets.sources import scripted, styled


class Matrix(anywidget.AnyWidget):
    """Paint a matrix of weights: a row for each kind of module, a column for each layer.

    A cell has the base model's colour at 0 and the LoRA's at 1. Read and set `.gradients`;
    `matrix.observe(function, "cells")` calls back on every change.

    Args:
        gradients: for each row, by its name, the weights to start with.
        absent: row -> the layers that have no such module.
        norms: row -> ‖ΔW‖/‖W‖ of each layer, drawn as a small bar in each cell.
        names: the base model's name and the LoRA's, for the legend.
        brush: the weight that is painted, to begin with.
        bounds: the ends of the brush's slider; other weights can be typed.
        step: of the brush's slider.

    Raises:
        LabkitError: no rows, or rows of different lengths.
        traitlets.TraitError: a bad value for one of the others.
    """

    _esm = scripted("painting.js", "matrix.js")
    _css = styled("editor.css", "matrix.css")

    rows = traitlets.List(traitlets.Unicode()).tag(sync=True)
    cells = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    """The weights, rows × layers."""
    absent = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    norms = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    brush = traitlets.Float(1.0).tag(sync=True)
    bounds = traitlets.Tuple(traitlets.Float(), traitlets.Float(), default_value=(0.0, 1.0)).tag(
        sync=True
    )
    step = traitlets.Float(0.05).tag(sync=True)
    shown_number = traitlets.Int(0).tag(sync=True)
    """Counts the matrices that were shown here: what was painted in another one is not undone."""

    def __init__(
        self,
        gradients: Mapping[str, Gradient | Iterable[float]],
        *,
        absent: Mapping[str, Iterable[int]] | None = None,
        norms: Mapping[str, Sequence[float]] | None = None,
        names: Sequence[str] = ("base model", "LoRA"),
        brush: float = 1.0,
        bounds: tuple[float, float] = (0.0, 1.0),
        step: float = 0.05,
        **traits: Any,
    ) -> None:
        self._layers = 0
        super().__init__(brush=brush, bounds=bounds, step=step, **traits)
        self.show(gradients, absent=absent, norms=norms, names=names)

    def show(
        self,
        gradients: Mapping[str, Gradient | Iterable[float]],
        *,
        absent: Mapping[str, Iterable[int]] | None = None,
        norms: Mapping[str, Sequence[float]] | None = None,
        names: Sequence[str] = ("base model", "LoRA"),
    ) -> None:
        """Show another matrix in place of this one; the arguments are those of the class."""
        checked = _checked(gradients)
        self._layers = len(next(iter(checked.values())))
        absent, norms = absent or {}, norms or {}
        # One message: rows, cells and what goes with them change together.
        with self.hold_sync():
            self.norms, self.absent = [], []
            self.rows = list(checked)
            self.cells = [list(each) for each in checked.values()]
            self.absent = [sorted(absent.get(name, ())) for name in checked]
            self.norms = [[float(one) for one in norms[name]] for name in checked if norms]
            self.names = [shown(name, 60) for name in names]
            self.shown_number += 1

    @property
    def gradients(self) -> dict[str, Gradient]:
        """What the matrix shows: the gradient of each row, by its name."""
        return {name: Gradient(row) for name, row in zip(self.rows, self.cells, strict=True)}

    @gradients.setter
    def gradients(self, gradients: Mapping[str, Gradient | Iterable[float]]) -> None:
        checked = _checked(gradients)
        if list(checked) != self.rows:
            raise LabkitError(
                f"the matrix has the rows {', '.join(map(shown, self.rows))}, found "
                f"{', '.join(map(shown, checked))}; give each of them a gradient, in this order"
            )
        self.cells = [list(each) for each in checked.values()]

    # What the traits may hold

    @traitlets.validate("cells")
    def _check_cells(self, proposal: Any) -> list[list[float]]:
        rows = [list(row) for row in proposal["value"]]
        if len(rows) != len(self.rows) or any(len(row) != self._layers for row in rows):
            raise traitlets.TraitError(
                f"the matrix has {len(self.rows)} rows of {self._layers} layers, found rows of "
                f"{', '.join(str(len(row)) for row in rows) or 'nothing'}"
            )
        for name, row in zip(self.rows, rows, strict=True):
            for layer, weight in enumerate(row):
                if not math.isfinite(weight):
                    raise traitlets.TraitError(
                        f"the weight of {shown(name)} in layer {layer} is {weight}; a weight is "
                        "finite"
                    )
        return rows

    @traitlets.validate("norms")
    def _check_norms(self, proposal: Any) -> list[list[float]]:
        rows = [list(row) for row in proposal["value"]]
        if rows and [len(row) for row in rows] != [self._layers] * len(self.rows):
            raise traitlets.TraitError(
                f"norms have one row of {self._layers} for each of the {len(self.rows)} rows, or "
                f"are []; found {len(rows)} rows"
            )
        for row in rows:
            for norm in row:
                if not (math.isfinite(norm) and norm >= 0):
                    raise traitlets.TraitError(
                        f"a norm is {norm}; norms are finite and not negative"
                    )
        return rows

    @traitlets.validate("bounds")
    def _check_bounds(self, proposal: Any) -> tuple[float, float]:
        low, high = proposal["value"]
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise traitlets.TraitError(
                f"the brush's bounds are two finite numbers, the lower first; found {low}, {high}"
            )
        return (low, high)

    @traitlets.validate("brush")
    def _check_brush(self, proposal: Any) -> float:
        if not math.isfinite(proposal["value"]):
            raise traitlets.TraitError(f"the brush is a finite weight, found {proposal['value']}")
        return float(proposal["value"])


def _checked(gradients: Mapping[str, Gradient | Iterable[float]]) -> dict[str, Gradient]:
    if not gradients:
        raise LabkitError("a matrix has a row for each kind of module, found none; give it some")
    checked = {
        str(name): each if isinstance(each, Gradient) else Gradient(each)
        for name, each in gradients.items()
    }
    layers = {name: len(each) for name, each in checked.items()}
    if len(set(layers.values())) > 1:
        listed = ", ".join(f"{shown(name)} {count}" for name, count in layers.items())
        raise LabkitError(f"all rows of a matrix have as many layers, found {listed}")
    return checked
