"""A change that a rule makes of several deltas, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from labkit.deltas.delta import NORM_ELEMENTS, Array, BaseDependent, Delta, on_device
from labkit.deltas.passes import add_nearly
from labkit.files.tensor_file import StoredTensor

RULE_ELEMENTS = 1 << 15
"""Elements that a rule is given at a time: few enough for a processor's cache, and enough that
threads seldom wait for Python's lock, which numpy gives back for each operation."""

Rule = Callable[
    [list[np.ndarray], np.ndarray, np.ndarray, list[float]], tuple[np.ndarray, np.ndarray | None]
]
"""Takes each delta's elements, the same elements of the base, and where they stand in the tensor
(counted along its rows): flat arrays of float64, but for the positions (int64); and of each delta a
bound, how far its elements may be off. Gives what is added; and marks of the elements where it
would be another number, and not only one with other last bits, if the deltas were off by so much.
None for no such element."""


class Elementwise(BaseDependent):
    """`f(ΔW_1, …, ΔW_n, W)` for each element, calculated by numpy; a device gets the result.

    Attributes:
        deltas: what the rule is given.
        rule: makes the change of the deltas' elements.
        base: the base's tensor.
        jumps: the last bit of a delta can change the result by more than its own last bits: where a
            sign decides, or whether an element is among the largest. Then the rule is told how far
            the deltas may be off, and the elements that it marks are summed in a fixed order,
            beside those whose rounding is unsure.
        weight: what the change is multiplied with.
    """

    step = 0

    def __init__(
        self,
        deltas: Sequence[Delta],
        rule: Rule,
        base: StoredTensor,
        jumps: bool = False,
        weight: float = 1.0,
    ) -> None:
        self.deltas = tuple(deltas)
        self.rule = rule
        self.base = base
        self.jumps = jumps
        self.weight = weight
        self.by_element = all(delta.by_element for delta in self.deltas)

    def times(self, weight: float) -> Elementwise:
        """The same change `weight` times."""
        return Elementwise(self.deltas, self.rule, self.base, self.jumps, self.weight * weight)

    def add_rows_to(self, total: Array, start: int, base: Array) -> None:
        """Add the rows from `start` on."""
        # A GPU's run of rows is long, and would take many arrays of its size.
        step = max(1, NORM_ELEMENTS // max(1, total.shape[1]))
        for first in range(0, total.shape[0], step):
            some = slice(first, first + step)
            here = base[some] if isinstance(base, np.ndarray) else base[some].cpu().numpy()
            change = self._rows(start + first, here)
            if not isinstance(total, np.ndarray):
                change = on_device(str(total.device), change)
            total[some] += change

    def _rows(self, start: int, base: np.ndarray) -> np.ndarray:
        """The change of the rows from `start` on."""
        rows, bounds = [], []
        for delta in self.deltas:
            rows.append(np.zeros(base.shape))
            if self.jumps:
                bounds.append(add_nearly(delta, rows[-1], start, base))
            else:
                delta.add_rows_to(rows[-1], start, base)
                bounds.append(0.0)
        change, numbers = np.empty(base.size), base.reshape(-1)
        first = start * base.shape[1]
        for begin in range(0, base.size, RULE_ELEMENTS):
            some = slice(begin, min(begin + RULE_ELEMENTS, base.size))
            positions = np.arange(first + some.start, first + some.stop)
            values = [one.reshape(-1)[some] for one in rows]
            change[some], marks = self.rule(values, numbers[some], positions, bounds)
            if marks is not None and marks.any():
                unsure = np.flatnonzero(marks)
                found = self._entries(numbers[some][unsure], positions[unsure])
                change[some][unsure] = found
        return (change if self.weight == 1 else change * self.weight).reshape(base.shape)

    def _entries(self, base: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The change of single elements, but for the weight."""
        columns = self.base.matrix_shape[1]
        rows = positions // columns
        values = []
        for delta in self.deltas:
            values.append(np.zeros(len(rows)))
            delta.add_entries_to(values[-1], base, rows, positions - rows * columns)
        return self.rule(values, base, positions, [0.0] * len(values))[0]

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements."""
        positions = rows * self.base.matrix_shape[1] + columns
        total += self._entries(base, positions) * self.weight

    def to(self, device: str) -> Elementwise:
        """The same: it puts its rows onto the device that asks."""
        return self
