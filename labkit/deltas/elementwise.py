"""A change that a rule makes of several deltas, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from labkit.deltas.delta import Array, BaseDependent, Delta, on_device
from labkit.deltas.passes import add_nearly
from labkit.files.tensor_file import StoredTensor

RULE_ELEMENTS = 1 << 14
"""Elements that a rule is given at a time: few enough for a processor's cache."""

Rule = Callable[[list[np.ndarray], np.ndarray, np.ndarray], np.ndarray]
"""Takes each delta's elements, the same elements of the base, and where they stand in the tensor
(counted along its rows); gives what is added. All arrays have one shape and float64, but for the
positions (int64)."""
Unsure = Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]
"""Takes each delta's elements, and of each a bound for each row, how far they may be off; marks the
elements where the rule may then give another number, and not only other last bits."""


class Elementwise(BaseDependent):
    """`f(ΔW_1, …, ΔW_n, W)` for each element, calculated by numpy; a device gets the result.

    Attributes:
        deltas: what the rule is given.
        rule: makes the change of the deltas' elements.
        base: the base's tensor.
        unsure: marks elements where the last bit of a delta can change the result by more than its
            own last bits: where a sign decides, or whether an element is among the largest. These
            are summed in a fixed order, beside those whose rounding is unsure. None if there are
            no such elements.
        weight: what the change is multiplied with.
    """

    step = 0

    def __init__(
        self,
        deltas: Sequence[Delta],
        rule: Rule,
        base: StoredTensor,
        unsure: Unsure | None = None,
        weight: float = 1.0,
    ) -> None:
        self.deltas = tuple(deltas)
        self.rule = rule
        self.base = base
        self.unsure = unsure
        self.weight = weight
        self.by_element = all(delta.by_element for delta in self.deltas)

    def times(self, weight: float) -> Elementwise:
        """The same change `weight` times."""
        return Elementwise(self.deltas, self.rule, self.base, self.unsure, self.weight * weight)

    def add_rows_to(self, total: Array, start: int, base: Array) -> None:
        """Add the rows from `start` on."""
        # A GPU's run of rows is long, and would take many arrays of its size.
        step = max(1, RULE_ELEMENTS // max(1, total.shape[1]))
        for first in range(0, total.shape[0], step):
            some = slice(first, first + step)
            here = base[some] if isinstance(base, np.ndarray) else base[some].cpu().numpy()
            change = self._rows(start + first, here)
            if not isinstance(total, np.ndarray):
                change = on_device(str(total.device), change)
            total[some] += change

    def _rows(self, start: int, base: np.ndarray) -> np.ndarray:
        """The change of the rows from `start` on."""
        first = start * base.shape[1]
        positions = np.arange(first, first + base.size).reshape(base.shape)
        values, bounds = [], []
        for delta in self.deltas:
            values.append(np.zeros(base.shape))
            if self.unsure:
                bounds.append(add_nearly(delta, values[-1], start, base))
            else:
                delta.add_rows_to(values[-1], start, base)
        if self.unsure and any(bound.any() for bound in bounds):
            rows, columns = np.nonzero(self.unsure(values, bounds))
            for delta, one in zip(self.deltas, values, strict=True):
                exact = np.zeros(len(rows))
                delta.add_entries_to(exact, base[rows, columns], rows + start, columns)
                one[rows, columns] = exact
        return self.rule(values, base, positions) * self.weight

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
