"""A change that a rule makes of several deltas, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from labkit.deltas.delta import Array, BaseDependent, Delta, on_device
from labkit.files.tensor_file import StoredTensor

Rule = Callable[[list[np.ndarray], np.ndarray, np.ndarray], np.ndarray]
"""Takes each delta's elements, the same elements of the base, and where they stand in the tensor
(counted along its rows); gives what is added. All arrays have one shape and float64, but for the
positions (int64)."""


class Elementwise(BaseDependent):
    """`f(ΔW_1, …, ΔW_n, W)` for each element, calculated by numpy; a device gets the result.

    Attributes:
        deltas: what the rule is given.
        rule: makes the change of the deltas' elements.
        base: the base's tensor.
        jumps: whether the last bit of a delta's element can change the result by more than its own
            last bits: where a sign decides, or whether an element is among the largest. Then all
            elements are summed in a fixed order, and not only those whose rounding is unsure.
        weight: what the change is multiplied with.
    """

    step = 0

    def __init__(
        self,
        deltas: Sequence[Delta],
        rule: Rule,
        base: StoredTensor,
        jumps: bool,
        weight: float = 1.0,
    ) -> None:
        self.deltas = tuple(deltas)
        self.rule = rule
        self.base = base
        self.jumps = jumps
        self.weight = weight
        self.by_element = jumps or all(delta.by_element for delta in self.deltas)

    def times(self, weight: float) -> Elementwise:
        """The same change `weight` times."""
        return Elementwise(self.deltas, self.rule, self.base, self.jumps, self.weight * weight)

    def add_rows_to(self, total: Array, start: int, base: Array) -> None:
        """Add the rows from `start` on."""
        on_processor = base if isinstance(base, np.ndarray) else base.cpu().numpy()
        rows, columns = on_processor.shape
        first = start * columns
        positions = np.arange(first, first + rows * columns).reshape(rows, columns)
        values = []
        for delta in self.deltas:
            values.append(np.zeros(on_processor.shape))
            add = delta.add_rows_in_order if self.jumps else delta.add_rows_to
            add(values[-1], start, on_processor)
        change = self.rule(values, on_processor, positions) * self.weight
        total += change if isinstance(total, np.ndarray) else on_device(str(total.device), change)

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements."""
        values = []
        for delta in self.deltas:
            values.append(np.zeros(len(rows)))
            delta.add_entries_to(values[-1], base, rows, columns)
        positions = rows * self.base.matrix_shape[1] + columns
        total += self.rule(values, base, positions) * self.weight

    def to(self, device: str) -> Elementwise:
        """The same: it puts its rows onto the device that asks."""
        return self
