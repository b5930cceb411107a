"""A low-rank product in some of a tensor's rows: one expert of a stack."""

from __future__ import annotations

import numpy as np

from labkit.deltas.arrays import Array
from labkit.deltas.delta import Delta
from labkit.deltas.low_rank import LowRank


class RowBlock(Delta):
    """A low-rank product that is added to some of a tensor's rows.

    Attributes:
        delta: the product.
        first: the row of the tensor that its first row is added to.
    """

    step = 3

    def __init__(self, delta: LowRank, first: int) -> None:
        self.delta = delta
        self.first = first

    def times(self, weight: float) -> RowBlock:
        """The same product `weight` times."""
        return RowBlock(self.delta.times(weight), self.first)

    def add_rows_to(self, total: Array, start: int, base: Array) -> None:
        """Add the rows that both have."""
        rows = self._shared(start, total.shape[0])
        if rows.start < rows.stop:
            self.delta.add_rows_to(total[rows], start + rows.start - self.first, base[rows])

    def add_rows_in_order(self, total: Array, start: int, base: Array) -> None:
        """The same, each element in a fixed order of operations."""
        rows = self._shared(start, total.shape[0])
        if rows.start < rows.stop:
            first = start + rows.start - self.first
            self.delta.add_rows_in_order(total[rows], first, base[rows])

    def uncertainty(self, start: int, stop: int) -> float:
        """How far elements of rows can lie from those in a fixed order: the product's bound."""
        rows = self._shared(start, stop - start)
        if rows.start >= rows.stop:
            return 0.0
        first = start - self.first
        return self.delta.uncertainty(first + rows.start, first + rows.stop)

    def _shared(self, start: int, count: int) -> slice:
        """Which of so many rows from `start` on it has."""
        end = min(start + count, self.first + self.delta.shape[0])
        return slice(max(start, self.first) - start, end - start)

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements, where it has them."""
        inside = (rows >= self.first) & (rows < self.first + self.delta.shape[0])
        if bool(inside.any()):
            total[inside] += self.delta.entries(rows[inside] - self.first, columns[inside])

    def to(self, device: str) -> RowBlock:
        """The same on another device."""
        return RowBlock(self.delta.to(device), self.first)

    def norm(self) -> float:
        """The Frobenius norm."""
        return self.delta.norm()
