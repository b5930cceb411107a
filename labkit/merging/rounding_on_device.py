"""The arithmetic of `labkit.merging.rounding` on a GPU, by torch: the same bytes.

A sum is rounded to 16 bits by way of an odd float32, from where the second rounding cannot go
the wrong way (Boldo and Melquiond, "When double rounding is odd", IMACS 2005). The few elements
where the last bits of a product decide are left to the processor and numpy, by the same function
that merges them there; and so are all where the output is float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from labkit.deltas.arrays import as_torch
from labkit.deltas.delta import BaseDependent, Delta
from labkit.files.floats import SIGNIFICAND_BITS, wide
from labkit.files.tensor_file import FLOATS
from labkit.merging.rounding import merge_all_exactly, merge_exactly, near_halfway_in_float64

RUN_ELEMENTS = 1 << 22
"""Elements that are merged at a time: enough to keep a GPU busy, 32 MiB for each array."""
MERGERS = 4
"""How many work at once at most: some hand their numbers over while another one calculates."""


class DeviceMerger:
    """Merges runs of rows on a device; see `rounding.BlockMerger`."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._moved: tuple[Delta, Delta] | None = None

    def merge(
        self,
        base: np.ndarray,
        base_dtype: str,
        update: Delta | None,
        start: int,
        dtype: str,
        out: np.ndarray,
    ) -> tuple[np.ndarray, float, float, float]:
        """As `BlockMerger.merge`; what is given and what comes back are numpy's arrays."""
        if dtype == "F64":
            return out, *merge_all_exactly(base, base_dtype, update, start, out)
        step = max(1, RUN_ELEMENTS // max(1, base.shape[1]))
        sums = [0.0, 0.0, 0.0]
        for first in range(0, len(base), step):
            rows = slice(first, first + step)
            some = self._merge(base[rows], base_dtype, update, start + first, dtype, out[rows])
            sums = [one + more for one, more in zip(sums, some, strict=True)]
        return out, sums[0], sums[1], sums[2]

    def _merge(
        self,
        base: np.ndarray,
        base_dtype: str,
        update: Delta | None,
        start: int,
        dtype: str,
        out: np.ndarray,
    ) -> tuple[float, float, float]:
        """Merge some rows; give the three sums of squares."""
        original = total = as_torch(base, base_dtype).to(self.device).double()
        if update is not None:
            total = torch.empty_like(original)
            self._on_device(update).write_sum_to(total, original, start)
        of_torch = getattr(torch, FLOATS[dtype])
        merged = (_to_odd(total) if of_torch.itemsize == 2 else total).to(of_torch)
        # What is not finite is left to the processor too, whatever a device makes of it.
        marks = ~merged.isfinite()
        if update is not None and not update.by_element:
            marks |= _unsure(total, merged)
        unsure = marks.view(-1).nonzero().view(-1)
        as_torch(out, dtype).copy_(merged)
        result = merged.double()
        change, lacks = result - original, result - total
        for one in (change, lacks):  # counted when they are merged exactly
            one.view(-1)[unsure] = 0
        squared, missing = float(change.square().sum()), float(lacks.square().sum())
        positions = unsure.cpu().numpy()
        if len(positions):
            numbers = wide(base.reshape(-1)[positions], base_dtype)
            rounded, more_squared, more_missing = merge_exactly(
                positions, numbers, base.shape[1], update, start, dtype
            )
            out.reshape(-1)[positions] = rounded
            squared, missing = squared + more_squared, missing + more_missing
        asked = 0.0
        if isinstance(update, BaseDependent):
            asked = float((total - original).square().sum())
        return squared, missing, asked

    def _on_device(self, update: Delta) -> Delta:
        """The update with its numbers on the device; all pieces of a tensor have the same one."""
        if self._moved is None or self._moved[0] is not update:
            self._moved = update, update.to(self.device)
        return self._moved[1]


def _to_odd(total: Float64[Tensor, "rows columns"]) -> Float32[Tensor, "rows columns"]:
    """Round to float32, to the one of two neighbours whose last bit is 1 where it is not exact."""
    single = total.float()
    away = single.double().abs() > total.abs()
    even = single.view(torch.int32) & 1 == 0
    # Of magnitudes, the next smaller and the next larger one have the next bits.
    step = torch.where(away, -1, 1) * (even & (single != total))
    return (single.view(torch.int32) + step.int()).view(torch.float32)


def _unsure(total: Float64[Tensor, "rows columns"], merged: Float[Tensor, "rows columns"]) -> Any:
    """Tell where a sum's last bits can decide the result's: a mark for each element."""
    if merged.dtype == torch.float32:
        return near_halfway_in_float64(total.view(torch.int64), total)
    single = total.float()
    dropped = 24 - SIGNIFICAND_BITS["F16" if merged.dtype == torch.float16 else "BF16"]
    below = single.view(torch.int32) & ((1 << dropped) - 1)
    halfway = below == 1 << (dropped - 1)
    if merged.dtype == torch.bfloat16:
        return halfway  # bfloat16 and float32 share their exponents, subnormal numbers too
    # Below float16's normal numbers the last place stays 2⁻²⁴, whatever the exponent.
    small = merged.abs() <= 2.0**-14
    return halfway | (small & ((single.abs() * 2.0**24) % 1 == 0.5))
