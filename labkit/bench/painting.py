"""Painting layers × modules: the matrix as a widget of its own, and beside the curve of the lab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets

from labkit.bench import view
from labkit.errors import LabkitError, shown
from labkit.gradients.calls import as_gradient
from labkit.gradients.gradient import Gradient
from labkit.merging.module_rows import ModuleKind, module_kinds, patterns_of, weights_by_kind
from labkit.merging.recipe import Recipe, Term, pattern_matches
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.models.source import Source
from labkit.surveys.adding_up import totals
from labkit.surveys.delta_survey import survey
from labkit.surveys.surveyed_tensors import table_order
from labkit.widgets.matrix import Matrix


class MatrixEditor(Matrix):
    """Paint the layer weights of each kind of module, layers × modules, and read them as a term.

    `lk.plan(lk.Recipe(base, [editor.term]))` is the plan of what is painted.

    Args:
        base: the base model.
        adapter: a LoRA or a full model; or a `Term` of a recipe, and then without `weights`.
        weights: the gradient of all modules to begin with; 1 everywhere if left out.
        norms: show in each cell how much a LoRA changes there, which takes a survey.
        traits: `brush`, `bounds` and `step`, as in `Matrix`.

    Raises:
        LabkitError: a base or an adapter that cannot be opened, or weights of another length.
    """

    def __init__(
        self,
        base: Checkpoint | str | Path,
        adapter: Term | Source | Checkpoint | str | Path,
        weights: Gradient | str | None = None,
        *,
        norms: bool = True,
        **traits: Any,
    ) -> None:
        self._base = Checkpoint.open(base)
        if not isinstance(adapter, Term):
            first = Gradient.constant(self._base.layers) if weights is None else weights
            adapter = Term(open_source(adapter), as_gradient(first))
        adapter.weights.require(self._base.layers, "the matrix")
        self._term, self._kinds = adapter, _ordered_kinds(self._base, adapter)
        super().__init__(weights_by_kind(adapter, self._kinds), **self._beside(), **traits)
        if norms:
            self.show_norms()

    @property
    def term(self) -> Term:
        """The term of a recipe with what is painted: its `weights` and `weights_for`."""
        rows = self.gradients
        if rows == weights_by_kind(self._term, self._kinds):
            return self._term
        self._term = Term(self._term.source, *patterns_of(self._kinds, rows, self._term.weights))
        return self._term

    @term.setter
    def term(self, term: Term) -> None:
        kinds = _ordered_kinds(self._base, term)
        same = term.source is self._term.source and kinds == self._kinds
        self._term, self._kinds = term, kinds
        if same:
            self.gradients = weights_by_kind(term, kinds)
        else:
            self.show(weights_by_kind(term, kinds), **self._beside())

    def show_norms(self) -> None:
        """Show in each cell how much the LoRA changes there; a full model's norms are not shown."""
        if isinstance(self._term.source, Adapter):
            self.norms = _norms_by_kind(self._base, self._term.source, self._kinds)

    def _beside(self) -> dict[str, Any]:
        """What goes with the rows."""
        every = set(range(self._base.layers))
        return {
            "absent": {kind.name: every - kind.layers for kind in self._kinds},
            "names": (self._base.name, self._term.source.name),
        }


class Painting:
    """The matrix of a lab, and the button that shows it.

    Args:
        painted: called with the adapter's number and its new term when something was painted.
    """

    def __init__(self, painted: Callable[[int, Term], None]) -> None:
        self.toggle = ipywidgets.ToggleButton(
            False,
            description="Layers × modules",
            tooltip="paint the weights of each kind of module in each layer",
            # Beside the buttons of the modules, whose label stands above them.
            layout={"width": "auto", "align_self": "flex-end", "margin": "2px 2px 0"},
        )
        self.box = ipywidgets.VBox(layout={"display": "none", "width": "auto"})
        self.matrix: MatrixEditor | None = None
        self._painted, self._showing = painted, False
        self._recipe: Recipe | None = None
        self._index = 0
        self.toggle.observe(lambda _: self._toggled(), "value")

    def show(self, recipe: Recipe, index: int) -> None:
        """Show what is in force for an adapter, where the matrix is open.

        Args:
            recipe: all that is drawn.
            index: the adapter's number.
        """
        self._recipe, self._index = recipe, index
        if not self.toggle.value:
            return
        self._showing = True
        try:
            self._show(recipe.base, recipe.terms[index])
        except LabkitError as error:  # an adapter that changes nothing in the layers
            self.box.children = (ipywidgets.HTML(view.problem(error)),)
        finally:
            self._showing = False

    def _show(self, base: Checkpoint, term: Term) -> None:
        if self.matrix is None:
            self.matrix = MatrixEditor(base, term, norms=False)
            self.matrix.observe(lambda _: self._cells_changed(), "cells")
        elif self.matrix.term != term:
            self.matrix.term = term
        if self.box.children != (self.matrix,):
            self.box.children = (self.matrix,)

    def show_norms(self) -> None:
        """Show how much the adapter changes in each cell, where the matrix is open."""
        if self.matrix is not None and self.toggle.value and not self.matrix.norms:
            self.matrix.show_norms()

    def _toggled(self) -> None:
        self.box.layout.display = None if self.toggle.value else "none"
        if self._recipe is not None:
            self.show(self._recipe, self._index)

    def _cells_changed(self) -> None:
        if not self._showing and self.matrix is not None:
            self._painted(self._index, self.matrix.term)


def _ordered_kinds(base: Checkpoint, term: Term) -> tuple[ModuleKind, ...]:
    """The kinds of a term's modules, in the order in which a layer uses them: attention first.

    Raises:
        LabkitError: there are none.
    """
    kinds = module_kinds(base, term)
    if not kinds:
        raise LabkitError(
            f"{shown(term.source.name)} changes no module in a layer of {shown(base.name)}: there "
            "are no weights of layers to paint"
        )

    def place(kind: ModuleKind) -> tuple[int, float, int, str]:
        block = kind.path.rpartition(".")[0]
        rank = 0 if "attn" in block or "attention" in block else 1 if block else 2
        return (rank, *table_order(0, kind.name))

    return tuple(sorted(kinds, key=place))


def _norms_by_kind(
    base: Checkpoint, adapter: Adapter, kinds: tuple[ModuleKind, ...]
) -> list[list[float]]:
    """`‖ΔW‖/‖W‖` of each kind of module in each layer; 0 where nothing changes."""
    table = survey(base, adapter, progress=False)
    table = table[table["layer"].notna()]
    norms = []
    for kind in kinds:
        of_kind = table[table["name"].map(lambda name, one=kind.name: pattern_matches(one, name))]
        row = [0.0] * base.layers
        for line in totals(of_kind, "layer").to_dict("records") if len(of_kind) else ():
            if line["relative_norm"] > 0:
                row[int(line["layer"])] = float(line["relative_norm"])
        norms.append(row)
    return norms
