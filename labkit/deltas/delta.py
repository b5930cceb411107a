"""`Delta`: something that is added to one tensor of the base model, in float64.

A delta adds itself to blocks of rows, and to single elements in a fixed order of operations, so
that the result of rounding does not depend on device or library. All deltas are made of numpy's
arrays and none needs torch; `to` gives the same delta with its numbers on another device, as
torch's tensors. What adds rows is written in operations that both understand; single elements are
added in numpy alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from labkit.deltas.arrays import Array
from labkit.files.tensor_file import StoredTensor

NORM_ELEMENTS = 1 << 17
"""Elements summed at a time. A fixed number: the order of summation hangs on it."""


class Delta(ABC):
    """Something that is added to a tensor, seen as a matrix of rows × columns.

    Attributes:
        step: when it is added, beside other deltas of one tensor: see `labkit.deltas.total`.
        by_element: rows get the same bits as single elements do, as no product of matrices is
            among what is added.
    """

    step: ClassVar[int]
    by_element: bool = False

    @property
    def rank(self) -> int | None:
        """The rank of a product of factors; None for what is no such product."""
        return None

    @abstractmethod
    def times(self, weight: float) -> Delta:
        """The same delta `weight` times."""

    @abstractmethod
    def add_rows_to(
        self,
        total: Float64[Array, "block columns"],
        start: int,
        base: Float64[Array, "block columns"],
    ) -> None:
        """Add rows to `total` in place.

        Args:
            total: as many rows as are to be added, on the device that this delta is on.
            start: the number of their first row in the tensor.
            base: the same rows as the base has them; 0 where the base has no such row.
        """

    @abstractmethod
    def add_entries_to(
        self,
        total: Float64[np.ndarray, " entries"],
        base: Float64[np.ndarray, " entries"],
        rows: Int64[np.ndarray, " entries"],
        columns: Int64[np.ndarray, " entries"],
    ) -> None:
        """Add single elements to `total` in place, each by the same operations always.

        Args:
            total: what the elements are added to.
            base: the same elements as the base has them.
            rows: their rows in the tensor.
            columns: their columns in it.
        """

    def add_rows_in_order(
        self,
        total: Float64[Array, "block columns"],
        start: int,
        base: Float64[Array, "block columns"],
    ) -> None:
        """Add rows to `total` in place, each element by the operations of `add_entries_to`.

        For what hangs on an element's last bit: its sign, or whether it is among the largest.
        Slower than `add_rows_to` where factors are multiplied.

        Args:
            total: as many rows as are to be added, on the device that this delta is on.
            start: the number of their first row in the tensor.
            base: the same rows as the base has them; 0 where the base has no such row.
        """
        if not self.by_element:
            raise NotImplementedError(type(self).__name__)
        self.add_rows_to(total, start, base)

    def uncertainty(self, start: int, stop: int) -> float | None:
        """How far elements of `add_rows_to` can lie from those of `add_rows_in_order`, at most.

        No element's magnitude is above 2⁵⁰ times this, where it is not 0.

        Args:
            start: the number of the first row in the tensor.
            stop: the number of the row behind the last.

        Returns:
            a bound; 0 where the two have the same bits, None where none is known.
        """
        return 0.0 if self.by_element else None

    @abstractmethod
    def to(self, device: str) -> Delta:
        """The same delta with its numbers on another device, such as "cuda"."""

    @abstractmethod
    def norm(self) -> float:
        """The Frobenius norm of all that is added."""

    def singular_values(self) -> Float64[Array, " values"] | None:
        """The singular values, largest first; None for what is no product of factors."""
        return None

    @property
    def parts(self) -> tuple[Delta, ...]:
        """What it is the sum of: itself, if it is no sum."""
        return (self,)

    def write_sum_to(
        self,
        total: Float64[Array, "block columns"],
        base: Float64[Array, "block columns"],
        start: int,
    ) -> None:
        """Put `base + delta` into `total`, for the rows from `start` on."""
        total[...] = base
        self.add_rows_to(total, start, base)


class BaseDependent(Delta):
    """A delta that depends on the base's numbers, such as `W_adapter − W`.

    Attributes:
        base: the base's tensor.
    """

    base: StoredTensor

    @property
    def row_count(self) -> int:
        """Rows of the result; more than the base's if tokens were added."""
        return self.base.matrix_shape[0]

    def norm(self) -> float:
        """The Frobenius norm of all that is added, read from the base block by block."""
        squared = 0.0
        for start, base in self.base.blocks(NORM_ELEMENTS, self.row_count):
            total = np.zeros(base.shape)
            self.add_rows_to(total, start, base)
            squared += float(np.square(total).sum())
        return math.sqrt(squared)
