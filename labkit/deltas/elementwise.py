"""A change that a rule makes of several deltas, element by element."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from labkit.deltas.arrays import Array, of_numpy, places, zeros
from labkit.deltas.delta import BaseDependent, Delta
from labkit.deltas.passes import add_nearly, rows_at_once
from labkit.files.tensor_file import StoredTensor

RULE_ELEMENTS = 1 << 15
"""Elements that a rule is given at a time: few enough for a processor's cache, and enough that
threads seldom wait for Python's lock, which numpy gives back for each operation."""

Rule = Callable[[list[Array], Array, Array, list[float]], tuple[Array, Array | None]]
"""Takes each delta's elements, the same elements of the base, and where they stand in the tensor
(counted along its rows): flat arrays of float64, but for the positions (int64); and of each delta a
bound, how far its elements may be off. Gives what is added; and marks of the elements where it
would be another number, and not only one with other last bits, if the deltas were off by so much.
None for no such element. It is written for numpy's arrays and torch's tensors alike."""


def rule_slices(values: Array) -> Iterator[slice]:
    """Where the pieces of a flat array lie; on another device than the processor it is one."""
    step = RULE_ELEMENTS if of_numpy(values) else max(1, len(values))
    for start in range(0, len(values), step):
        yield slice(start, min(start + step, len(values)))


class Elementwise(BaseDependent):
    """`f(ΔW_1, …, ΔW_n, W)` for each element.

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
        step = rows_at_once(total.shape[1], of_numpy(total))
        for first in range(0, total.shape[0], step):
            some = slice(first, first + step)
            total[some] += self._rows(start + first, base[some])

    def _rows(self, start: int, base: Array) -> Array:
        """The change of the rows from `start` on."""
        rows: list[Array] = []
        bounds: list[float] = []
        for delta in self.deltas:
            rows.append(zeros(base.shape, base))
            if self.jumps:
                bounds.append(add_nearly(delta, rows[-1], start, base))
            else:
                delta.add_rows_to(rows[-1], start, base)
                bounds.append(0.0)
        numbers: Array = base.reshape(-1)
        change = zeros(numbers.shape, numbers)
        first = start * base.shape[1]
        for some in rule_slices(numbers):
            positions = places(first + some.start, first + some.stop, base)
            values = [one.reshape(-1)[some] for one in rows]
            change[some], marks = self.rule(values, numbers[some], positions, bounds)
            if marks is not None and marks.any():  # never on another device than the processor
                unsure = np.flatnonzero(marks)
                found = self._entries(numbers[some][unsure], positions[unsure])
                change[some][unsure] = found
        return (change if self.weight == 1 else change * self.weight).reshape(base.shape)

    def _entries(self, base: np.ndarray, positions: np.ndarray) -> Array:
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
        """The same with its deltas on another device."""
        moved = [delta.to(device) for delta in self.deltas]
        return Elementwise(moved, self.rule, self.base, self.jumps, self.weight)
