"""The floating-point numbers of files, for numpy: exact both ways, and rounded once.

Dtypes go by safetensors' names: `F64`, `F32`, `F16`, `BF16`. numpy has no bfloat16: such numbers
stand as their bits, in uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

ARRAYS: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16
}  # fmt: skip
"""The dtype of numpy's arrays that hold a file's numbers."""
SIGNIFICAND_BITS = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}
"""Bits of precision, the hidden one included."""
SMALLEST_EXPONENT = {"BF16": -126, "F16": -14, "F32": -126, "F64": -1022}
"""Exponent of the smallest normal number: below it, numbers are evenly spaced."""
LARGEST = {
    "BF16": float.fromhex("0x1.fep127"),
    "F16": 65504.0,
    "F32": float.fromhex("0x1.fffffep127"),
    "F64": float.fromhex("0x1.fffffffffffffp1023"),
}
"""The largest finite number."""


def wide(stored: Shaped[np.ndarray, "*shape"], code: str) -> Float64[np.ndarray, "*shape"]:
    """The same numbers in float64, exactly."""
    numbers = (stored.astype(np.uint32) << 16).view(np.float32) if code == "BF16" else stored
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        return numbers.astype(np.float64)


def round_once(values: Float64[np.ndarray, "*shape"], code: str) -> Shaped[np.ndarray, "*shape"]:
    """Round float64 to a file's dtype once, to the nearest, ties to even (IEEE 754).

    Args:
        values: any numbers; what is too large becomes infinite.
        code: of the result.
    """
    if code == "F64":
        return values
    # values = mantissa · 2^exponent with 0.5 ≤ |mantissa| < 1, so the leading bit is exponent - 1.
    _, exponent = np.frexp(values)
    last_place = np.maximum(exponent - 1, SMALLEST_EXPONENT[code]) - SIGNIFICAND_BITS[code] + 1
    # Scaling by a power of two is exact, and rint rounds ties to even.
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(values, -last_place)), last_place)
        rounded = np.where(np.isfinite(values), rounded, values)
        if code == "BF16":
            bits = rounded.astype(np.float32).view(np.uint32)
            return (bits >> 16).astype(np.uint16)
        return rounded.astype(ARRAYS[code])
