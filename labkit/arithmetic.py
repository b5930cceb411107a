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

import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64
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


def _positions(mask: Bool[Tensor, " entries"]) -> Int64[Tensor, " found"]:
    """Find the few places where a long mask is true, eight at a time: `nonzero` is slow."""
    whole = len(mask) // 8 * 8
    words = mask[:whole].view(torch.int64).nonzero()
    near = (words * 8 + torch.arange(8, device=mask.device)).view(-1)
    rest = torch.arange(whole, len(mask), device=mask.device)
    candidates = torch.cat([near, rest])
    return candidates[mask[candidates]]


def _near_halfway_in_float64(values: Float64[Tensor, " entries"]) -> Int64[Tensor, " found"]:
    """Find float64 numbers close to halfway between two neighbours in float32."""
    below = values.view(torch.int64) & ((1 << 29) - 1)
    near = (below - (1 << 28)).abs() <= NEAR_HALFWAY
    # Subnormal float32 numbers have fewer bits; they are too rare to look closer.
    small = values.abs() < 2.0**-126
    return _positions(near | small)


class BlockMerger:
    """Merges blocks of rows, one after the other, in buffers that it keeps.

    Fresh memory for every block would cost more than the arithmetic: the kernel clears each page.
    One merger belongs to one thread.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[str, Tensor] = {}

    def merge(
        self,
        base: Float[Tensor, "rows columns"],
        update: Delta,
        start: int,
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "rows columns"], float, float]:
        """Add the update's rows from `start` on to a block of the base's rows, and round once.

        Args:
            base: the block of the base's tensor, on this merger's device.
            update: everything that is added to the whole tensor, weights included, likewise.
            start: the number of the block's first row in the tensor.
            dtype: of the result.

        Returns:
            the merged block (overwritten by the next call), and two sums of squares in float64, to
            know what survived the rounding: of the change `W' - W`, and of what it lacks of the
            change that was asked for, `(W' - W) - wΔW`.
        """
        total = self._buffer("total", base.shape, torch.float64)
        total.copy_(base)
        update.add_rows_to(total, start, base)
        merged = self._round(total.view(-1), base, update, start, dtype).view(base.shape)
        change = self._buffer("change", base.shape, torch.float64).copy_(merged)
        # (W' - W) - wΔW = W' - (W + wΔW), and the sum in brackets is at hand.
        missing = total.sub_(change).view(-1)
        # Subtracting a 16-bit tensor itself would make a float64 copy of it in fresh memory.
        original = self._buffer("original", base.shape, torch.float64).copy_(base)
        change = change.sub_(original).view(-1)
        return merged, float(torch.dot(change, change)), float(torch.dot(missing, missing))

    def _round(
        self,
        total: Float64[Tensor, " entries"],
        base: Float[Tensor, "rows columns"],
        update: Delta,
        start: int,
        dtype: torch.dtype,
    ) -> Float[Tensor, " entries"]:
        if dtype == torch.float64:
            return self._buffer("merged", total.shape, dtype).copy_(total)
        merged = self._buffer("merged", total.shape, dtype)
        if dtype == torch.float32:
            merged.copy_(total)
            found = _near_halfway_in_float64(total)
        else:
            single = self._buffer("single", total.shape, torch.float32).copy_(total)
            merged.copy_(single)
            found = self._halfway_in_float32(single, merged)
        if len(found):
            columns = base.shape[1]
            rows = found.div(columns, rounding_mode="floor")
            original = base.reshape(-1)[found].double()
            exact = original.clone()
            update.add_entries_to(exact, original, rows + start, found - rows * columns)
            merged[found] = round_once(exact, dtype)
        return merged

    def _halfway_in_float32(
        self, single: Float[Tensor, " entries"], short: Float[Tensor, " entries"]
    ) -> Int64[Tensor, " found"]:
        """Find float32 numbers that lie halfway between two neighbours of a 16-bit dtype."""
        dropped = 24 - SIGNIFICAND_BITS[short.dtype]
        bits = self._buffer("bits", single.shape, torch.int32)
        found = self._buffer("found", single.shape, torch.bool)
        torch.bitwise_and(single.view(torch.int32), (1 << dropped) - 1, out=bits)
        halfway = _positions(torch.eq(bits, 1 << (dropped - 1), out=found))
        if short.dtype != torch.float16:
            return halfway  # bfloat16 and float32 share their exponents, subnormal numbers too
        # Below float16's normal numbers the last place stays 2⁻²⁴, whatever the exponent.
        magnitude = self._buffer("magnitude", short.shape, torch.int16)
        torch.bitwise_and(short.view(torch.int16), 0x7FFF, out=magnitude)
        small = _positions(torch.le(magnitude, 0x0400, out=found))
        in_last_places = single[small].abs() * 2.0**24
        return torch.cat([halfway, small[in_last_places.frac() == 0.5]])

    def _buffer(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        size = shape.numel()
        key = f"{name} {dtype}"
        if key not in self._buffers or len(self._buffers[key]) < size:
            self._buffers[key] = torch.empty(size, dtype=dtype, device=self.device)
        return self._buffers[key][:size].view(shape)
