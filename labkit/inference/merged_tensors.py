"""Tensors of a model in memory that are merged anew when their weights change.

What a plain LoRA adds to a linear module can be scaled while the model runs. For DoRA, parameters
that were trained whole, experts of a stack and full models the tensor itself must be another one.
It is merged as `labkit merge` writes it, by the same code: float64 from the base's numbers and the
deltas, rounded once to the model's dtype. Only tensors whose weights changed are merged.

The base's numbers are kept in memory in the file's dtype. Deltas are read when they are needed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.deltas.delta import NORM_ELEMENTS, Delta
from labkit.errors import LabkitError, shown
from labkit.files.floats import ARRAYS, LARGEST, wide
from labkit.files.tensor_file import FLOAT_CODES, FLOATS
from labkit.inference.places import Places, as_torch, require_equal
from labkit.machine import in_parallel
from labkit.merging.planning import Change, Contribution
from labkit.merging.rounding import BlockMerger
from labkit.models.source import Source

Weights = Sequence[Mapping[str, float]]
"""The weight of every module: for each source one mapping of the module's name to its weight."""


@dataclass(eq=False)
class MergedTensor:
    """One tensor, merged in the model's memory.

    Attributes:
        change: what is added to it, at any weight.
        parameter: the model's parameter that it lies in, perhaps among others.
        values: the model's memory, in the shape of the base's tensor.
        base: the base's bytes.
        weights: that of each contribution, as they are in force; None where that is not known,
            since merging was broken off.
    """

    change: Change
    parameter: Tensor
    values: Tensor
    base: bytearray = field(repr=False)
    weights: tuple[float, ...] | None

    def wanted(self, weights: Weights) -> tuple[float, ...]:
        """The weight of each contribution."""
        return tuple(weights[one.term][one.part.name] for one in self.change.contributions)

    def merge(self, weights: tuple[float, ...], merger: BlockMerger) -> None:
        """Merge it at other weights.

        Raises:
            LabkitError: numbers that become too large, or a file that cannot be read.
        """
        self.weights = None
        some = tuple(
            replace(one, weight=weight)
            for one, weight in zip(self.change.contributions, weights, strict=True)
            if weight
        )
        if some:
            self._put(replace(self.change, contributions=some).update(), merger)
        else:
            self.values.copy_(as_torch(self.base, self.change.tensor))
        torch.autograd.graph.increment_version(self.values)
        self.weights = weights

    def _put(self, update: Delta, merger: BlockMerger) -> None:
        tensor = self.change.tensor
        shape = tensor.matrix_shape
        code = FLOAT_CODES[str(self.values.dtype).removeprefix("torch.")]
        base = np.frombuffer(self.base, ARRAYS[tensor.float_dtype]).reshape(shape)
        in_place = self.values.device.type == "cpu" and self.values.is_contiguous()
        merged = self.values if in_place else torch.empty(shape, dtype=self.values.dtype)
        rows = _as_array(merged, code).reshape(shape)
        _, squared, _, _ = merger.merge(base, tensor.float_dtype, update, 0, code, rows)
        if not math.isfinite(squared):  # as that of the change is, if all of its numbers are
            lost = np.isfinite(wide(base, tensor.float_dtype)) & ~np.isfinite(wide(rows, code))
            if lost.any():
                raise LabkitError(
                    f"{int(lost.sum())} numbers of {shown(tensor.name)!r} become too large for "
                    f"{FLOATS[code]} (its largest is {LARGEST[code]:g}); choose another dtype for "
                    "the live model, such as bfloat16 or float32, or smaller weights"
                )
        if not in_place:
            self.values.copy_(merged.reshape(self.values.shape))

    def direction(self, one: Contribution) -> Tensor:
        """`∂W/∂w`, dense, in the model's dtype and on its device: `ΔW` of one contribution.

        It is the same at every weight, as a layer weight scales the whole change.
        """
        tensor, delta = self.change.tensor, one.delta()
        rows, columns = tensor.matrix_shape
        found = torch.empty((rows, columns), dtype=self.values.dtype)
        step = max(1, NORM_ELEMENTS // max(1, columns))
        base = np.frombuffer(self.base, ARRAYS[tensor.float_dtype]).reshape(rows, columns)
        for start in range(0, rows, step):
            some = slice(start, start + step)
            added = np.zeros(base[some].shape)
            delta.add_rows_to(added, start, wide(base[some], tensor.float_dtype))
            found[some] = torch.from_numpy(added)
        return found.reshape(self.values.shape).to(self.values.device)


class MergedTensors:
    """All tensors of a model that are merged in its memory.

    Args:
        places: the model's memory.
        changes: what is added to which tensor of the base.
        sources: what the changes are read from.

    Attributes:
        tensors: those that the model has, each once.

    Raises:
        LabkitError: the model holds one in another form than the base's file, or in another size.
    """

    def __init__(
        self, places: Places, changes: Sequence[Change], sources: Sequence[Source]
    ) -> None:
        self._sources = tuple(sources)
        self._in_force: Weights | None = None
        self.tensors: list[MergedTensor] = []
        taken: set[tuple[int, tuple[int, ...]]] = set()
        for change in changes:
            place = places.of(change.tensor)
            if place is None:
                continue
            parameter, values = place
            where = (values.data_ptr(), tuple(values.shape))
            if where in taken:
                continue  # the head of a base whose embedding serves as head
            taken.add(where)
            if change.shape != change.tensor.shape:
                raise LabkitError(
                    f"{shown(self._sources[change.contributions[0].term].name)} changes the number "
                    f"of tokens from {change.tensor.shape[0]} to {change.shape[0]}, which a live "
                    "model keeps; leave what is outside the layers out (rest=0), or merge it "
                    "instead (lk.plan)"
                )
            stored = change.tensor.read_bytes()
            require_equal(values, as_torch(stored, change.tensor), change.tensor)
            none = (0.0,) * len(change.contributions)
            self.tensors.append(MergedTensor(change, parameter, values, stored, none))

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the base's numbers that are kept."""
        return sum(len(one.base) for one in self.tensors)

    def key(self, weights: Weights) -> tuple[tuple[float, ...], ...]:
        """What decides the numbers of all tensors: mixtures of one key have the same."""
        return tuple(one.wanted(weights) for one in self.tensors)

    def put(self, weights: Weights) -> None:
        """Merge those whose weights are not in force.

        Raises:
            LabkitError: as `MergedTensor.merge`, or a source's file has changed since it was
                opened.
        """
        if weights is self._in_force:  # as for every token of an answer
            return
        self._in_force = None
        jobs = [(one, one.wanted(weights)) for one in self.tensors]
        jobs = [(one, wanted) for one, wanted in jobs if one.weights != wanted]
        if any(any(wanted) for _, wanted in jobs):
            for source in self._sources:
                source.require_unchanged()
        own = threading.local()

        def merge(job: tuple[MergedTensor, tuple[float, ...]]) -> None:
            if not hasattr(own, "merger"):
                own.merger = BlockMerger()
            one, wanted = job
            one.merge(wanted, own.merger)

        if jobs:
            with in_parallel(merge, jobs) as done:
                for _ in done:
                    pass
        self._in_force = weights


def _as_array(values: Tensor, code: str) -> Any:
    """A tensor's memory as numpy's array, as `labkit.files.floats.ARRAYS` holds such numbers."""
    if code == "BF16":
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()
