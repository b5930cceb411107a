"""Merges a block of rows: float64 in between, rounded once, the same bytes on every device.

Two things could make the last bit differ between devices, and both are settled here.

1. Rounding twice. Torch turns a float64 into a 16-bit number by way of float32. Where the float32
   lies exactly halfway between two 16-bit numbers, the second rounding can go the wrong way
   (Boldo and Melquiond, "When double rounding is odd", IMACS 2005).
2. Matrix products. Their last bits depend on the library's order of summation. That matters only
   for a sum so close to halfway between two output numbers that its last bits decide.

Both concern the same few elements, about one in 65,536: those whose float32 (for a float32 output:
whose float64) lies halfway, or next to it. They are found by their bit pattern, summed again in a
fixed order, and rounded with one exact operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from labkit.delta import Delta

SIGNIFICAND_BITS = {
    torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53
}  # fmt: skip
"""Bits of precision, the hidden one included."""
SMALLEST_EXPONENT = {
    torch.bfloat16: -126, torch.float16: -14, torch.float32: -126, torch.float64: -1022
}  # fmt: skip
"""Exponent of the smallest normal number: below it, numbers are evenly spaced."""

BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements merged at a time, by the kind of device: few enough for a processor's cache, and enough
that the work outweighs Python's."""

MOST_SPACES = 64
"""Shapes of blocks whose views are kept: a model's matrices have few."""

NEAR_HALFWAY = 1 << 12
"""For float32 outputs: how near to halfway, in units of float64's last place, is looked at again.
Products of any device agree far closer than that."""


def round_once(
    values: Float64[Tensor, " entries"], dtype: torch.dtype
) -> Float[Tensor, " entries"]:
    """Round float64 to a shorter dtype once, to the nearest, ties to even (IEEE 754)."""
    # values = mantissa · 2^exponent with 0.5 ≤ |mantissa| < 1, so the leading bit is exponent - 1.
    _, exponent = torch.frexp(values)
    exponent = torch.clamp(exponent - 1, min=SMALLEST_EXPONENT[dtype])
    last_place = exponent - SIGNIFICAND_BITS[dtype] + 1
    # Scaling by a power of two is exact, and torch.round rounds ties to even.
    rounded = torch.round(values * _power_of_two(-last_place)) * _power_of_two(last_place)
    return torch.where(torch.isfinite(values), rounded, values).to(dtype)


def _power_of_two(exponent: Int32[Tensor, " entries"]) -> Float64[Tensor, " entries"]:
    # Written as bits: torch.ldexp goes by way of float32, whose range ends at 2¹²⁷.
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _quickest(values: Tensor) -> Any:
    """The same numbers for numpy where it can have them, which finds some in a tenth of the time.

    For the rest as they are: a GPU's stay with torch.
    """
    return values.numpy() if values.is_cpu else values


def _positions(mask: Any) -> Any:
    """Find the few places where a long mask is true; a numpy array's or a tensor's."""
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero().view(-1)


def _near_halfway_in_float64(
    values: Float64[Tensor, " entries"], dtype: torch.dtype
) -> Int64[Tensor, " found"]:
    """Find float64 numbers close to halfway between two neighbours in float32."""
    if dtype == torch.float64:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    below = values.view(torch.int64) & ((1 << 29) - 1)
    near = (below - (1 << 28)).abs() <= NEAR_HALFWAY
    # Subnormal float32 numbers have fewer bits; they are too rare to look closer.
    small = values.abs() < 2.0**-126
    return torch.as_tensor(_positions(_quickest(near | small)))


def _sum_of_squares(
    values: Float[Tensor, "rows columns"], scratch: Float[Tensor, "rows columns"]
) -> float:
    # Torch's sum adds in a tree; its dot product, one after the other, would be off by 1e-5.
    total = float(torch.mul(values, values, out=scratch).sum())
    if 1e-30 < total < 1e30 or values.dtype == torch.float64:
        return total
    # Squares that leave float32's range; that is rare, so their copy may cost.
    return float(values.double().square().sum())


def _settle(
    found: Int64[Tensor, " found"],
    base: Float[Tensor, "rows columns"],
    update: Delta,
    start: int,
    merged: Float[Tensor, "rows columns"],
) -> tuple[float, float]:
    """Sum single elements in a fixed order and round them exactly; return their sums of squares."""
    columns = base.shape[1]
    rows = found.div(columns, rounding_mode="floor")
    original = base.reshape(-1)[found].double()
    exact = original.clone()
    update.add_entries_to(exact, original, rows + start, found - rows * columns)
    rounded = round_once(exact, merged.dtype)
    merged.view(-1)[found] = rounded
    rounded = rounded.double()
    return float((rounded - original).square().sum()), float((rounded - exact).square().sum())


class BlockMerger:
    """Merges runs of rows, one after the other, in buffers that it keeps.

    Fresh memory for every run would cost more than the arithmetic: the kernel clears each page.
    A run is merged in blocks whose buffers stay in the processor's cache.
    One merger belongs to one thread.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.block_elements = BLOCK_ELEMENTS[device.type]
        self._buffers: dict[str, Tensor] = {}
        self._spaces: dict[object, _Space] = {}

    def merge(
        self,
        base: Float[Tensor, "rows columns"],
        update: Delta,
        start: int,
        dtype: torch.dtype,
        out: Float[Tensor, "rows columns"] | None = None,
    ) -> tuple[Float[Tensor, "rows columns"], float, float]:
        """Add the update's rows from `start` on to a run of the base's rows, and round once.

        Args:
            base: rows of the base's tensor, on this merger's device.
            update: everything that is added to the whole tensor, weights included, likewise.
            start: the number of the first of these rows in the tensor.
            dtype: of the result.
            out: where the result goes, on the same device; by default a buffer of this merger.

        Returns:
            the merged rows (in a buffer, overwritten by the next call), and two sums of squares
            to know what survived the rounding: of the change `W' - W`, and of what it lacks of the
            change that was asked for, `(W' - W) - wΔW`. Between 16-bit numbers, their relative
            errors stay below 1e-6 and 1e-4.
        """
        merged = self._buffer("merged", base.shape, dtype) if out is None else out
        step = max(1, self.block_elements // max(1, base.shape[1]))
        squared = missing = 0.0
        unsure = []
        for first in range(0, len(base), step):
            rows = slice(first, first + step)
            found, change, lacks = self._block(base[rows], update, start + first, merged[rows])
            unsure += [one + first * base.shape[1] for one in found]
            squared += change
            missing += lacks
        if unsure:
            change, lacks = _settle(torch.cat(unsure), base, update, start, merged)
            squared += change
            missing += lacks
        return merged, squared, missing

    def _block(
        self,
        base: Float[Tensor, "rows columns"],
        update: Delta,
        start: int,
        merged: Float[Tensor, "rows columns"],
    ) -> tuple[list[Int64[Tensor, " found"]], float, float]:
        """Merge a block; return where the last bit is unsure, and the two sums of squares."""
        short = base.element_size() == 2 and merged.element_size() == 2
        space = self._space(base.shape, merged.dtype, short)
        space.original.copy_(base)
        space.total.copy_(space.original)
        update.add_rows_to(space.total, start, base)
        if merged.element_size() == 2:
            space.single.copy_(space.total)
            merged.copy_(space.single)
            found = space.halfway_in_float32(merged)
        else:
            merged.copy_(space.total)
            found = [_near_halfway_in_float64(space.total.view(-1), merged.dtype)]
        found = [one for one in found if len(one)]
        space.change.copy_(merged)
        # (W' - W) - wΔW = W' - (W + wΔW), and the sum in brackets is at hand.
        missing = (space.single if short else space.total).sub_(space.change)
        change = space.change.sub_(space.original)
        for one in found:  # counted when it is settled
            change.view(-1)[one] = 0
            missing.view(-1)[one] = 0
        scratch = space.original
        return found, _sum_of_squares(change, scratch), _sum_of_squares(missing, scratch)

    def _space(self, shape: torch.Size, dtype: torch.dtype, short: bool) -> _Space:
        key = (tuple(shape), dtype, short)
        if key not in self._spaces:
            if len(self._spaces) > MOST_SPACES:
                self._spaces.clear()
            self._spaces[key] = _Space(self._buffer, shape, dtype, short)
        return self._spaces[key]

    def _buffer(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        size = shape.numel()
        key = f"{name} {dtype}"
        if key not in self._buffers or len(self._buffers[key]) < size:
            self._buffers[key] = torch.empty(size, dtype=dtype, device=self.device)
            self._spaces.clear()
        return self._buffers[key][:size].view(shape)


class _Space:
    """A merger's buffers, seen in one block's shape: making the views anew would cost time."""

    def __init__(
        self,
        buffer: Callable[[str, torch.Size, torch.dtype], Tensor],
        shape: torch.Size,
        dtype: torch.dtype,
        short: bool,
    ) -> None:
        # For the sums of squares alone: 16-bit numbers differ by what float32 holds well enough,
        # and it needs half the memory's time.
        wide = torch.float32 if short else torch.float64
        self.original = buffer("original", shape, wide)
        self.total = buffer("total", shape, torch.float64)
        self.change = buffer("change", shape, wide)
        if dtype.itemsize != 2:
            return
        self.single = buffer("single", shape, torch.float32)
        flat = torch.Size([shape.numel()])
        self._values = _quickest(self.single.view(-1))
        self._value_bits = _quickest(self.single.view(-1).view(torch.int32))
        self._bits = _quickest(buffer("bits", flat, torch.int32))
        self._found = _quickest(buffer("found", flat, torch.bool))
        self._magnitude = _quickest(buffer("magnitude", flat, torch.int16))

    def halfway_in_float32(
        self, short: Float[Tensor, "rows columns"]
    ) -> list[Int64[Tensor, " found"]]:
        """Find where `single` lies halfway between two neighbours of a 16-bit dtype."""
        library: Any = np if isinstance(self._values, np.ndarray) else torch
        dropped = 24 - SIGNIFICAND_BITS[short.dtype]
        library.bitwise_and(self._value_bits, (1 << dropped) - 1, out=self._bits)
        equal = np.equal if library is np else torch.eq
        equal(self._bits, 1 << (dropped - 1), out=self._found)
        halfway = _positions(self._found)
        if short.dtype == torch.float16:
            # Below its normal numbers the last place stays 2⁻²⁴, whatever the exponent.
            magnitude = _quickest(short.view(-1).view(torch.int16))
            library.bitwise_and(magnitude, 0x7FFF, out=self._magnitude)
            library.less_equal(self._magnitude, 0x0400, out=self._found)
            small = _positions(self._found)
            in_last_places = abs(self._values[small]) * 2.0**24
            found = [halfway, small[in_last_places % 1 == 0.5]]
        else:
            found = [halfway]  # bfloat16 and float32 share their exponents, subnormal numbers too
        return [torch.as_tensor(one) for one in found]
