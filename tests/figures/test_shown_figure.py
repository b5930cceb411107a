"""Figures that show themselves, and the names of `labkit.figures`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import labkit as lk
from labkit import figures


def test_every_public_figure_is_there():
    assert set(figures.__all__) == {
        "ShownFigure", "benefit_against_harm", "effects_by_layer", "effects_map", "front",
        "gradient_over_norms", "gradient_picture", "gradients_compared", "heatmap",
        "norms_by_layer", "overlap_by_layer", "picture_bytes", "picture_html", "recipe_picture",
        "save_picture", "side_by_side", "singular_values", "survival_map",
    }  # fmt: skip
    for name in figures.__all__:
        assert getattr(lk.figures, name).__doc__
    modules = {path.stem for path in Path(figures.__file__).parent.glob("*.py")}
    assert not modules & {*figures.__all__, *lk.__all__}


def test_importing_them_imports_no_matplotlib():
    code = "import sys, labkit as lk; lk.figures.__all__; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_figure_is_the_last_line_of_a_cell():
    figure = figures.ShownFigure(figsize=(3, 2))
    data, size = figure._repr_png_()
    assert data == figures.picture_bytes(figure, pixels=1440)
    assert int.from_bytes(data[16:20], "big") == 1440
    assert size == {"width": 300}
