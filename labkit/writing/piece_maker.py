"""Makes the bytes of merged pieces: by the processor or by a GPU, here or in other processes."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labkit.deltas.delta import Delta
from labkit.errors import LabkitError, shown
from labkit.files.floats import ARRAYS, LARGEST, wide
from labkit.files.tensor_file import FLOATS, StoredTensor
from labkit.merging.rounding import BlockMerger
from labkit.writing.layout import Piece

if TYPE_CHECKING:
    from labkit.merging.planning import Plan
    from labkit.merging.rounding_on_device import DeviceMerger
    from labkit.writing.merge_process import MergeProcesses


@dataclass(frozen=True)
class Task:
    """What is to be made of a piece's rows, beside the bytes and the update.

    Attributes:
        tensor: the tensor's name.
        stored: the dtype of the base's rows.
        code: the dtype of the merged rows.
        first: the number of the first row in the tensor.
        shape: rows × columns.
    """

    tensor: str
    stored: str
    code: str
    first: int
    shape: tuple[int, int]

    def carry_out(
        self,
        source: memoryview,
        target: memoryview,
        update: Delta | None,
        merger: BlockMerger | DeviceMerger,
    ) -> tuple[float, float]:
        """Merge the rows; see `PieceMaker.make`."""
        # Rows that the base lacks are 0.
        base = (
            np.frombuffer(source, ARRAYS[self.stored]).reshape(self.shape)
            if len(source)
            else np.zeros(self.shape, ARRAYS[self.stored])
        )
        merged = np.frombuffer(target, ARRAYS[self.code]).reshape(self.shape)
        _, squared, missing = merger.merge(base, self.stored, update, self.first, self.code, merged)
        # The sum of squares of the change is not finite if any element of it is not.
        if not math.isfinite(squared):
            self._refuse_overflow(base, merged)
        return squared, missing

    def _refuse_overflow(self, base: np.ndarray, merged: np.ndarray) -> None:
        lost = np.isfinite(wide(base, self.stored)) & ~np.isfinite(wide(merged, self.code))
        if lost.any():
            raise LabkitError(
                f"{int(lost.sum())} numbers of {shown(self.tensor)!r} become too large for "
                f"{FLOATS[self.code]} (its largest is {LARGEST[self.code]:g}); "
                "choose another --dtype, such as bfloat16 or float32, or smaller weights"
            )


class PieceMaker:
    """Makes the bytes of merged pieces. May be used by several threads at once.

    Args:
        plan: what is merged.
        device: "cpu" or "cuda".
        processes: who merges in this one's stead; None merges here.
    """

    def __init__(self, plan: Plan, device: str, processes: MergeProcesses | None = None) -> None:
        self.plan = plan
        self.device = device
        self.processes = processes
        self._own = threading.local()

    def update(self, tensor: StoredTensor) -> Delta | None:
        """Read what is added to a tensor; None if only its dtype changes."""
        change = self.plan.changes.get(tensor.name)
        return change.update() if change else None

    def make(
        self, piece: Piece, source: memoryview, target: memoryview, update: Delta | None
    ) -> tuple[float, float]:
        """Merge a piece's rows.

        Args:
            piece: the piece; its `tensor` is given.
            source: the rows as the base has them.
            target: memory for them as they will be.
            update: what `update(piece.tensor)` gave.

        Returns:
            `‖W' - W‖²`, and `‖(W' - W) - wΔW‖²`.

        Raises:
            LabkitError: a number that is finite in the base is not any more.
        """
        tensor = piece.tensor
        assert tensor is not None  # noqa: S101 - copied pieces are not made
        first, last = piece.rows
        task = Task(
            tensor.name,
            tensor.float_dtype,
            self.plan.output_dtype(tensor),
            first,
            (last - first, tensor.matrix_shape[1]),
        )
        if self.processes is not None:
            return self.processes.carry_out(task, source, target, update)
        return task.carry_out(source, target, update, self._merger())

    def _merger(self) -> BlockMerger | DeviceMerger:
        """The one of the thread that asks."""
        if not hasattr(self._own, "merger"):
            if self.device == "cpu":
                self._own.merger = BlockMerger()
            else:
                from labkit.merging.rounding_on_device import DeviceMerger

                self._own.merger = DeviceMerger(self.device)
        merger: BlockMerger | DeviceMerger = self._own.merger
        return merger
