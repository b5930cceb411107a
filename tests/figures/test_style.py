"""What figures of tables share: the grid of a column, colours, the axis of layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit.figures.style import grid_of, layer_axis, module_colors, new_figure, safe_name


def test_a_column_as_modules_by_layers():
    table = pd.DataFrame(
        {
            "layer": pd.array([0, 0, 2, None], "Int64"),
            "module": ["q", "up", "up", "head"],
            "norm": [1.0, 2.0, 3.0, 4.0],
        }
    )
    grid, layers, modules = grid_of(table, "norm")
    nothing = np.nan
    np.testing.assert_array_equal(
        grid,
        [
            [1, nothing, nothing, nothing],
            [2, nothing, 3, nothing],
            [nothing, nothing, nothing, 4],
        ],
    )
    assert layers == ["0", "1", "2", "outside"]
    assert modules == ["q", "up", "head"]
    with pytest.raises(lk.LabkitError, match="no column of numbers 'module'; it has layer, norm"):
        grid_of(table, "module")


def test_every_module_has_a_colour_of_its_own():
    for count in (1, 8, 9, 30):
        modules = [f"module {number}" for number in range(count)]
        colors = module_colors(modules)
        assert list(colors) == modules
        assert len(set(colors.values())) == count


def test_layers_outside_stand_behind_the_last():
    _, (axes,) = new_figure((4, 3), dark=False)
    layer_axis(axes, [*map(str, range(20)), "outside"])
    labels = {
        tick: label.get_text()
        for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    }
    assert labels.pop(20) == "out"
    assert all(str(tick) == label for tick, label in labels.items())


def test_names_are_safe_to_draw():
    assert safe_name("a$b") == r"a\$b"
    assert len(safe_name("x" * 100)) <= 30
