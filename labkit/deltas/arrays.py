"""What numpy and torch call by different names, for code that calculates with either.

Methods of merging look through whole tensors, and make their change of them, by the same code on a
processor (numpy's arrays) and on another device (torch's tensors): operations of IEEE 754 and of
whole numbers, each by itself, give the same bits on both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from labkit.files.tensor_file import FLOATS

if TYPE_CHECKING:
    from torch import Tensor

Array = Any
"""An array of numpy; or, on another device, a tensor of torch, which takes the same operations."""


def of_numpy(values: Array) -> TypeGuard[np.ndarray]:
    """Whether it is numpy's array, and no tensor of torch."""
    return isinstance(values, np.ndarray)


def on_device(device: str, values: Array) -> Tensor:
    """Numbers as a tensor of torch on a device."""
    import torch

    return torch.as_tensor(values, device=device)


def as_torch(stored: np.ndarray, dtype: str) -> Tensor:
    """A file's numbers in numpy's array (`labkit.files.floats.ARRAYS`) as torch's, without a copy.

    Args:
        stored: the numbers.
        dtype: theirs, by safetensors' name.
    """
    import torch

    # numpy knows no bfloat16, and torch no whole numbers of 16 bits without a sign.
    bits = torch.from_numpy(stored.view(np.int16) if dtype == "BF16" else stored)
    return bits.view(getattr(torch, FLOATS[dtype]))


def as_numpy(values: Array) -> np.ndarray:
    """The same numbers as numpy's array."""
    return values if of_numpy(values) else np.asarray(values.cpu().numpy())


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of the same kind, in the same place."""
    return np.zeros(shape, like.dtype) if of_numpy(like) else like.new_zeros(shape)


def bits_of(values: Array) -> Array:
    """The bits of each float64, as a whole number; no copy."""
    if of_numpy(values):
        return values.view(np.int64)
    import torch

    return values.view(torch.int64)


def floats_of(bits: Array) -> Array:
    """The float64 that has these bits; no copy."""
    if of_numpy(bits):
        return bits.view(np.float64)
    import torch

    return bits.view(torch.float64)


def marks_of(condition: Array) -> Array:
    """For each element a whole number of 64 bits: all bits where a condition holds, or none."""
    if of_numpy(condition):
        return -condition.astype(np.int64)
    return -condition.long()


def only(kept: Array, values: Array | float) -> Array:
    """The elements that are kept, and 0 for the others: quicker than a choice for each.

    Args:
        kept: for each element all bits of a whole number (-1), or none (0).
        values: the elements, or one number for all.
    """
    bits = int(np.float64(values).view(np.int64)) if isinstance(values, float) else bits_of(values)
    return floats_of(kept & bits)


def places(first: int, stop: int, like: Array) -> Array:
    """The whole numbers from `first` up to `stop`, where the other array is."""
    if of_numpy(like):
        return np.arange(first, stop)
    import torch

    return torch.arange(first, stop, device=like.device)


def places_where(condition: Array) -> Array:
    """Where a condition holds in a flat array."""
    return np.flatnonzero(condition) if of_numpy(condition) else condition.nonzero().view(-1)


def counts(numbers: Array, below: int) -> np.ndarray:
    """How often each whole number from 0 up to `below` occurs."""
    if of_numpy(numbers):
        return np.bincount(numbers, minlength=below)
    return as_numpy(numbers.bincount(minlength=below))


def shifted(bits: Array, count: int) -> Array:
    """Bits shifted to the right, where 0 follows: the sign is a bit like others."""
    if of_numpy(bits):
        return (bits.view(np.uint64) >> np.uint64(count)).view(np.int64)
    return (bits >> count) & ((1 << (64 - count)) - 1)


def all_finite(values: Array) -> bool:
    """Whether no number is NaN or infinite."""
    return bool((np.isfinite(values) if of_numpy(values) else values.isfinite()).all())


def sorted_rows(numbers: Array) -> Array:
    """The numbers of each row, the least first; numpy's are sorted where they are."""
    if of_numpy(numbers):
        numbers.sort(axis=1)
        return numbers
    return numbers.sort(dim=1).values


def stable_order(numbers: Array) -> Array:
    """Where the numbers of each row stand, the least first, and of equals the first one first."""
    if of_numpy(numbers):
        return np.argsort(numbers, axis=1, kind="stable")
    return numbers.argsort(dim=1, stable=True)


def put_in_rows(where: Array, values: np.ndarray) -> Array:
    """Put the same values into each row, each in the place that is named for it.

    Args:
        where: of each row the place of each value; all of them, of shape rows × values.
        values: whole numbers.
    """
    if of_numpy(where):
        found = np.empty_like(where)
        np.put_along_axis(found, where, values[None], axis=1)
        return found
    there = on_device(str(where.device), values).expand_as(where)
    return where.new_empty(where.shape).scatter_(1, where, there)
