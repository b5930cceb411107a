"""What must be known of a whole delta before its first element is merged: sums, and the largest.

A delta of a large tensor does not fit into memory in float64. So its rows are made again in each
pass over it, in blocks of a fixed size and by a fixed order of operations (`add_rows_in_order`):
every pass sees the same bits, on every machine. Where the base's tensor is a `ResidentTensor`, and
the delta is on its device, all is calculated there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from labkit.deltas.arrays import (
    Array,
    as_numpy,
    bits_of,
    counts,
    of_numpy,
    places,
    places_where,
)
from labkit.deltas.delta import NORM_ELEMENTS, BaseDependent, Delta
from labkit.deltas.resident_tensor import ResidentTensor
from labkit.files.tensor_file import StoredTensor

BLOCKS_ON_DEVICE = 32
"""Blocks that another device than the processor is given at a time: enough to keep it busy, 32 MiB
for each array."""
DIGIT_BITS = 16
"""Bits of a magnitude that one pass counts."""
FEW = 1 << 16
"""Elements that may be held in memory to be sorted."""
LOOKED_AT = 1 << 15
"""Elements that are compared at a time; see `elementwise.RULE_ELEMENTS`."""
SAMPLED_ROWS = (64, 1024)
"""Rows of a sample: a sixteenth of a tensor's, but at least and at most so many."""
SAMPLED_ELEMENTS = 1 << 18
SURE = (4, 16)
"""How far from a guess the cut is looked for, in standard errors; then, where it is not there."""
MOST_HELD = 1 << 22
"""Elements between two guesses that are held in memory."""
HELD_BYTES = 16
"""Of each: its magnitude, and where it is."""
MAGNITUDE = (1 << 63) - 1
"""All bits of a float64 but its sign. Of numbers that are not negative, the larger has the larger
bits."""


@dataclass(frozen=True)
class NearBlock:
    """Rows of a delta, as quickly as they can be made.

    Attributes:
        first: the position of the first element in the tensor, counted along its rows.
        values: the elements, of shape rows × columns.
        bound: how far an element can lie from the one made in a fixed order; 0: it is that one.
    """

    first: int
    values: np.ndarray
    bound: float


def near_blocks(delta: Delta, base: StoredTensor) -> Iterator[NearBlock]:
    """Make a delta's rows block by block, and say how far they are from those in a fixed order.

    Args:
        delta: the delta.
        base: the base's tensor.
    """
    count, columns = base.matrix_shape
    step = block_rows(columns)
    for start in range(0, count, step):
        yield near_rows(delta, base, start, min(start + step, count))


def near_rows(delta: Delta, base: StoredTensor, start: int, stop: int) -> NearBlock:
    """Make some of a delta's rows; see `near_blocks`."""
    columns = base.matrix_shape[1]
    reads_base = any(isinstance(part, BaseDependent) for part in delta.parts)
    numbers = base.read_rows(start, stop) if reads_base else np.zeros((stop - start, columns))
    values = np.zeros((stop - start, columns))
    bound = add_nearly(delta, values, start, numbers)
    return NearBlock(start * columns, values, bound)


def add_nearly(delta: Delta, values: Array, start: int, numbers: Array) -> float:
    """Add a delta's rows as quickly as they can be made; give the bound of `NearBlock`.

    On another device than the processor a fixed order takes no longer.
    """
    bound = delta.uncertainty(start, start + len(values)) if of_numpy(values) else None
    if bound is None:
        delta.add_rows_in_order(values, start, numbers)
        return 0.0
    delta.add_rows_to(values, start, numbers)
    return bound


def block_rows(columns: int) -> int:
    """How many rows a block has."""
    return max(1, NORM_ELEMENTS // max(1, columns))


def rows_at_once(columns: int, on_processor: bool) -> int:
    """How many rows are made at a time: a block of them; on another device some blocks.

    A vector is one row, and a block of it stays one.
    """
    block = block_rows(columns)
    return block if on_processor or columns == 1 else block * BLOCKS_ON_DEVICE


def ordered_blocks(delta: Delta, base: StoredTensor) -> Iterator[tuple[int, Array, Array]]:
    """Make a delta's rows block by block, each element in a fixed order of operations.

    Yields:
        the position of a block's first element in the tensor, counted along its rows; the block's
        elements, flat; and the base's, 0 where the delta does not depend on them. On another device
        than the processor it is a run of several blocks.
    """
    count, columns = base.matrix_shape
    step = rows_at_once(columns, not isinstance(base, ResidentTensor))
    reads_base = any(isinstance(part, BaseDependent) for part in delta.parts)
    for start in range(0, count, step):
        stop = min(start + step, count)
        values = zero_rows(base, stop - start)
        numbers = base.read_rows(start, stop) if reads_base else 0 * values
        delta.add_rows_in_order(values, start, numbers)
        yield start * columns, values.reshape(-1), numbers.reshape(-1)


def zero_rows(base: StoredTensor, count: int) -> Array:
    """Rows of zeros, where passes over a tensor are calculated."""
    if isinstance(base, ResidentTensor):
        return base.zeros(count)
    return np.zeros((count, base.matrix_shape[1]))


def block_sums(values: Array, columns: int) -> list[float]:
    """Add up each block of a run by itself; see `sum_in_order`.

    Args:
        values: the elements of whole rows, flat, from the beginning of a block on.
        columns: how many there are in a row.
    """
    block = block_rows(columns) * max(1, columns)
    whole = len(values) // block
    blocks, rest = values[: whole * block].reshape(whole, block), values[whole * block :]
    sums: list[float] = _sums_in_order(blocks).tolist()
    return [*sums, sum_in_order(rest)] if len(rest) else sums


def sum_in_order(values: Array) -> float:
    """Add numbers up: halves are added to each other until one number is left.

    numpy and BLAS add in an order of their own, which may hang on the processor.
    """
    values = values.reshape(1, -1)
    return float(_sums_in_order(values)[0]) if values.shape[1] else 0.0


def _sums_in_order(values: Array) -> Array:
    """The sum of each row."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        odd = values[:, 2 * half :]
        values = values[:, :half] + values[:, half : 2 * half]
        if odd.shape[1]:
            values[:, :1] += odd
    return values[:, 0]


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

    def keeps(self, values: Array, positions: Array) -> Array:
        """Tell which elements are among the largest: for each all bits (-1), or none (0)."""
        bits, at_cut = _bits(values), _edge(self.magnitude)
        tied = bits == at_cut
        marks = (at_cut - 1) - bits
        marks >>= 63  # the sign, over all bits
        if tied.any():
            marks[tied & (positions > self.last)] = 0
        return marks


def largest(delta: Delta, base: StoredTensor, count: int) -> Cut:
    """Find the `count` largest elements of a delta by `|ΔW|`, exactly; of equals the first ones.

    Args:
        delta: the delta, at weight 1.
        base: the base's tensor.
        count: how many; from 1 to the tensor's elements.
    """
    # On another device a pass in a fixed order is quick, and there is no need to guess.
    for errors in () if isinstance(base, ResidentTensor) else SURE:
        low, high = _guess(delta, base, count, errors)
        found = _largest_between(delta, base, count, low, high)
        if found is not None:
            return found
    return _largest_by_digits(delta, base, count)


def _guess(delta: Delta, base: StoredTensor, count: int, errors: float) -> tuple[float, float]:
    """Guess two magnitudes that the cut lies between, by some rows from all over the tensor.

    The rows are drawn whole, so the standard error of a share is taken from how it differs between
    them. Of few elements all lie between the two.
    """
    rows, columns = base.matrix_shape
    if base.elements <= FEW:
        return -1.0, math.inf
    least, most = SAMPLED_ROWS
    wanted = min(rows, max(least, min(most, rows // 16)))
    # Multiples of the golden ratio fall evenly, and in step with no pattern of a tensor's.
    chosen = np.unique((np.arange(wanted) * ((math.sqrt(5) - 1) / 2) % 1 * rows).astype(np.int64))
    stride = -(-len(chosen) * columns // SAMPLED_ELEMENTS)
    drawn = [near_rows(delta, base, row, row + 1).values[0, row % stride :: stride]
             for row in chosen.tolist()]  # fmt: skip
    sample = [_bits(one) for one in drawn]
    ordered = np.sort(np.concatenate(sample))[::-1]
    share = count / base.elements
    middle = ordered[min(int(share * len(ordered)), len(ordered) - 1)]
    above = np.array([np.count_nonzero(one >= middle) / max(1, len(one)) for one in sample])
    off = errors * (float(above.std()) / math.sqrt(len(chosen)) + 1 / len(ordered))
    places = int((share - off) * len(ordered)), int((share + off) * len(ordered))
    high = _float_of(ordered[places[0]]) if places[0] > 0 else math.inf
    low = _float_of(ordered[places[1]]) if places[1] < len(ordered) else -1.0
    return low, high


def _largest_between(
    delta: Delta, base: StoredTensor, count: int, low: float, high: float
) -> Cut | None:
    """Find them in one pass, if the cut lies between two magnitudes.

    How many elements are above and at each of the two is counted, and what is between is held and
    sorted. Elements come by products of matrices where a bound says how far these can be off, and
    are made again in a fixed order where that decides.

    Returns:
        None if the cut lies elsewhere, or too many elements lie between.
    """
    counts: list[np.ndarray] = []
    held: list[np.ndarray] = []
    places: list[np.ndarray] = []
    bound, room = 0.0, MOST_HELD
    for block in near_blocks(delta, base):
        bound = max(bound, block.bound)
        edges = [_edge(at) for at in (high + block.bound, high - block.bound,
                                      low + block.bound, low - block.bound)]  # fmt: skip
        counted, flat = np.zeros(4, np.int64), block.values.reshape(-1)
        for first in range(0, len(flat), LOOKED_AT):
            bits = _bits(flat[first : first + LOOKED_AT])
            above, at_high = bits > edges[0], bits >= edges[1]
            between, at_low = bits > edges[2], bits >= edges[3]
            counted += [np.count_nonzero(one) for one in (above, at_high, between, at_low)]
            here = np.flatnonzero(between > at_high)
            held.append(bits[here])
            places.append(here + (block.first + first))
            room -= len(here)
        counts.append(counted)
        if room < 0:
            return None
    above, at_high, between, at_low = np.sum(counts, axis=0).tolist()
    if at_high < count <= between:
        bits, positions = np.concatenate(held), np.concatenate(places)
        return _cut_among(delta, base, bits, positions, count - at_high, bound, (low, high))
    if bound == 0 and above < count <= at_high:
        equals = [some[1] - some[0] for some in counts]
        return _cut_of_equals(delta, base, high, count - above, equals)
    if bound == 0 and between < count <= at_low:
        equals = [some[3] - some[2] for some in counts]
        return _cut_of_equals(delta, base, low, count - between, equals)
    return None


def _cut_among(
    delta: Delta,
    base: StoredTensor,
    bits: np.ndarray,
    positions: np.ndarray,
    wanted: int,
    bound: float,
    between: tuple[float, float],
) -> Cut | None:
    """Find the cut among elements that are held, of which so many are wanted."""
    if bound:
        # Where no element is off by more than the bound, neither is the cut.
        low, high = between
        near = _float_of(np.partition(bits, len(bits) - wanted)[len(bits) - wanted])
        least, most = near - 2 * bound, near + 2 * bound
        if least <= low + bound or most >= high - bound:
            return None
        magnitudes = bits.view(np.float64)
        wanted -= int(np.count_nonzero(magnitudes > most))
        unsure = np.flatnonzero((magnitudes >= least) & (magnitudes <= most))
        if len(unsure) > FEW:
            return None
        positions, values = positions[unsure], np.zeros(len(unsure))
        columns = base.matrix_shape[1]
        # Only products are off, and these do not look at the base.
        rows = positions // columns
        delta.add_entries_to(values, np.zeros(len(unsure)), rows, positions - rows * columns)
        bits = _bits(values)
    cut = np.partition(bits, len(bits) - wanted)[len(bits) - wanted]
    wanted -= int(np.count_nonzero(bits > cut))
    return Cut(_float_of(cut), int(positions[np.flatnonzero(bits == cut)[wanted - 1]]))


def _cut_of_equals(
    delta: Delta, base: StoredTensor, magnitude: float, wanted: int, counts: Sequence[int]
) -> Cut:
    """Find the element that is the last wanted one of those with this magnitude.

    Args:
        delta: the delta, whose rows are made to the last bit.
        base: the base's tensor.
        magnitude: the cut's.
        wanted: how many of them are among the largest.
        counts: how many of them each block has.
    """
    reached = np.cumsum(counts)
    number = int(np.flatnonzero(reached >= wanted)[0])
    rows, columns = base.matrix_shape
    step = block_rows(columns)
    start = number * step
    block = near_rows(delta, base, start, min(start + step, rows))
    here = np.flatnonzero(_bits(block.values.reshape(-1)) == _edge(magnitude))
    wanted -= int(reached[number - 1]) if number else 0
    return Cut(magnitude, block.first + int(here[wanted - 1]))


def _bits(values: Array) -> Array:
    """The bits of each magnitude, as a whole number."""
    return bits_of(values) & MAGNITUDE


def _edge(magnitude: float) -> int:
    """The bits of a magnitude; -1, which all are above, if it is below 0."""
    return int(np.float64(magnitude).view(np.int64)) if magnitude >= 0 else -1


def _float_of(bits: np.int64) -> float:
    return float(np.asarray(bits).view(np.float64))


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
            digits = (bits >> shift) & ((1 << DIGIT_BITS) - 1)
            histogram += counts(digits, len(histogram))
        from_above = np.cumsum(histogram[::-1])[::-1]
        digit = int(np.flatnonzero(from_above >= wanted)[-1])
        wanted -= int(from_above[digit] - histogram[digit])
        known = known << DIGIT_BITS | digit
        if histogram[digit] <= FEW:
            return _among_few(delta, base, known, shift, wanted)
    # More elements than can be held have the same bits, as in a model that was hardly trained.
    for positions, bits in _candidates(delta, base, known, 0):
        if len(bits) >= wanted:
            return Cut(_float_of(as_numpy(bits)[wanted - 1]), int(positions[wanted - 1]))
        wanted -= len(bits)
    raise AssertionError("a pass over a delta found other numbers than the one before")


def _candidates(
    delta: Delta, base: StoredTensor, known: int, shift: int
) -> Iterator[tuple[Array, Array]]:
    """The elements whose magnitude has the known bits from `shift` on: positions and bits."""
    for first, values, _ in ordered_blocks(delta, base):
        bits = _bits(values)
        if shift == 64:
            yield places(first, first + len(bits), bits), bits
            continue
        here = places_where(bits >> shift == known)
        yield first + here, bits[here]


def _among_few(delta: Delta, base: StoredTensor, known: int, shift: int, wanted: int) -> Cut:
    found = list(_candidates(delta, base, known, shift))
    positions = np.concatenate([as_numpy(some) for some, _ in found])
    bits = np.concatenate([as_numpy(some) for _, some in found])
    # Stable: of equal magnitudes the first one stays first.
    chosen = np.argsort(~bits, kind="stable")[wanted - 1]
    return Cut(_float_of(bits[chosen]), int(positions[chosen]))
