"""The arithmetic of `labkit.merging.rounding` on a GPU, by torch: the same bytes.

The few elements whose last bit is unsure are settled by the processor, in numpy, as they are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from labkit.deltas.delta import Delta
from labkit.files.floats import ARRAYS, SIGNIFICAND_BITS, wide
from labkit.files.tensor_file import FLOATS
from labkit.merging.rounding import near_halfway_in_float64, settle


class DeviceMerger:
    """Merges runs of rows on a device, each as one block; see `rounding.BlockMerger`."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._moved: tuple[Delta | None, Delta | None] = (None, None)

    def merge(
        self,
        base: np.ndarray,
        stored: str,
        update: Delta | None,
        start: int,
        code: str,
        out: np.ndarray,
    ) -> tuple[np.ndarray, float, float]:
        """As `BlockMerger.merge`: all that is given is numpy's."""
        there = self._on_device(update)
        original = _tensor(base, stored).to(self.device).double()
        total = original.clone()
        if there is not None:
            there.write_sum_to(total, original, start)
        dtype = getattr(torch, FLOATS[code])
        merged = (total.float() if dtype.itemsize == 2 else total).to(dtype)
        # What is not finite is left to the processor too, whatever a device makes of it.
        unsure = (_unsure(total, merged) | ~merged.isfinite()).view(-1).nonzero().view(-1)
        _tensor(out, code).copy_(merged)
        result = merged.double()
        change, lacks = result - original, result - total
        for one in (change, lacks):  # counted when it is settled
            one.view(-1)[unsure] = 0
        squared, missing = float(change.square().sum()), float(lacks.square().sum())
        found = unsure.cpu().numpy()
        if len(found):
            numbers = wide(base.reshape(-1)[found], stored)
            rounded, *settled = settle(found, numbers, base.shape[1], update, start, code)
            out.reshape(-1)[found] = rounded
            squared, missing = squared + settled[0], missing + settled[1]
        return out, squared, missing

    def _on_device(self, update: Delta | None) -> Delta | None:
        """The update's numbers on the device; a tensor's pieces come one after the other."""
        if update is not self._moved[0]:
            self._moved = update, update.to(self.device) if update is not None else None
        return self._moved[1]


def _unsure(total: Float64[Tensor, "rows columns"], merged: Float[Tensor, "rows columns"]) -> Any:
    """Where the last bit is unsure."""
    if merged.dtype == torch.float64:
        return torch.zeros(merged.shape, dtype=torch.bool, device=merged.device)
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


def _tensor(values: np.ndarray, code: str) -> Tensor:
    """Numpy's array as torch's, of the same memory."""
    bits = torch.from_numpy(values.view({"BF16": np.int16}.get(code, ARRAYS[code])))
    return bits.view(getattr(torch, FLOATS[code]))
