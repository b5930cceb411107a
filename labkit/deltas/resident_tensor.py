"""A tensor of a file in the memory of a device, for methods that look through it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from labkit.deltas.arrays import Array, as_torch
from labkit.files.floats import ARRAYS
from labkit.files.tensor_file import StoredTensor


@dataclass(frozen=True)
class ResidentTensor(StoredTensor):
    """A stored tensor whose rows come from a device's memory, as tensors of torch.

    It is read when rows are first asked for, and stays there as long as this object does: with the
    bits of the file, a quarter of what it is in float64.

    Attributes:
        device: the device.
    """

    device: str = ""
    _held: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @staticmethod
    def of(tensor: StoredTensor, device: str) -> ResidentTensor:
        """The same tensor on a device; nothing is read yet."""
        return ResidentTensor(
            tensor.name, tensor.file, tensor.dtype, tensor.shape, tensor.start, tensor.stop, device
        )

    @property
    def values(self) -> Array:
        """Its numbers as the file has them, of shape rows × columns.

        Raises:
            LabkitError: as `StoredTensor.read`.
        """
        with self._reading:  # several threads merge the rows of one tensor
            if not self._held:
                stored = np.frombuffer(self.read_bytes(), ARRAYS[self.float_dtype])
                there = as_torch(stored, self.dtype).to(self.device)
                self._held["values"] = there.view(self.matrix_shape)
            return self._held["values"]

    def zeros(self, rows: int) -> Array:
        """Rows of zeros in float64, beside the tensor's."""
        import torch

        shape = rows, self.matrix_shape[1]
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def read_rows(self, start: int, stop: int) -> Array:
        """Some rows of the tensor seen as a matrix, in float64; rows behind its last are 0."""
        there = self.values[start:stop].double()
        missing = stop - start - len(there)
        if not missing:
            return there
        import torch

        return torch.cat([there, self.zeros(missing)])
