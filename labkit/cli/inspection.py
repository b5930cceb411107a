"""What `labkit inspect` prints: the survey with small bars, then the ledger and the forecast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit.cli.options import gradient_for
from labkit.errors import LabkitError, shown
from labkit.figures import save_picture
from labkit.merging.planning import plan
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.surveys.adding_up import totals
from labkit.surveys.columns import SURVEY, Column, columns_that_need
from labkit.surveys.delta_survey import survey
from labkit.surveys.rounding_loss import rounding_line

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

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
    stretch: bool = False,
) -> None:
    """Print what an adapter or a full model changes, and what a merge with these weights would do.

    Args:
        base: the base model's reference.
        adapter: the adapter's reference, or the model's.
        weights: the layer weights; without them every weight is 1.
        by: "layer", "module" or "tensor": what a row of the table is.
        csv: where to write the table, with every digit.
        figure: where to draw it: .png or .svg.
        stretch: stretch weights of another length over the layers.

    Raises:
        LabkitError: bad input, or a file that cannot be written.
    """
    if by not in ("layer", "module", "tensor"):
        raise LabkitError(f"--by is layer, module or tensor, found {shown(by)!r}")
    checkpoint, opened = Checkpoint(base), open_source(adapter)
    gradient = gradient_for(weights or "1", checkpoint.layers, stretch)
    # What lies outside the layers is looked at in full; a merge asks for --rest there.
    progress = sys.stderr.isatty()
    whole = survey(checkpoint, opened, gradient, rest=1.0, progress=progress)
    outside = bool(whole["layer"].isna().any())
    resolved = plan(checkpoint, opened, gradient, rest=1.0 if outside else None)
    table = totals(whole, by)  # type: ignore[arg-type]
    if weights is None:
        weighted = [column.name for column in columns_that_need("weights")]
        table = table.drop(columns=weighted, errors="ignore")
    if csv is not None:
        _save_csv(table, csv)
    if figure is not None:
        save_picture(_figure(whole, by, weights is not None), figure)
    _print_table(table)
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
    from labkit.figures import gradient_over_norms, heatmap, norms_by_layer

    if by != "layer":
        return heatmap(table, "relative_norm")
    return gradient_over_norms(table) if weighted else norms_by_layer(table)


def _print_table(table: pd.DataFrame) -> None:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    said = os.environ.get("COLUMNS", "")
    wished = int(said) if said.isdecimal() and len(said) < 6 else WIDTH_WITHOUT_TERMINAL
    width = None if terminal else wished
    console = Console(width=width, highlight=False)
    drawn = _fitting(table, console.width)
    # A number that is cut says something else, so that a table too wide even so runs over.
    console.width = max(console.width, _width(drawn))
    console.print(drawn)


def _fitting(table: pd.DataFrame, width: int) -> Table:
    """Draw the table as a terminal of this width can show it.

    First the columns move together, then the bars go, then the columns of least importance.
    """
    columns = [column for column in SURVEY if column.heading and column.name in table]
    for tight, bars in ((False, True), (True, True), (True, False)):
        drawn = _drawn(table, columns, tight, bars)
        if _width(drawn) <= width:
            return drawn
    # What says which row it is stays, and so does one number.
    numbers = [column for column in columns if column.adds_up]
    for column in sorted(numbers, key=lambda column: column.importance)[:-1]:
        columns.remove(column)
        drawn = _drawn(table, columns, tight=True, bars=False)
        if _width(drawn) <= width:
            break
    return drawn


def _drawn(table: pd.DataFrame, columns: list[Column], tight: bool, bars: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if tight else 1))
    barred = ("weighted_norm" if "weighted_norm" in table else "norm") if bars else None
    for column in columns:
        heading = column.heading.replace(" ", "\n") if tight else column.heading
        side: Literal["left", "right"] = "left" if column.name == "module" else "right"
        drawn.add_column(heading, justify=side, no_wrap=True)
        if column.name == barred:
            drawn.add_column("", no_wrap=True)
    # Bars of what arrives stand on the scale of what is there.
    largest = float(table["norm"].max())
    for row in table.to_dict("records"):
        cells: list[Text] = []
        for column in columns:
            value: Any = row[column.name]
            if column.adds_up:
                cells.append(Text(column.written(float(value))))
            else:
                cells.append(Text(shown(str(value), 40)))
            if column.name == barred:
                cells.append(Text(bar(float(value) / largest if largest > 0 else 0.0)))
        drawn.add_row(*cells)
    return drawn


def _width(drawn: Table) -> int:
    """The cells of a terminal's line that the table needs."""
    from rich.console import Console

    return Console(width=10_000).measure(drawn).maximum


def bar(part: float, cells: int = BAR_CELLS) -> str:
    """A bar of text, `part` of so many cells long, to an eighth of a cell."""
    eighths = round(min(max(part, 0.0), 1.0) * cells * 8)
    whole, left = divmod(eighths, 8)
    return "█" * whole + (BLOCKS[left] if left else "")
