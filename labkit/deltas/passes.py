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
BIN_BITS = 11
BIN_SHIFT = 52 - BIN_BITS
BINS = 1 << 16
"""Of the histogram of magnitudes: 2048 for each power of 2, from 2^-28 to 16 times the largest."""
MOST_NEAR = 1 << 15
"""Elements of one block that are made again one by one."""
MAGNITUDE = np.uint64((1 << 63) - 1)
"""All bits of a float64 but its sign. Of numbers that are not negative, the larger has the larger
bits."""


@dataclass(frozen=True)
class NearBlock:
    """Rows of a delta, as quickly as they can be made.

    Attributes:
        first: the position of the first element in the tensor, counted along its rows.
        values: the elements, of shape rows × columns.
        numbers: the base's, 0 where the delta does not depend on them.
        bound: how far each row's elements can lie from those made in a fixed order; 0: they are.
    """

    first: int
    values: np.ndarray
    numbers: np.ndarray
    bound: np.ndarray


def near_blocks(delta: Delta, base: StoredTensor, skip: int = 0) -> Iterator[NearBlock]:
    """Make a delta's rows block by block, and say how far they are from those in a fixed order.

    Args:
        delta: the delta.
        base: the base's tensor.
        skip: how many blocks to leave out at the start.
    """
    count, columns = base.matrix_shape
    step = max(1, NORM_ELEMENTS // max(1, columns))
    reads_base = any(isinstance(part, BaseDependent) for part in delta.parts)
    for start in range(skip * step, count, step):
        stop = min(start + step, count)
        numbers = base.read_rows(start, stop) if reads_base else np.zeros((stop - start, columns))
        values = np.zeros((stop - start, columns))
        bound = add_nearly(delta, values, start, numbers)
        yield NearBlock(start * columns, values, numbers, bound)


def add_nearly(delta: Delta, values: np.ndarray, start: int, numbers: np.ndarray) -> np.ndarray:
    """Add a delta's rows as quickly as they can be made; give the bound of `NearBlock`."""
    bound = delta.uncertainty(start, start + len(values))
    if bound is None:
        delta.add_rows_in_order(values, start, numbers)
        return np.zeros((len(values), 1))
    delta.add_rows_to(values, start, numbers)
    return bound


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
        marks = np.asarray(magnitudes > self.magnitude)
        tied = magnitudes == self.magnitude
        if tied.any():
            marks |= tied & (positions <= self.last)
        return marks


def largest(delta: Delta, base: StoredTensor, count: int) -> Cut:
    """Find the `count` largest elements of a delta by `|ΔW|`, exactly; of equals the first ones.

    Args:
        delta: the delta, at weight 1.
        base: the base's tensor.
        count: how many; from 1 to the tensor's elements.
    """
    found = _largest_in_two_passes(delta, base, count)
    return _largest_by_digits(delta, base, count) if found is None else found


def _largest_in_two_passes(delta: Delta, base: StoredTensor, count: int) -> Cut | None:
    """Find them by one histogram, and a look at what lies near the cut.

    Elements come by products of matrices where a bound says how far these can be off, and are made
    again in a fixed order where that decides. The histogram has the exponent and 11 bits more,
    down from 16 times the largest magnitude of the first rows over 32 powers of 2.

    Returns:
        None if too many elements lie near the cut, or it lies outside the histogram.
    """
    histogram = np.zeros(BINS, np.int64)
    lowest = None
    for block in near_blocks(delta, base):
        digits = block.values.reshape(-1).view(np.int64) & np.int64(MAGNITUDE)
        digits >>= BIN_SHIFT
        if lowest is None:
            lowest = max(0, int(digits.max(initial=0)) + (4 << BIN_BITS) - BINS + 1)
        digits -= lowest
        np.clip(digits, 0, BINS - 1, out=digits)
        histogram += np.bincount(digits, minlength=BINS)
    from_above = np.cumsum(histogram[::-1])[::-1]
    place = int(np.flatnonzero(from_above >= count)[-1])
    if lowest is None or place == BINS - 1 or (place == 0 and lowest > 0):
        return None
    edges = np.array([lowest + place, lowest + place + 1]) << BIN_SHIFT
    low, high = edges.view(np.float64).tolist()
    above, held = 0, 0
    # Of each block the magnitudes near the cut and how often they occur, and what was looked at.
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for block in near_blocks(delta, base):
        magnitudes = np.abs(block.values)
        higher = magnitudes >= high + block.bound
        above += int(np.count_nonzero(higher))
        # Strictly below the edge by more than the bound: not one of them, whatever its last bits.
        near = np.flatnonzero((magnitudes >= low - block.bound) & ~higher)
        if block.bound.any() and len(near) > MOST_NEAR:
            return None
        bits, counts = np.unique(_bits_of(delta, base, block, near), return_counts=True)
        found.append((bits, counts))
        held += len(bits)
        if held > FEW:
            return None
    wanted = count - above
    bits = np.concatenate([some for some, _ in found])
    counts = np.concatenate([some for _, some in found])
    order = np.argsort(bits)[::-1]
    reached = np.cumsum(counts[order])
    cut = bits[order[int(np.flatnonzero(reached >= wanted)[0])]]
    wanted -= int(counts[bits > cut].sum())
    equals = np.cumsum([int(often[some == cut].sum()) for some, often in found])
    number = int(np.flatnonzero(equals >= wanted)[0])
    wanted -= int(equals[number - 1]) if number else 0
    # The block that holds the last of them is looked at once more for its place.
    block = next(near_blocks(delta, base, number))
    magnitudes = np.abs(block.values)
    near = np.flatnonzero((magnitudes >= low - block.bound) & (magnitudes < high + block.bound))
    here = near[_bits_of(delta, base, block, near) == cut]
    return _cut(cut, here[wanted - 1] + block.first)


def _bits_of(delta: Delta, base: StoredTensor, block: NearBlock, near: np.ndarray) -> np.ndarray:
    """The magnitudes of some elements of a block, as bits, made in a fixed order."""
    values = block.values.reshape(-1)[near]
    if block.bound.any() and len(near):
        at, columns = near + block.first, base.matrix_shape[1]
        values = np.zeros(len(near))
        delta.add_entries_to(values, block.numbers.reshape(-1)[near], at // columns, at % columns)
    return np.asarray(values.view(np.uint64) & MAGNITUDE)


def _largest_by_digits(delta: Delta, base: StoredTensor, count: int) -> Cut:
    """Find them by a radix selection, for what the quicker way does not find.

    Each pass counts how often each value of the next bits occurs among the elements whose higher
    bits are known to be the cut's. As soon as few are left they are sorted.
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
