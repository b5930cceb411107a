"""The sum of several deltas of one tensor, in an order that keeps every number exact.

What replaces the base's numbers comes first (step 0), then what scales them (1), then products of
factors (2, stacked into one), then what lies in some of the rows (3). So a weight of 1 leaves
exactly the adapter's numbers before anything else is added, and every merge adds in one order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labkit.deltas.arrays import Array
from labkit.deltas.delta import BaseDependent, Delta
from labkit.deltas.low_rank import LowRank
from labkit.deltas.row_block import RowBlock
from labkit.files.tensor_file import StoredTensor


class Total(BaseDependent):
    """Several deltas of one tensor, added one after the other.

    Attributes:
        parts: the deltas, in the order in which they are added.
    """

    step = 0

    def __init__(
        self, parts: Sequence[Delta], base: StoredTensor, row_count: int | None = None
    ) -> None:
        self._parts = tuple(parts)
        self.by_element = all(part.by_element for part in self._parts)
        self.base = base
        self._row_count = base.matrix_shape[0] if row_count is None else row_count

    @property
    def parts(self) -> tuple[Delta, ...]:
        """The deltas, in the order in which they are added."""
        return self._parts

    @property
    def row_count(self) -> int:
        """Rows of the result."""
        return self._row_count

    def times(self, weight: float) -> Total:
        """The same sum `weight` times."""
        return Total([part.times(weight) for part in self.parts], self.base, self.row_count)

    def add_rows_to(self, total: Array, start: int, base: Array) -> None:
        """Add the rows from `start` on."""
        for part in self.parts:
            part.add_rows_to(total, start, base)

    def add_rows_in_order(self, total: Array, start: int, base: Array) -> None:
        """The same, each element in a fixed order of operations."""
        for part in self.parts:
            part.add_rows_in_order(total, start, base)

    def uncertainty(self, start: int, stop: int) -> float | None:
        """Of products alone the sum of their bounds; of others nothing is known.

        What else is added is rounded to the last place of the sum, which may be far larger.
        """
        products = [part for part in self.parts if isinstance(part, (LowRank, RowBlock))]
        if len(products) < len(self.parts):
            return super().uncertainty(start, stop)
        return sum(part.uncertainty(start, stop) for part in products)

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements."""
        for part in self.parts:
            part.add_entries_to(total, base, rows, columns)

    def to(self, device: str) -> Total:
        """The same on another device."""
        return Total([part.to(device) for part in self.parts], self.base, self.row_count)


def total_of(deltas: Sequence[Delta], base: StoredTensor, row_count: int) -> Delta:
    """Add deltas of one tensor up; products of factors alone become one pair of factors.

    Args:
        deltas: what is added, weights included.
        base: the base's tensor.
        row_count: rows of the result.
    """
    parts = [part for delta in deltas for part in delta.parts]
    products = [part for part in parts if isinstance(part, LowRank)]
    if len(products) == len(parts):
        return LowRank.stacked(products)
    others = [part for part in parts if not isinstance(part, LowRank)]
    stacked = [LowRank.stacked(products)] if products else []
    return Total(sorted([*others, *stacked], key=lambda part: part.step), base, row_count)
