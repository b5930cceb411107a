"""Rows of a survey added up: by layer, by module, or all together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from labkit.errors import LabkitError, shown
from labkit.surveys.columns import SURVEY, Column, largest, mean, root_of_squares, total

if TYPE_CHECKING:
    import pandas as pd

OUTSIDE = "outside"
"""How tables by layer name what lies outside the decoder layers."""
By = Literal["layer", "module", "tensor", "all"]


def totals(table: pd.DataFrame, by: By = "layer") -> pd.DataFrame:
    """Add a survey's rows up by layer or by module, in the order in which they stand.

    Norms add as their squares, `‖·‖² = Σ‖·‖²`, since the rows are different elements of one model;
    of spectral norms the largest counts; shares add; ranks and weights are the rows' mean.

    What rounding does is added over the rows that were asked to change: `changed` is the mean over
    their elements, and `lost² = Σ lost²·‖wΔW‖² / Σ‖wΔW‖²`. Errors of different tensors are
    independent, and add as squares.

    Args:
        table: what `survey` or `survival` gave.
        by: "layer", "module", "all" for a single row, or "tensor" for the rows as they are.

    Returns:
        A row for each layer or module: its name, `tensors` (how many rows), and every column that
        adds up.

    Raises:
        LabkitError: another word for `by`.
    """
    import pandas as pd

    if by not in ("layer", "module", "tensor", "all"):
        raise LabkitError(
            f"a survey is added up by layer, module, tensor or all, found {shown(repr(by))}"
        )
    rows = table.copy()
    rows["layer"] = [OUTSIDE if pd.isna(layer) else int(layer) for layer in table["layer"]]
    if by == "tensor":
        return rows
    if by == "all":
        return pd.DataFrame([_added_up(rows)])
    return pd.DataFrame(
        [{by: key, **_added_up(group)} for key, group in rows.groupby(by, sort=False)]
    )


def _added_up(rows: pd.DataFrame) -> dict[str, Any]:
    there = [column for column in SURVEY if column.adds_up and column.name in rows]
    # Columns that add up alike stand together, norms first.
    there.sort(key=_way_of_adding)
    return {
        "tensors": len(rows),
        **{column.name: column.adds_up(rows, column.name) for column in there if column.adds_up},
    }


def _way_of_adding(column: Column) -> int:
    ways: list[Any] = [root_of_squares, largest, mean, total]
    return ways.index(column.adds_up) if column.adds_up in ways else len(ways)
