"""The largest singular values of a matrix that is no product of factors, by random projection.

Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from labkit.deltas.delta import Delta
from labkit.deltas.passes import near_blocks
from labkit.files.tensor_file import StoredTensor

OVERSAMPLING = 16
"""Directions that are looked for beside those that are wanted."""
POWER_STEPS = 2
HELD_ELEMENTS = 1 << 27
"""Elements of a delta that are held in memory, in float32; a larger one is made again in each of
the six passes."""

Product = Callable[[np.ndarray], np.ndarray]


def largest_values(
    matrix: Float32[np.ndarray, "rows columns"], count: int, dice: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest singular values of a matrix, and their vectors: `U`, `σ`, `Vᵀ`, in float64.

    Args:
        matrix: the matrix.
        count: how many.
        dice: for the projection.
    """
    if min(matrix.shape) <= 2 * (count + OVERSAMPLING):
        u, values, vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        return u[:, :count], values[:count], vh[:count]
    return _projected(lambda x: matrix @ x, lambda y: matrix.T @ y, matrix.shape[1], count, dice)


def _projected(
    times: Product, transposed: Product, columns: int, count: int, dice: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find them by products with the matrix and with its transpose."""
    found = times(dice.standard_normal((columns, count + OVERSAMPLING), np.float32))
    for _ in range(POWER_STEPS):
        # An orthonormal basis in between: powers of a matrix lose the small values to the large.
        found = np.linalg.qr(found)[0]
        found = np.linalg.qr(transposed(found))[0]
        found = times(found)
    basis = np.linalg.qr(found.astype(np.float64))[0]
    small = transposed(basis.astype(np.float32)).T.astype(np.float64)
    u, values, vh = np.linalg.svd(small, full_matrices=False)
    return (basis @ u)[:, :count], values[:count], vh[:count]


@dataclass(frozen=True)
class Projected:
    """What is known of a delta by projection.

    Attributes:
        norm: its Frobenius norm, of all elements in float64.
        left: the singular vectors that it writes, of shape rows × values.
        values: the largest singular values; all of them in a small matrix.
        right: the singular vectors that it reads, of shape columns × values.
        complete: whether these are all the singular values.
    """

    norm: float
    left: np.ndarray
    values: np.ndarray
    right: np.ndarray
    complete: bool


def project(delta: Delta, base: StoredTensor, count: int, seed: int = 0) -> Projected:
    """Measure a delta that is no product of factors.

    Args:
        delta: the delta.
        base: the base's tensor, whose shape, seen as a matrix, it has.
        count: how many singular values are wanted; of a small matrix all are given.
        seed: of the projection, beside the tensor's name.
    """
    rows, columns = base.matrix_shape
    if min(rows, columns) <= 2 * (count + OVERSAMPLING):
        count = min(rows, columns)  # of a small matrix all are found at once
    dice = np.random.default_rng([seed, *base.name.encode()])
    held = np.empty((rows, columns), np.float32) if base.elements <= HELD_ELEMENTS else None
    squares = []
    for block in near_blocks(delta, base):
        flat = block.values.reshape(-1)
        squares.append(float(np.dot(flat, flat)))
        if held is not None:
            start = block.first // max(1, columns)
            held[start : start + len(block.values)] = block.values
    norm = math.sqrt(math.fsum(squares))
    if norm == 0 or not math.isfinite(norm):
        empty = np.zeros((0, 0))
        return Projected(norm, empty, np.zeros(0), empty, complete=norm == 0)
    if held is not None:
        left, values, right = largest_values(held, count, dice)
    else:
        times, transposed = _streamed(delta, base)
        left, values, right = _projected(times, transposed, columns, count, dice)
    return Projected(norm, left, values, right.T, len(values) == min(rows, columns))


def _streamed(delta: Delta, base: StoredTensor) -> tuple[Product, Product]:
    """Products with a delta and with its transpose, whose rows are made as they are needed."""
    _, columns = base.matrix_shape

    def times(x: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [block.values.astype(np.float32) @ x for block in near_blocks(delta, base)]
        )

    def transposed(y: np.ndarray) -> np.ndarray:
        total = np.zeros((columns, y.shape[1]), np.float32)
        for block in near_blocks(delta, base):
            start = block.first // columns
            total += block.values.astype(np.float32).T @ y[start : start + len(block.values)]
        return total

    return times, transposed
