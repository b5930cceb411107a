"""What one adapter does to one tensor, as the product of two thin matrices.

A LoRA's `ΔW = s·B·A` has rank r of a few dozen, and so have its weighted sums. Everything here
works on the factors and never multiplies the whole product out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


class LowRank:
    """The matrix `left @ right` in float64, kept as its factors.

    Attributes:
        left: shape rows × r; a LoRA's `s·B`.
        right: shape r × columns; a LoRA's `A`.
    """

    def __init__(
        self, left: Float64[Tensor, "rows rank"], right: Float64[Tensor, "rank columns"]
    ) -> None:
        self.left = left
        self.right = right

    @staticmethod
    def weighted_sum(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
        """Add deltas, each times its weight, by stacking the factors.

        Deltas are added, never factors: `[w₁B₁ w₂B₂] · [A₁; A₂] = w₁B₁A₁ + w₂B₂A₂`.
        """
        return LowRank(
            torch.cat([delta.left * weight for weight, delta in terms], dim=1),
            torch.cat([delta.right for _, delta in terms], dim=0),
        )

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
        return LowRank(self.right.T.contiguous(), self.left.T.contiguous())

    def to(self, device: torch.device) -> LowRank:
        """The same delta with its factors on another device."""
        return LowRank(self.left.to(device), self.right.to(device))

    def dense(self) -> Float64[Tensor, "rows columns"]:
        """Multiply out: only for small matrices, and for tests."""
        return self.left @ self.right

    def rows(self, start: int, stop: int) -> Float64[Tensor, "rows columns"]:
        """The rows from `start` up to `stop` of the product, of shape (stop - start) × columns."""
        return self.left[start:stop] @ self.right

    def add_rows_to(
        self, total: Float64[Tensor, "block columns"], start: int, base: Tensor | None = None
    ) -> None:
        """Add the rows from `start` on, as many as `total` has, to `total` in place."""
        total.addmm_(self.left[start : start + total.shape[0]], self.right)

    def entries(
        self, rows: Int64[Tensor, " entries"], columns: Int64[Tensor, " entries"]
    ) -> Float64[Tensor, " entries"]:
        """Single elements, summed over the rank in its order.

        Matrix products differ in their last bit from one device and library to the next. These
        sums do not: each step is one multiplication and one addition of IEEE 754.
        """
        left, right = self.left[rows], self.right[:, columns]
        total = torch.zeros(len(rows), dtype=torch.float64, device=self.left.device)
        for k in range(self.rank):
            total += left[:, k] * right[k]
        return total

    def norm(self) -> float:
        """The Frobenius norm `‖ΔW‖_F`, from `‖BA‖² = ⟨BᵀB, AAᵀ⟩`."""
        squared = torch.sum((self.left.T @ self.left) * (self.right @ self.right.T)).item()
        return math.sqrt(max(squared, 0.0))

    def singular_values(self) -> Float64[Tensor, " values"]:
        """The singular values of the product, largest first; at most r of them are not 0.

        QR of `B` and of `Aᵀ` leaves an r × r matrix with the same singular values
        (Golub and Van Loan, Matrix Computations, section 5.4).
        """
        left = torch.linalg.qr(self.left, mode="r").R
        right = torch.linalg.qr(self.right.T, mode="r").R
        return torch.linalg.svdvals(left @ right.T)

    def svd(
        self,
    ) -> tuple[
        Float64[Tensor, "rows values"],
        Float64[Tensor, " values"],
        Float64[Tensor, "columns values"],
    ]:
        """The thin singular value decomposition `U, σ, V` with `ΔW = U·diag(σ)·Vᵀ`.

        From the factors: QR of `B` and of `Aᵀ`, and the r × r decomposition of what is between.
        """
        left, right = torch.linalg.qr(self.left), torch.linalg.qr(self.right.T)
        u, values, vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
        return left.Q @ u, values, right.Q @ vh.T
