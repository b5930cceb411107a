"""Merges a block of rows: float64 in between, rounded once, the same bytes on every device.

Two things could make the last bit differ between devices.

1. Rounding twice. On its way to 16 bits a float64 is rounded to float32 first. Where the float32
   lies exactly halfway between two 16-bit numbers, the second rounding can go the wrong way
   (Boldo and Melquiond, "When double rounding is odd", IMACS 2005).
2. Matrix products. Their last bits depend on the library's order of summation. That matters only
   for a sum so close to halfway between two output numbers that its last bits decide.

A float64 output has all of a sum's bits, so there every element is summed in a fixed order.

Else both concern the same few elements: those whose float32 (for a float32 output: whose float64)
lies halfway, or next to it. They are found by their bit pattern, and `merge_exactly` sums them
again in a fixed order and rounds them with one exact operation. Where no product is added
(`Delta.by_element`) they need only the rounding: half of a mean of two embeddings lies halfway.

All of it is numpy's, without torch, whose import alone would take half a gigabyte and seconds.
numpy knows no bfloat16 and converts float16 slowly, so numbers of 16 bits are converted by their
bits. `rounding_on_device` does the same on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from labkit.deltas.delta import BaseDependent, Delta
from labkit.files.floats import ARRAYS, round_once, wide

SHORT = ("F16", "BF16")
"""The dtypes of 16 bits."""

BLOCK_ELEMENTS = 1 << 17
"""Elements merged at a time: few enough for a processor's cache, and enough that the work outweighs
Python's."""

MOST_UNSURE = BLOCK_ELEMENTS // 4
"""Elements that are merged by themselves at a time, unless one block has more."""
BUFFER_BYTES = BLOCK_ELEMENTS * (2 * 8 + 5 * 4 + 2 + 1)
"""A merger's buffers at most: 64 bits twice, 32 five times, 16 once and a mark for each element."""

EXACT_ELEMENTS = 1 << 13
"""Elements of a float64 output that are merged at a time: each takes a number for each rank."""

MOST_BLOCKS = 64
"""Shapes of blocks whose views of the buffers are kept: a model's matrices have few."""

FEW_COLUMNS = 64
"""Rows shorter than this are summed together."""

NEAR_HALFWAY = 1 << 12
"""For float32 outputs: how near to halfway, in units of float64's last place, is looked at again.
Products of any device agree far closer than that."""

EXPONENTS_APART = 2.0**112
"""Float16's bits, read as those of a float32, give the number divided by this, subnormal numbers
included: the biases of the exponents are 15 and 127."""
FLOAT16_INFINITE = 0x7C00
"""The bits of float16's infinity, and the least of what is not finite."""


def near_halfway_in_float64(bits: Any, values: Any) -> Any:
    """Tell where a float64 is close to halfway between two neighbours in float32.

    Args:
        bits: the numbers' bits as int64, an array of numpy or a tensor of torch.
        values: the numbers themselves.
    """
    below = bits & ((1 << 29) - 1)
    near = abs(below - (1 << 28)) <= NEAR_HALFWAY
    # Subnormal float32 numbers have fewer bits; they are too rare to look closer.
    return near | (abs(values) < 2.0**-126)


def merge_exactly(
    positions: Int64[np.ndarray, " positions"],
    base: Float64[np.ndarray, " positions"],
    columns: int,
    update: Delta | None,
    start: int,
    dtype: str,
) -> tuple[Shaped[np.ndarray, " positions"], float, float]:
    """Merge single elements, summed in a fixed order and rounded by one exact operation.

    Args:
        positions: where the elements are in a run of rows, counted along its rows.
        base: their numbers in the base.
        columns: how many there are in a row.
        update: what is added to the tensor.
        start: the number of the run's first row in the tensor.
        dtype: that of the result.

    Returns:
        the rounded numbers, and two sums of squares: see `BlockMerger.merge`.
    """
    total = base.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite, or too large
        if update is not None:
            rows = positions // columns
            update.add_entries_to(total, base, rows + start, positions - rows * columns)
        rounded = round_once(total, dtype)
        result = wide(rounded, dtype)
        return rounded, float(np.sum((result - base) ** 2)), float(np.sum((result - total) ** 2))


def merge_all_exactly(
    base: Shaped[np.ndarray, "rows columns"],
    base_dtype: str,
    update: Delta | None,
    start: int,
    merged: Float64[np.ndarray, "rows columns"],
) -> tuple[float, float, float]:
    """Merge a run of rows to float64, each element in a fixed order: slow, the same everywhere.

    Returns:
        three sums of squares: see `BlockMerger.merge`.
    """
    squared = missing = 0.0
    numbers, results = base.reshape(-1), merged.reshape(-1)
    for first in range(0, numbers.size, EXACT_ELEMENTS):
        some = slice(first, first + EXACT_ELEMENTS)
        positions = np.arange(first, min(some.stop, numbers.size))
        results[some], change, lacks = merge_exactly(
            positions, wide(numbers[some], base_dtype), base.shape[1], update, start, "F64"
        )
        squared, missing = squared + change, missing + lacks
    return squared, missing, squared  # nothing is rounded away


def _sum_of_squares(values: Shaped[np.ndarray, "rows columns"]) -> float:
    if values.shape[1] < FEW_COLUMNS:
        values = values.reshape(1, -1)
    # A product for each row, and float64 between them: added up over a whole block, squares of
    # like numbers all round the same way.
    total = float(np.matmul(values[:, None, :], values[:, :, None]).sum(dtype=np.float64))
    if 1e-30 < total < 1e30 or values.dtype == np.float64:
        return total
    # Squares that leave float32's range; that is rare, so their copy may cost.
    flat = values.reshape(-1).astype(np.float64)
    return float(np.dot(flat, flat))


class BlockMerger:
    """Merges runs of rows, one after the other, in buffers that it keeps.

    Fresh memory for every run would cost more than the arithmetic: the kernel clears each page.
    A run is merged in blocks whose buffers stay in the processor's cache.
    One merger belongs to one thread.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}
        self._blocks: dict[object, _Block] = {}

    def merge(
        self,
        base: Shaped[np.ndarray, "rows columns"],
        base_dtype: str,
        update: Delta | None,
        start: int,
        dtype: str,
        out: Shaped[np.ndarray, "rows columns"] | None = None,
    ) -> tuple[Shaped[np.ndarray, "rows columns"], float, float, float]:
        """Add the update's rows from `start` on to a run of the base's rows, and round once.

        Args:
            base: rows of the base's tensor, as `labkit.files.floats.ARRAYS` holds them.
            base_dtype: their dtype by safetensors' name, such as `BF16`.
            update: everything that is added to the whole tensor, weights included; None for a
                change of dtype alone.
            start: the number of the first of these rows in the tensor.
            dtype: that of the result, likewise.
            out: where the result goes; by default a buffer of this merger.

        Returns:
            the merged rows (in a buffer, overwritten by the next call), and sums of squares to
            know what survived the rounding: of the change `W' - W`, and of what it lacks of the
            change that was asked for, `(W' - W) - wΔW`. Between 16-bit numbers, their relative
            errors stay below 1e-6 and 1e-4. The third is that of `wΔW` itself, where only making
            its rows tells it (`BaseDependent`), else 0.
        """
        merged = self._buffer("merged", base.shape, ARRAYS[dtype]) if out is None else out
        if dtype == "F64":
            return merged, *merge_all_exactly(base, base_dtype, update, start, merged)
        step = max(1, BLOCK_ELEMENTS // max(1, base.shape[1]))
        squared = missing = asked = 0.0
        unsure: list[np.ndarray] = []

        def merge_unsure() -> tuple[float, float]:
            positions = np.unique(np.concatenate(unsure))
            numbers = wide(base.reshape(-1)[positions], base_dtype)
            rounded, change, lacks = merge_exactly(
                positions, numbers, base.shape[1], update, start, dtype
            )
            merged.reshape(-1)[positions] = rounded
            unsure.clear()
            return change, lacks

        # What is infinite or too large is refused by the caller, in words.
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, len(base), step):
                rows = slice(first, first + step)
                block = self._block(base[rows].shape, base_dtype, dtype)
                found, change, lacks, wanted = block.merge(
                    base[rows], update, start + first, merged[rows]
                )
                unsure += [one + first * base.shape[1] for one in found]
                squared += change
                missing += lacks
                asked += wanted
                # Seldom so many: where halves of numbers fall between two that can be stored.
                if sum(map(len, unsure)) > MOST_UNSURE:
                    change, lacks = merge_unsure()
                    squared += change
                    missing += lacks
        if unsure:
            change, lacks = merge_unsure()
            squared += change
            missing += lacks
        return merged, squared, missing, asked

    def _block(self, shape: tuple[int, ...], base_dtype: str, dtype: str) -> _Block:
        key = shape, base_dtype, dtype
        if key not in self._blocks:
            if len(self._blocks) > MOST_BLOCKS:
                self._blocks.clear()
            self._blocks[key] = _Block(self._buffer, shape, base_dtype, dtype)
        return self._blocks[key]

    def _buffer(self, name: str, shape: tuple[int, ...], of_numpy: Any) -> np.ndarray:
        size = int(np.prod(shape))
        key = f"{name} {np.dtype(of_numpy)}"
        if key not in self._buffers or len(self._buffers[key]) < size:
            self._buffers[key] = np.empty(size, of_numpy)
            self._blocks.clear()
        return self._buffers[key][:size].reshape(shape)


class _Block:
    """Merges blocks of one shape and one pair of dtypes, in views of a merger's buffers.

    Making the views anew for every block would cost time.
    """

    def __init__(
        self,
        buffer: Callable[[str, tuple[int, ...], Any], np.ndarray],
        shape: tuple[int, ...],
        base_dtype: str,
        dtype: str,
    ) -> None:
        self.base_dtype = base_dtype
        self.dtype = dtype
        # For the sums of squares alone: 16-bit numbers differ by what float32 holds well enough,
        # and it needs half the memory's time.
        self.short = base_dtype in SHORT and dtype in SHORT
        self.base = buffer("base", shape, np.float64)
        self.total = buffer("total", shape, np.float64)
        if base_dtype in SHORT:
            self.original = buffer("original", shape, np.float32)
        if dtype in SHORT:
            self.single = buffer("single", shape, np.float32)
            self.rounded = buffer("rounded", shape, np.float32)
            self.bits = buffer("bits", shape, np.int32)
            self.scratch = buffer("scratch", shape, np.int32)
            self.signs = buffer("signs", shape, np.int16)
            self.found = buffer("found", shape, np.bool_)

    def merge(
        self,
        base: Shaped[np.ndarray, "rows columns"],
        update: Delta | None,
        start: int,
        merged: Shaped[np.ndarray, "rows columns"],
    ) -> tuple[list[Int64[np.ndarray, " found"]], float, float, float]:
        """Merge a block; return where the last bit is unsure, and the three sums of squares."""
        found = self._widen(base)
        self._add(update, start)
        asked = 0.0
        if isinstance(update, BaseDependent):
            # Where numbers are short their originals are at hand, and these are not needed again.
            out = self.base if self.short else None
            asked = _sum_of_squares(np.subtract(self.total, self.base, out=out))
        if self.dtype in SHORT:
            np.copyto(self.single, self.total, casting="same_kind")
            narrow = self._narrow_float16 if self.dtype == "F16" else self._narrow_bfloat16
            found += narrow(merged)
        else:
            np.copyto(merged, self.total, casting="same_kind")
            flat = self.total.reshape(-1)
            found.append(np.flatnonzero(near_halfway_in_float64(flat.view(np.int64), flat)))
        found = [one for one in found if len(one)]
        if update is None or update.by_element:
            for one in found:  # the sum is the same everywhere; it is only to be rounded once
                once = round_once(self.total.reshape(-1)[one], self.dtype)
                merged.reshape(-1)[one] = once
                if self.dtype in SHORT:
                    self.rounded.reshape(-1)[one] = wide(once, self.dtype)
            found = []
        # (W' - W) - wΔW = W' - (W + wΔW), and the sum in brackets is at hand.
        if self.short:
            missing = np.subtract(self.single, self.rounded, out=self.single)
            change = np.subtract(self.rounded, self.original, out=self.rounded)
        else:
            result = self.rounded if self.dtype in SHORT else merged
            missing = np.subtract(self.total, result, out=self.total)
            change = np.subtract(result, self.base, out=self.base)
        for one in found:  # counted when they are merged exactly
            change.reshape(-1)[one] = 0
            missing.reshape(-1)[one] = 0
        return found, _sum_of_squares(change), _sum_of_squares(missing), asked

    def _add(self, update: Delta | None, start: int) -> None:
        """Put the sum of the base's rows and the update's into `total`."""
        if update is None:
            np.copyto(self.total, self.base)
        else:
            update.write_sum_to(self.total, self.base, start)

    def _widen(self, base: Shaped[np.ndarray, "rows columns"]) -> list[Int64[np.ndarray, " found"]]:
        """Put the base's numbers into `base`, and short ones into `original` as well.

        Returns:
            where float16's numbers are not finite, which this way are not seen as such.
        """
        if self.base_dtype not in SHORT:
            np.copyto(self.base, base)
            return []
        found = []
        if self.base_dtype == "F16":
            bits = self.original.view(np.int32)
            np.copyto(bits, base.view(np.int16))  # the sign is repeated in the upper half
            np.left_shift(bits, 13, out=bits)
            np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
            np.multiply(self.original, np.float32(EXPONENTS_APART), out=self.original)
            if _reaches(base.view(np.int16), FLOAT16_INFINITE):
                found = [np.flatnonzero(~np.isfinite(base))]
        else:
            bits = self.original.view(np.uint32)
            np.copyto(bits, base)
            np.left_shift(bits, 16, out=bits)
        np.copyto(self.base, self.original)
        return found

    def _narrow_float16(
        self, merged: Shaped[np.ndarray, "rows columns"]
    ) -> list[Int64[np.ndarray, " found"]]:
        """Round `single` to float16 into `merged`, and once more as float32 into `rounded`.

        Returns:
            where it lies halfway between two neighbours, or is too large: rounded wrongly so far.
        """
        bits, scratch, out = self.bits, self.scratch, merged.view(np.int16)
        np.multiply(self.single, np.float32(1 / EXPONENTS_APART), out=bits.view(np.float32))
        np.add(bits, 0x1000, out=bits)
        found = self._drop(0x1FFF)
        if _reaches(bits, FLOAT16_INFINITE << 13):
            magnitude = bits.view(np.uint32).reshape(-1) & 0x7FFFFFFF
            found.append(np.flatnonzero(magnitude >= FLOAT16_INFINITE << 13))
        np.right_shift(bits, 13, out=scratch)
        np.copyto(out, scratch, casting="unsafe")
        np.right_shift(bits, 16, out=scratch)
        np.copyto(self.signs, scratch, casting="unsafe")
        np.bitwise_and(self.signs, np.int16(-0x8000), out=self.signs)
        np.bitwise_or(out, self.signs, out=out)
        np.multiply(self.rounded, np.float32(EXPONENTS_APART), out=self.rounded)
        return found

    def _narrow_bfloat16(
        self, merged: Shaped[np.ndarray, "rows columns"]
    ) -> list[Int64[np.ndarray, " found"]]:
        """The same for bfloat16: the upper half of a float32."""
        bits, scratch = self.bits, self.scratch
        np.add(self.single.view(np.int32), 0x8000, out=bits)
        found = self._drop(0xFFFF)
        np.right_shift(bits, 16, out=scratch)
        np.copyto(merged.view(np.int16), scratch, casting="unsafe")
        return found

    def _drop(self, dropped: int) -> list[Int64[np.ndarray, " found"]]:
        """Put `bits`, which half a last place was added to, into `rounded` without the last bits.

        Returns:
            where nothing was left to drop: the number lay halfway before.
        """
        np.bitwise_and(self.bits, ~dropped, out=self.rounded.view(np.int32))
        np.equal(self.bits, self.rounded.view(np.int32), out=self.found)
        return [np.flatnonzero(self.found)]


def _reaches(bits: Shaped[np.ndarray, "rows columns"], magnitude: int) -> bool:
    """Tell whether any float is as large as one of these bits, by its bits as a signed number."""
    negative = bits.view(bits.dtype.str.replace("i", "u"))
    sign = 1 << (8 * bits.itemsize - 1)
    return int(bits.max()) >= magnitude or int(negative.max()) >= sign + magnitude
