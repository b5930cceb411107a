"""Low-rank products as their factors: a LoRA's `ΔW = s·B·A` and its weighted sums.

A LoRA's delta has a rank of a few dozen, and so have weighted sums of some. `LowRank` works on the
factors and never multiplies the whole product out: norms, singular values and single rows or
elements all come from `B` and `A`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from labkit.deltas.arrays import Array, of_numpy, on_device, zeros
from labkit.deltas.delta import Delta

ORDERED_ELEMENTS = 1 << 14
"""Elements that are summed over the rank at a time: few enough for a processor's nearest cache."""


class LowRank(Delta):
    """The matrix `left @ right` in float64, kept as its factors.

    Attributes:
        left: shape rows × r; a LoRA's `s·B`.
        right: shape r × columns; a LoRA's `A`.
    """

    step = 2

    def __init__(
        self, left: Float64[Array, "rows rank"], right: Float64[Array, "rank columns"]
    ) -> None:
        self.left = left
        self.right = right

    @staticmethod
    def stacked(deltas: Sequence[LowRank]) -> LowRank:
        """Add deltas up by stacking their factors: `[B₁ B₂] · [A₁; A₂] = B₁A₁ + B₂A₂`.

        Deltas are added, never factors.
        """
        if len(deltas) == 1:
            return deltas[0]
        return LowRank(
            np.concatenate([delta.left for delta in deltas], axis=1),
            np.concatenate([delta.right for delta in deltas], axis=0),
        )

    @staticmethod
    def weighted_sum(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
        """Add deltas, each times its weight."""
        return LowRank.stacked([delta.times(weight) for weight, delta in terms])

    def times(self, weight: float) -> LowRank:
        """The same product `weight` times."""
        return LowRank(self.left * weight, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """Columns of the left factor: an upper bound of the product's rank."""
        return int(self.left.shape[1])

    def transposed(self) -> LowRank:
        """The transpose, for weights that are stored as in × out."""
        return LowRank(np.ascontiguousarray(self.right.T), np.ascontiguousarray(self.left.T))

    def to(self, device: str) -> LowRank:
        """The same delta with its factors on another device."""
        return LowRank(on_device(device, self.left), on_device(device, self.right))

    def dense(self) -> Float64[Array, "rows columns"]:
        """Multiply out: only for small matrices, and for tests."""
        return self.left @ self.right

    def rows(self, start: int, stop: int) -> Float64[Array, "rows columns"]:
        """The rows from `start` up to `stop` of the product, of shape (stop - start) × columns."""
        return self.left[start:stop] @ self.right

    def write_sum_to(
        self,
        total: Float64[Array, "block columns"],
        base: Float64[Array, "block columns"],
        start: int,
    ) -> None:
        """Put `base + delta` into `total`, for the rows from `start` on."""
        rows = slice(start, start + total.shape[0])
        if of_numpy(total):
            np.matmul(self.left[rows], self.right, out=total)
        else:
            total[...] = self.left[rows] @ self.right
        total += base

    def add_rows_to(
        self,
        total: Float64[Array, "block columns"],
        start: int,
        base: Float64[Array, "block columns"],
    ) -> None:
        """Add the rows from `start` on, as many as `total` has."""
        total += self.rows(start, start + total.shape[0])

    def add_rows_in_order(
        self,
        total: Float64[Array, "block columns"],
        start: int,
        base: Float64[Array, "block columns"],
    ) -> None:
        """Add the rows from `start` on, each element summed as `entries` does it."""
        if not of_numpy(total):
            left, added = self.left[start : start + total.shape[0]], zeros(total.shape, total)
            for number in range(self.rank):
                # Two operations: one that does both may round once where these round twice.
                added += left[:, number, None] * self.right[number]
            total += added
            return
        columns = total.shape[1]
        step = max(1, ORDERED_ELEMENTS // max(1, columns))
        for first in range(0, total.shape[0], step):
            left = self.left[start + first : start + min(first + step, total.shape[0])]
            added = np.zeros((left.shape[0], columns))
            product = np.empty_like(added)
            for number in range(self.rank):
                np.multiply(left[:, number, None], self.right[number], out=product)
                np.add(added, product, out=added)
            total[first : first + step] += added

    def uncertainty(self, start: int, stop: int) -> float:
        """How far two orders of summation can lie apart, at most.

        A sum of r products is off by at most `r·2⁻⁵³·Σ|B_k·A_k|` in any order (Higham, Accuracy and
        Stability of Numerical Algorithms, section 3.1), and `Σ|B_k·A_k|` is at most the product of
        the row's norm and the column's. Four times the two sums' errors leaves room for the
        rounding of the norms, and of sums of several products.
        """
        left = self.left[start:stop]
        longest_row = math.sqrt(float(np.einsum("ij,ij->i", left, left).max(initial=0.0)))
        return longest_row * (self._longest_column * max(1, self.rank) * 2.0**-50)

    @cached_property
    def _longest_column(self) -> float:
        """The largest norm of a column of `right`."""
        return math.sqrt(float(np.einsum("ij,ij->j", self.right, self.right).max(initial=0.0)))

    def add_entries_to(
        self,
        total: Float64[np.ndarray, " entries"],
        base: Float64[np.ndarray, " entries"],
        rows: Int64[np.ndarray, " entries"],
        columns: Int64[np.ndarray, " entries"],
    ) -> None:
        """Add single elements to `total` in place."""
        total += self.entries(rows, columns)

    def entries(
        self, rows: Int64[np.ndarray, " entries"], columns: Int64[np.ndarray, " entries"]
    ) -> Float64[np.ndarray, " entries"]:
        """Single elements, summed over the rank in its order.

        Matrix products differ in their last bit from one device and library to the next. These
        sums do not: each step is one multiplication and one addition of IEEE 754.
        """
        products = self.left[rows].T * self.right[:, columns]
        total = np.zeros(len(rows))
        for product in products:
            total += product
        return total

    def norm(self) -> float:
        """The Frobenius norm `‖ΔW‖_F`, from `‖BA‖² = ⟨BᵀB, AAᵀ⟩`."""
        squared = ((self.left.T @ self.left) * (self.right @ self.right.T)).sum()
        return math.sqrt(max(float(squared), 0.0))

    def singular_values(self) -> Float64[Array, " values"]:
        """The singular values of the product, largest first; at most r of them are not 0.

        QR of `B` and of `Aᵀ` leaves an r × r matrix with the same singular values
        (Golub and Van Loan, Matrix Computations, section 5.4).
        """
        left: Any = np.linalg.qr(self.left, "r")
        right: Any = np.linalg.qr(self.right.T, "r")
        return np.linalg.svd(left @ right.T, compute_uv=False)

    def svd(
        self,
    ) -> tuple[
        Float64[Array, "rows values"],
        Float64[Array, " values"],
        Float64[Array, "columns values"],
    ]:
        """The thin singular value decomposition `U, σ, V` with `ΔW = U·diag(σ)·Vᵀ`.

        From the factors: QR of `B` and of `Aᵀ`, and the r × r decomposition of what is between.
        """
        left, right = np.linalg.qr(self.left), np.linalg.qr(self.right.T)
        u, values, vh = np.linalg.svd(left.R @ right.R.T, full_matrices=False)
        return left.Q @ u, values, right.Q @ vh.T
