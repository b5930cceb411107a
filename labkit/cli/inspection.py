"""What `labkit inspect` prints: the survey with small bars, then the ledger and the forecast."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit.errors import LabkitError, shown
from labkit.figures.picture import save_picture
from labkit.gradients.gradient import Gradient
from labkit.merging.planning import plan
from labkit.surveys.delta_survey import survey, totals
from labkit.surveys.measured import opened_adapter, opened_base

if TYPE_CHECKING:
    import pandas as pd

By = Literal["layer", "module", "tensor"]
BLOCKS = " ▏▎▍▌▋▊▉█"
BAR_CELLS = 12
WIDTH_WITHOUT_TERMINAL = 120


def inspect(
    base: str,
    adapter: str,
    weights: str | None = None,
    by: str = "layer",
    csv: Path | None = None,
    figure: Path | None = None,
) -> None:
    """Print what an adapter changes, and what a merge with these weights would do.

    Args:
        base: the base model's reference.
        adapter: the adapter's reference.
        weights: the layer weights; without them every weight is 1.
        by: "layer", "module" or "tensor": what a row of the table is.
        csv: where to write the table, with every digit.
        figure: where to draw it: .png or .svg.

    Raises:
        LabkitError: bad input, or a file that cannot be written.
    """
    from labkit.surveys.rounding_loss import rounding_line

    if by not in ("layer", "module", "tensor"):
        raise LabkitError(f"--by is layer, module or tensor, found {shown(by)!r}")
    checkpoint, opened = opened_base(base), opened_adapter(adapter)
    gradient = Gradient.parse(weights or f"1x{checkpoint.layers}", checkpoint.layers)
    # What lies outside the layers is looked at in full; a merge asks for --rest there.
    progress = sys.stderr.isatty()
    whole = survey(checkpoint, opened, gradient, rest=1.0, progress=progress)
    outside = bool(whole["layer"].isna().any())
    resolved = plan(checkpoint, opened, gradient, rest=1.0 if outside else None)
    table = totals(whole, by)  # type: ignore[arg-type]
    if weights is None:
        told = [name for name in table if not str(name).startswith("weight")]
        table = table[told]
    if csv is not None:
        _save_csv(table, csv)
    if figure is not None:
        save_picture(_figure(whole, by, weights is not None), figure)
    _print_table(table, by)
    print(resolved)
    line = rounding_line(whole)
    if line:
        print(f"rounding {line.removeprefix('rounding ')}")


def _save_csv(table: pd.DataFrame, path: Path) -> None:
    try:
        table.to_csv(path, index=False)
    except OSError as error:
        raise LabkitError(
            f"cannot write the table {shown(path)}: {error.strerror or error}; choose a folder "
            "that exists and can be written"
        ) from error


def _figure(table: pd.DataFrame, by: str, weighted: bool) -> Any:
    from labkit.figures.survey_figures import gradient_over_norms, heatmap, norms_by_layer

    if by != "layer":
        return heatmap(table, "relative_norm")
    return gradient_over_norms(table) if weighted else norms_by_layer(table)


def _print_table(table: pd.DataFrame, by: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    columns: list[tuple[str, str]] = [
        ("layer", "layer"),
        ("module", "module"),
        ("norm", "‖ΔW‖"),
        ("relative_norm", "‖ΔW‖/‖W‖"),
        ("share", "share"),
        ("stable_rank", "stable rank"),
        ("effective_rank", "eff. rank"),
        ("weight", "w"),
        ("weighted_norm", "‖wΔW‖"),
        ("changed", "changed"),
        ("lost", "lost"),
    ]
    columns = [(name, title) for name, title in columns if name in table]
    for name, title in columns:
        drawn.add_column(title, justify="left" if name == "module" else "right", no_wrap=True)
        if name == ("weighted_norm" if "weighted_norm" in table else "norm"):
            drawn.add_column("", no_wrap=True)
    # Bars of what arrives stand on the scale of what is there.
    largest = float(table["norm"].max())
    for row in table.to_dict("records"):
        cells: list[Text] = []
        for name, _ in columns:
            cells.append(Text(_cell(name, row[name])))
            if name == ("weighted_norm" if "weighted_norm" in table else "norm"):
                cells.append(Text(bar(float(row[name]) / largest if largest > 0 else 0.0)))
        drawn.add_row(*cells)
    terminal = sys.stdout.isatty()
    width = None if terminal else int(os.environ.get("COLUMNS", WIDTH_WITHOUT_TERMINAL))
    Console(width=width, highlight=False).print(drawn)


def bar(part: float, cells: int = BAR_CELLS) -> str:
    """A bar of text, `part` of so many cells long, to an eighth of a cell."""
    eighths = round(min(max(part, 0.0), 1.0) * cells * 8)
    whole, left = divmod(eighths, 8)
    return "█" * whole + (BLOCKS[left] if left else "")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return shown(value, 40)
    if name == "layer":
        return str(int(value))
    if value is None or math.isnan(value):
        return "–"
    if name in ("share", "relative_norm", "changed", "lost"):
        return f"{value:.2%}" if name == "relative_norm" else f"{value:.1%}"
    if name in ("stable_rank", "effective_rank"):
        return f"{value:.1f}"
    return f"{value:.2f}" if name == "weight" else f"{value:#.4g}".rstrip(".")
