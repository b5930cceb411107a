"""What must be known of a whole delta before its first element is merged: sums, and the largest.

A delta of a large tensor does not fit into memory in float64. So its rows are made again in each
pass over it, in blocks of a fixed size and by a fixed order of operations (`add_rows_in_order`):
every pass sees the same bits, on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from labkit.deltas.delta import NORM_ELEMENTS, BaseDependent, Delta
from labkit.files.tensor_file import StoredTensor

DIGIT_BITS = 16
"""Bits of a magnitude that one pass counts."""
FEW = 1 << 16
"""Elements that may be held in memory to be sorted."""
MAGNITUDE = np.uint64((1 << 63) - 1)
"""All bits of a float64 but its sign. Of numbers that are not negative, the larger has the larger
bits."""


def ordered_blocks(
    delta: Delta, base: StoredTensor
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Make a delta's rows block by block, each element in a fixed order of operations.

    Yields:
        the position of a block's first element in the tensor, counted along its rows; the block's
        elements, flat; and the base's, 0 where the delta does not depend on them.
    """
    count, columns = base.matrix_shape
    step = max(1, NORM_ELEMENTS // max(1, columns))
    reads_base = any(isinstance(part, BaseDependent) for part in delta.parts)
    for start in range(0, count, step):
        stop = min(start + step, count)
        numbers = base.read_rows(start, stop) if reads_base else np.zeros((stop - start, columns))
        values = np.zeros((stop - start, columns))
        delta.add_rows_in_order(values, start, numbers)
        yield start * columns, values.reshape(-1), numbers.reshape(-1)


def sum_in_order(values: np.ndarray) -> float:
    """Add numbers up: halves are added to each other until one number is left.

    numpy and BLAS add in an order of their own, which may hang on the processor.
    """
    values = values.reshape(-1)
    while len(values) > 1:
        half = len(values) // 2
        odd = values[2 * half :]
        values = values[:half] + values[half : 2 * half]
        if len(odd):
            values[0] += odd[0]
    return float(values[0]) if len(values) else 0.0


@dataclass(frozen=True)
class Cut:
    """Which elements of a delta are its largest: those behind the cut are not.

    Attributes:
        magnitude: the least `|ΔW|` among them.
        last: the position of the last element of just this magnitude that is among them; where
            more have it than there is room for, the first ones are taken.
    """

    magnitude: float
    last: int

    def keeps(self, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Tell which elements are among the largest: a mark for each."""
        magnitudes = np.abs(values)
        tied = (magnitudes == self.magnitude) & (positions <= self.last)
        return np.asarray((magnitudes > self.magnitude) | tied)


def largest(delta: Delta, base: StoredTensor, count: int) -> Cut:
    """Find the `count` largest elements of a delta by `|ΔW|`, exactly; of equals the first ones.

    A radix selection: each pass counts how often each value of the next bits occurs among the
    elements whose higher bits are known to be the cut's. As soon as few are left they are sorted.

    Args:
        delta: the delta, at weight 1.
        base: the base's tensor.
        count: how many; from 1 to the tensor's elements.
    """
    known, shift, wanted = 0, 64, count  # the cut's bits from `shift` on, and its rank among those
    while shift:
        shift -= DIGIT_BITS
        histogram = np.zeros(1 << DIGIT_BITS, np.int64)
        for _, bits in _candidates(delta, base, known, shift + DIGIT_BITS):
            digits = (bits >> np.uint64(shift)) & np.uint64((1 << DIGIT_BITS) - 1)
            histogram += np.bincount(digits.astype(np.int64), minlength=len(histogram))
        from_above = np.cumsum(histogram[::-1])[::-1]
        digit = int(np.flatnonzero(from_above >= wanted)[-1])
        wanted -= int(from_above[digit] - histogram[digit])
        known = known << DIGIT_BITS | digit
        if histogram[digit] <= FEW:
            return _among_few(delta, base, known, shift, wanted)
    # More elements than can be held have the same bits, as in a model that was hardly trained.
    for positions, bits in _candidates(delta, base, known, 0):
        if len(bits) >= wanted:
            return _cut(bits[wanted - 1], positions[wanted - 1])
        wanted -= len(bits)
    raise AssertionError("a pass over a delta found other numbers than the one before")


def _candidates(
    delta: Delta, base: StoredTensor, known: int, shift: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The elements whose magnitude has the known bits from `shift` on: positions and bits."""
    for first, values, _ in ordered_blocks(delta, base):
        bits = values.view(np.uint64) & MAGNITUDE
        if shift == 64:
            yield np.arange(first, first + len(bits)), bits
            continue
        here = np.flatnonzero(bits >> np.uint64(shift) == np.uint64(known))
        yield first + here, bits[here]


def _among_few(delta: Delta, base: StoredTensor, known: int, shift: int, wanted: int) -> Cut:
    found = list(_candidates(delta, base, known, shift))
    positions = np.concatenate([some for some, _ in found])
    bits = np.concatenate([some for _, some in found])
    # Stable: of equal magnitudes the first one stays first.
    chosen = np.argsort(~bits, kind="stable")[wanted - 1]
    return _cut(bits[chosen], positions[chosen])


def _cut(bits: np.uint64, position: np.int64) -> Cut:
    return Cut(float(np.array(bits).view(np.float64)), int(position))
