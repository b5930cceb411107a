"""What is added to one tensor, in float64: low-rank products, whole tensors, rows, and factors.

A LoRA's `ΔW = s·B·A` has rank r of a few dozen, and so have its weighted sums. `LowRank` works on
the factors and never multiplies the whole product out. The other kinds of change depend on the
base's numbers: `w·(W_adapter − W)`. Each adds itself to blocks of rows, and to single elements in a
fixed order of operations, so that the result of rounding does not depend on device or library.

All are made of numpy's arrays, and none needs torch; `to` puts them onto another device as torch's
tensors. What adds rows is written in operations that both understand; single elements are added in
numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from labkit.files.tensor_file import StoredTensor

Array = Any
"""An array of numpy; or, on another device, a tensor of torch, which takes the same operations."""

NORM_ELEMENTS = 1 << 17
"""Elements summed at a time. A fixed number: the order of summation hangs on it."""


@runtime_checkable
class Delta(Protocol):
    """Something that is added to a tensor, seen as a matrix of rows × columns."""

    def add_rows_to(self, total: Array, start: int, base: Array | None = None) -> None:
        """Add the rows from `start` on, as many as `total` has, to `total` in place.

        Args:
            total: rows × columns, float64.
            start: the number of its first row in the tensor.
            base: the base's rows, of the same shape, in float64.
        """

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements to `total` in place, in numpy, each by the same operations always."""

    def to(self, device: str) -> Delta:
        """The same on another device, such as "cuda"."""

    def norm(self) -> float:
        """The Frobenius norm of all that is added."""


class LowRank:
    """The matrix `left @ right` in float64, kept as its factors.

    Attributes:
        left: shape rows × r; a LoRA's `s·B`.
        right: shape r × columns; a LoRA's `A`.
    """

    def __init__(
        self, left: Float64[Array, "rows rank"], right: Float64[Array, "rank columns"]
    ) -> None:
        self.left = left
        self.right = right

    @staticmethod
    def weighted_sum(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
        """Add deltas, each times its weight, by stacking the factors.

        Deltas are added, never factors: `[w₁B₁ w₂B₂] · [A₁; A₂] = w₁B₁A₁ + w₂B₂A₂`.
        """
        return LowRank(
            np.concatenate([delta.left * weight for weight, delta in terms], axis=1),
            np.concatenate([delta.right for _, delta in terms], axis=0),
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
        return LowRank(np.ascontiguousarray(self.right.T), np.ascontiguousarray(self.left.T))

    def to(self, device: str) -> LowRank:
        """The same delta with its factors on another device."""
        return LowRank(_on(device, self.left), _on(device, self.right))

    def dense(self) -> Float64[Array, "rows columns"]:
        """Multiply out: only for small matrices, and for tests."""
        return self.left @ self.right

    def rows(
        self, start: int, stop: int, out: Float64[np.ndarray, "rows columns"] | None = None
    ) -> Float64[Array, "rows columns"]:
        """The rows from `start` up to `stop` of the product, of shape (stop - start) × columns.

        Args:
            start: the first row.
            stop: the one after the last.
            out: numpy's memory for the result; by default new memory.
        """
        if out is not None:
            return np.matmul(self.left[start:stop], self.right, out=out)
        return self.left[start:stop] @ self.right

    def add_rows_to(
        self, total: Float64[Array, "block columns"], start: int, base: Array | None = None
    ) -> None:
        """Add the rows from `start` on, as many as `total` has, to `total` in place."""
        total += self.rows(start, start + total.shape[0])

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


class Placed:
    """A low-rank product that is added to some of a tensor's rows: one expert of a stack."""

    def __init__(self, delta: LowRank, first: int) -> None:
        self.delta = delta
        self.first = first

    def add_rows_to(self, total: Array, start: int, base: Array | None = None) -> None:
        """Add the rows that both have."""
        begin = max(start, self.first)
        end = min(start + total.shape[0], self.first + self.delta.shape[0])
        if begin < end:
            self.delta.add_rows_to(total[begin - start : end - start], begin - self.first)

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements, where it has them."""
        inside = (rows >= self.first) & (rows < self.first + self.delta.shape[0])
        if bool(inside.any()):
            total[inside] += self.delta.entries(rows[inside] - self.first, columns[inside])

    def to(self, device: str) -> Placed:
        """The same on another device."""
        return Placed(self.delta.to(device), self.first)

    def norm(self) -> float:
        """The Frobenius norm."""
        return self.delta.norm()


class Mixed:
    """`w·(W_adapter − W)` for a tensor that the adapter holds whole, read as it is needed.

    Rows that the base lacks (new tokens) are the adapter's own, at every weight but 0: there is
    nothing of the base to mix them with.
    """

    def __init__(self, saved: StoredTensor, weight: float, base_rows: int) -> None:
        self.saved = saved
        self.weight = weight
        self.base_rows = base_rows

    def add_rows_to(self, total: Array, start: int, base: Array | None = None) -> None:
        """Take away the base's share first: at weight 1 nothing is left of it, not even rounding.

        Exactly the adapter's numbers stand there then.
        """
        assert base is not None  # noqa: S101 - only a low-rank product does without
        saved = _beside(total, self.saved.read_rows(start, start + total.shape[0]))
        total -= base * self.weight
        new = max(0, min(total.shape[0], start + total.shape[0] - self.base_rows))
        old = total.shape[0] - new
        total[:old] += saved[:old] * self.weight
        total[old:] += saved[old:]

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements."""
        first, last = int(rows.min()), int(rows.max()) + 1
        saved = self.saved.read_rows(first, last)[rows - first, columns]
        total -= base * self.weight
        saved[rows < self.base_rows] *= self.weight
        total += saved

    def to(self, device: str) -> Mixed:
        """The same: it reads its rows onto the device that asks."""
        return self


class Rows:
    """`w·(W_adapter − W)` for some rows of a tensor: single tokens that were trained."""

    def __init__(self, indices: Array, saved: Array, weight: float) -> None:
        self.indices = indices
        self.saved = saved
        self.weight = weight

    def add_rows_to(self, total: Array, start: int, base: Array | None = None) -> None:
        """Add the rows that both have."""
        assert base is not None  # noqa: S101 - only a low-rank product does without
        mine = (self.indices >= start) & (self.indices < start + total.shape[0])
        at = self.indices[mine] - start
        mixed = total[at] - base[at] * self.weight
        total[at] = mixed + self.saved[mine] * self.weight

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements."""
        for position, index in enumerate(self.indices.tolist()):
            here = rows == index
            if bool(here.any()):
                mixed = total[here] - base[here] * self.weight
                total[here] = mixed + self.saved[position, columns[here]] * self.weight

    def to(self, device: str) -> Rows:
        """The same on another device."""
        return Rows(_on(device, self.indices), _on(device, self.saved), self.weight)


class Scaled:
    """`f_i·W_ij` (or `f_j·W_ij`): the base's rows or columns, each times a number of its own."""

    def __init__(self, factors: Float64[Array, " n"], columns: bool) -> None:
        self.factors = factors
        self.columns = columns

    def add_rows_to(self, total: Array, start: int, base: Array | None = None) -> None:
        """Add the rows from `start` on."""
        assert base is not None  # noqa: S101 - only a low-rank product does without
        mine = self.factors if self.columns else self.factors[start : start + len(total), None]
        total += base * mine

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements."""
        total += base * self.factors[columns if self.columns else rows]

    def to(self, device: str) -> Scaled:
        """The same on another device."""
        return Scaled(_on(device, self.factors), self.columns)


class Sum:
    """Several changes of one tensor, added in their order.

    Attributes:
        parts: the changes.
        source: the base's tensor, to read for the norm.
        rows: the rows of the result; more than the base's if tokens were added.
    """

    def __init__(
        self,
        parts: Sequence[Mixed | Rows | Scaled | Placed | LowRank],
        source: StoredTensor,
        rows: int,
    ) -> None:
        self.parts = parts
        self.source = source
        self.rows = rows

    def add_rows_to(self, total: Array, start: int, base: Array | None = None) -> None:
        """Add the rows from `start` on, as many as `total` has, to `total` in place."""
        for part in self.parts:
            part.add_rows_to(total, start, base)

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements to `total` in place."""
        for part in self.parts:
            part.add_entries_to(total, base, rows, columns)

    def to(self, device: str) -> Sum:
        """The same on another device."""
        return Sum([part.to(device) for part in self.parts], self.source, self.rows)

    def norm(self) -> float:
        """The Frobenius norm of all that is added, `‖Σ w·(W_adapter − W)‖`, read from the base."""
        squared = 0.0
        for start, base in _blocks(self.source, self.rows):
            total = np.zeros(base.shape)
            self.add_rows_to(total, start, base)
            squared += float(np.square(total).sum())
        return math.sqrt(squared)


def _blocks(
    source: StoredTensor, rows: int
) -> Iterator[tuple[int, Float64[Array, "rows columns"]]]:
    columns = source.matrix_shape[1]
    step = max(1, NORM_ELEMENTS // max(columns, 1))
    for start in range(0, rows, step):
        yield start, source.read_rows(start, min(start + step, rows))


def dora_factors(
    source: StoredTensor, delta: LowRank, magnitude: Float64[Array, " n"], columns: bool
) -> Float64[Array, " n"]:
    """DoRA's `m / ‖W + s·B·A‖`, one for each output of the module, in float64.

    The norm runs over the inputs: over columns where the tensor is stored as out × in, over rows
    where as in × out. Liu et al., "DoRA", 2024, arXiv 2402.09353, equation 5. Sums are taken in a
    fixed order, so that the factors are the same everywhere.
    """
    squared = np.zeros(len(magnitude))
    for start, total in _blocks(source, source.matrix_shape[0]):
        for k in range(delta.rank):
            total += delta.left[start : start + len(total), k, None] * delta.right[k]
        total *= total
        if columns:
            squared += _sum_in_order(total.T)
        else:
            squared[start : start + len(total)] = _sum_in_order(total)
    return magnitude / np.sqrt(squared)


def _sum_in_order(values: Float64[Array, "rows n"]) -> Float64[Array, " rows"]:
    """Sum each row by halves: element by element, so that no library chooses the order."""
    while values.shape[1] > 1:
        half = (values.shape[1] + 1) // 2
        other = values[:, half:]
        values = values[:, :half].copy()
        values[:, : other.shape[1]] += other
    return values[:, 0]


def _on(device: str, values: Array) -> Array:
    import torch

    return torch.as_tensor(values, device=device)


def _beside(total: Array, values: Array) -> Array:
    """What was read from a file, where `total` is."""
    return values if isinstance(total, np.ndarray) else _on(str(total.device), values)
