"""The matrix without a browser: what its traits may hold, and what a row is."""

from __future__ import annotations

import re

import pytest
import traitlets

import labkit as lk
from labkit.errors import LabkitError
from labkit.figures import palette
from labkit.widgets.matrix import Matrix
from labkit.widgets.sources import HERE

ROWS = {"q_proj": [0, 0.5, 1], "mlp": lk.Gradient([1, 1, -1])}


def test_rows_are_gradients():
    matrix = Matrix(ROWS, absent={"mlp": [2]}, norms={"q_proj": [1, 2, 3], "mlp": [0, 0, 1]})
    assert matrix.rows == ["q_proj", "mlp"]
    assert matrix.cells == [[0, 0.5, 1], [1, 1, -1]]
    assert matrix.absent == [[], [2]]
    assert matrix.norms == [[1, 2, 3], [0, 0, 1]]
    matrix.cells = [[0, 0, 0], [1, 1, 1]]
    assert matrix.gradients == {"q_proj": lk.Gradient([0] * 3), "mlp": lk.Gradient([1] * 3)}
    matrix.gradients = ROWS
    assert matrix.cells == [[0, 0.5, 1], [1, 1, -1]]


def test_another_matrix_takes_its_place():
    matrix = Matrix(ROWS, absent={"mlp": [2]}, norms={name: [0, 0, 1] for name in ROWS})
    number = matrix.shown_number
    matrix.show({"a": [1, 2, 3, 4]}, names=("base", "x" * 100))
    assert (matrix.rows, matrix.cells) == (["a"], [[1, 2, 3, 4]])
    assert (matrix.absent, matrix.norms, matrix.shown_number) == ([[]], [], number + 1)
    assert len(matrix.names[1]) < 70


def test_what_is_wrong_is_said():
    for rows, text in (
        ({}, "a matrix has a row for each kind of module, found none; give it some"),
        ({"a": [1], "b": [1, 2]}, "all rows of a matrix have as many layers, found a 1, b 2"),
    ):
        with pytest.raises(LabkitError, match=re.escape(text)):
            Matrix(rows)
    matrix = Matrix(ROWS)
    text = "the matrix has the rows q_proj, mlp, found mlp, q_proj; give each of them a gradient"
    with pytest.raises(LabkitError, match=text):
        matrix.gradients = dict(reversed(ROWS.items()))
    for trait, value, text in (
        ("cells", [[0, 0, 0]], "the matrix has 2 rows of 3 layers, found rows of 3"),
        ("cells", [], "found rows of nothing"),
        ("cells", [[0, 0, 0], [0, float("nan"), 0]], "the weight of mlp in layer 1 is nan; a"),
        (
            "norms",
            [[1, 1, 1]],
            "norms have one row of 3 for each of the 2 rows, or are []; ",
        ),
        ("norms", [[1, 1, 1], [0, 0, -1]], "a norm is -1.0; norms are finite and not negative"),
        ("bounds", (1, 0), "the brush's bounds are two finite numbers, the lower first; "),
        ("brush", float("inf"), "the brush is a finite weight, found inf"),
    ):
        with pytest.raises(traitlets.TraitError, match=re.escape(text)):
            setattr(matrix, trait, value)
    assert matrix.cells == [[0, 0.5, 1], [1, 1, -1]]


def test_its_colours_are_those_of_the_figures():
    css = (HERE / "matrix.css").read_text()
    assert f"--labkit-above: {palette.ABOVE_COLOR}" in css
    assert f"--labkit-below: {palette.BELOW_COLOR}" in css
