"""Deltas that scale a tensor's own rows or columns, as DoRA's magnitude does."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from labkit.deltas.arrays import Array, on_device
from labkit.deltas.delta import BaseDependent
from labkit.deltas.replacements import WholeReplacement
from labkit.files.tensor_file import StoredTensor


class Scaling(BaseDependent):
    """`f_i·W_ij` (or `f_j·W_ij`): the base's rows or columns, each times a number of its own.

    Attributes:
        factors: one number for each row; or for each column.
        of_columns: the numbers are the columns'.
        base: the base's tensor.
        replaced: what the adapter holds in place of the base's tensor; its numbers are scaled then.
    """

    step = 1
    by_element = True

    def __init__(
        self,
        factors: Float64[Array, " n"],
        of_columns: bool,
        base: StoredTensor,
        replaced: WholeReplacement | None = None,
    ) -> None:
        self.factors = factors
        self.of_columns = of_columns
        self.base = base
        self.replaced = replaced

    def times(self, weight: float) -> Scaling:
        """The same `weight` times."""
        return Scaling(self.factors * weight, self.of_columns, self.base, self.replaced)

    def add_rows_to(self, total: Array, start: int, base: Array) -> None:
        """Add the rows from `start` on."""
        rows = slice(start, start + len(total))
        if self.replaced is not None:
            base = self.replaced.rows(rows.start, rows.stop)
        total += base * (self.factors if self.of_columns else self.factors[rows, None])

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements."""
        if self.replaced is not None:
            base = self.replaced.entries(rows, columns)
        total += base * self.factors[columns if self.of_columns else rows]

    def to(self, device: str) -> Scaling:
        """The same on another device."""
        factors = on_device(device, self.factors)
        replaced = self.replaced.to(device) if self.replaced else None
        return Scaling(factors, self.of_columns, self.base, replaced)
