"""Deltas of what an adapter holds in place of the base's numbers: `w·(W_adapter − W)`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64

from labkit.deltas.arrays import Array, all_finite, on_device
from labkit.deltas.delta import NORM_ELEMENTS, BaseDependent
from labkit.deltas.resident_tensor import ResidentTensor
from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor


class WholeReplacement(BaseDependent):
    """`w·(W_adapter − W)` for a tensor that the adapter holds whole, read as it is needed.

    Rows that the base lacks (new tokens) are the adapter's own, at every weight but 0: there is
    nothing of the base to mix them with.

    Attributes:
        saved: the adapter's tensor.
        base: the base's tensor.
        weight: `w`.
        tokens: rows that the adapter holds apart, and that count in place of those in `saved`:
            where they stand, and their numbers.
        checked: whether it is known that the saved numbers are finite; else each block is looked at
            when it is read.
    """

    step = 0
    by_element = True

    def __init__(
        self,
        saved: StoredTensor,
        base: StoredTensor,
        weight: float = 1.0,
        tokens: tuple[np.ndarray, np.ndarray] | None = None,
        checked: bool = True,
    ) -> None:
        self.saved = saved
        self.base = base
        self.weight = weight
        self.tokens = tokens
        self.checked = checked
        self._elsewhere: dict[str, WholeReplacement] = {}

    @property
    def row_count(self) -> int:
        """Rows of the result: the adapter's."""
        return self.saved.matrix_shape[0]

    def times(self, weight: float) -> WholeReplacement:
        """The same `weight` times."""
        weight *= self.weight
        return WholeReplacement(self.saved, self.base, weight, self.tokens, self.checked)

    def rows(self, start: int, stop: int) -> Float64[Array, "rows columns"]:
        """Read the adapter's rows."""
        rows = self.saved.read_rows(start, stop)
        if not (self.checked or all_finite(rows)):
            raise LabkitError(
                f"{shown(self.saved.name)!r} of {shown(self.saved.file)} holds numbers that are "
                "NaN or infinite; its training failed, or the file is damaged: use another one"
            )
        if self.tokens is not None:
            indices, values = self.tokens
            mine = (indices >= start) & (indices < stop)
            rows[indices[mine] - start] = values[mine]
        return rows

    def blocks(self) -> Iterator[tuple[int, Float64[np.ndarray, "rows columns"]]]:
        """Read the adapter's rows block by block, with the number of each block's first."""
        count, columns = self.saved.matrix_shape
        step = max(1, NORM_ELEMENTS // max(1, columns))
        for start in range(0, count, step):
            yield start, self.rows(start, min(start + step, count))

    def entries(
        self, rows: Int64[np.ndarray, " entries"], columns: Int64[np.ndarray, " entries"]
    ) -> Float64[np.ndarray, " entries"]:
        """Read single elements of the adapter's."""
        saved = self.saved.read_entries(rows, columns)
        if self.tokens is not None:
            for index, values in zip(*self.tokens, strict=True):
                mine = rows == index
                saved[mine] = values[columns[mine]]
        return saved

    def add_rows_to(self, total: Array, start: int, base: Array) -> None:
        """Take away the base's share first: at weight 1 nothing is left of it, not even rounding.

        Exactly the adapter's numbers stand there then.
        """
        saved = self.rows(start, start + total.shape[0])
        total -= base * self.weight
        new = max(0, min(total.shape[0], start + total.shape[0] - self.base.matrix_shape[0]))
        old = total.shape[0] - new
        total[:old] += saved[:old] * self.weight
        total[old:] += saved[old:]

    def add_entries_to(
        self, total: np.ndarray, base: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Add single elements."""
        saved = self.entries(rows, columns)
        total -= base * self.weight
        saved[rows < self.base.matrix_shape[0]] *= self.weight
        total += saved

    def to(self, device: str) -> WholeReplacement:
        """The same with the adapter's tensor on another device: one for all who ask."""
        if device not in self._elsewhere:
            saved, tokens = ResidentTensor.of(self.saved, device), self.tokens
            if tokens is not None:
                tokens = on_device(device, tokens[0]), on_device(device, tokens[1])
            moved = WholeReplacement(saved, self.base, self.weight, tokens, self.checked)
            self._elsewhere.setdefault(device, moved)
        return self._elsewhere[device]


class RowReplacement(BaseDependent):
    """`w·(W_adapter − W)` for some rows of a tensor: single tokens that were trained.

    Attributes:
        indices: the rows' numbers in the tensor.
        saved: the adapter's rows.
        base: the base's tensor.
        weight: `w`.
    """

    step = 0
    by_element = True

    def __init__(
        self,
        indices: Int64[Array, " count"],
        saved: Float64[Array, "count columns"],
        base: StoredTensor,
        weight: float = 1.0,
    ) -> None:
        self.indices = indices
        self.saved = saved
        self.base = base
        self.weight = weight

    def times(self, weight: float) -> RowReplacement:
        """The same `weight` times."""
        return RowReplacement(self.indices, self.saved, self.base, self.weight * weight)

    def add_rows_to(self, total: Array, start: int, base: Array) -> None:
        """Add the rows that both have."""
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

    def to(self, device: str) -> RowReplacement:
        """The same on another device."""
        indices, saved = on_device(device, self.indices), on_device(device, self.saved)
        return RowReplacement(indices, saved, self.base, self.weight)
