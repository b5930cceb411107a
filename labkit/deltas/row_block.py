"""A low-rank product in some of a tensor's rows: one expert of a stack."""

from __future__ import annotations

import numpy as np

from labkit.deltas.delta import Array, Delta
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
        begin = max(start, self.first)
        end = min(start + total.shape[0], self.first + self.delta.shape[0])
        if begin < end:
            rows = slice(begin - start, end - start)
            self.delta.add_rows_to(total[rows], begin - self.first, base[rows])

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
