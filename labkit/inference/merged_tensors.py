"""Tensors of a model in memory that are merged anew when their weights change.

What a plain LoRA adds to a linear module can be scaled while the model runs. For DoRA, parameters
that were trained whole, experts of a stack and full models the tensor itself must be another one.
It is merged as `labkit merge` writes it, by the same code: float64 from the base's numbers and the
deltas, rounded once to the model's dtype. Only tensors whose weights changed are merged.

A plan can be merged in place of all that: its own changes, by its method, rounded once to the dtype
that it would write. What LoRAs add is then switched off.

The base's numbers are kept in memory in the file's dtype. Deltas are read when they are needed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.deltas.delta import NORM_ELEMENTS, Delta
from labkit.errors import LabkitError, shown
from labkit.files.floats import ARRAYS, LARGEST, wide
from labkit.files.tensor_file import FLOAT_CODES, FLOATS, StoredTensor
from labkit.inference.mixtures import Mix, require_tokens
from labkit.inference.places import Places, as_torch, require_equal
from labkit.machine import in_parallel
from labkit.merging.planning import Change, Contribution, Plan
from labkit.merging.rounding import BlockMerger
from labkit.models.source import Source


@dataclass(eq=False)
class MergedTensor:
    """One tensor, merged in the model's memory.

    Attributes:
        tensor: the base's tensor.
        parameter: the model's parameter that it lies in, perhaps among others.
        values: the model's memory, in the shape of the base's tensor.
        base: the base's bytes.
        change: what sums add to it, at any weight; None where PEFT turns all of that.
        made_of: the change in force, and the dtype that it was rounded to (safetensors' name); None
            where that is not known, since merging was broken off.
    """

    tensor: StoredTensor
    parameter: Tensor
    values: Tensor
    base: bytearray = field(repr=False)
    change: Change | None = None
    made_of: tuple[Change | None, str] | None = (None, "")

    @property
    def dtype(self) -> str:
        """The model's dtype, by safetensors' name."""
        return FLOAT_CODES[str(self.values.dtype).removeprefix("torch.")]

    def weights(self, mix: Mix) -> tuple[float, ...]:
        """The weight of each contribution to a sum."""
        if self.change is None:
            return ()
        return tuple(mix.weights[one.term][one.part.name] for one in self.change.contributions)

    def wanted(self, mix: Mix) -> tuple[Change | None, str]:
        """The change that a mixture makes, and the dtype that it is rounded to."""
        if mix.plan is not None:
            change = mix.plan.changes.get(self.tensor.name)
            return change, mix.plan.output_dtype(self.tensor) if change else ""
        weights = self.weights(mix)
        if self.change is None or not any(weights):
            return None, ""
        some = zip(self.change.contributions, weights, strict=True)
        contributions = tuple(replace(one, weight=weight) for one, weight in some if weight)
        return replace(self.change, contributions=contributions), self.dtype

    def is_made_of(self, change: Change | None, dtype: str) -> bool:
        """Whether a change is in force."""
        if self.made_of is None:
            return False
        mine, rounded_to = self.made_of
        if mine is None or change is None:
            return mine is change
        return (
            dtype == rounded_to
            and (mine.method, mine.term_weights) == (change.method, change.term_weights)
            and len(mine.contributions) == len(change.contributions)
            and all(map(_same, mine.contributions, change.contributions))
        )

    def merge(self, change: Change | None, dtype: str, merger: BlockMerger) -> None:
        """Merge another change into the base's numbers.

        Raises:
            LabkitError: numbers that become too large, or a file that cannot be read.
        """
        self.made_of = None
        if change is not None:
            self._put(change.update(), dtype, merger)
        else:
            self.values.copy_(as_torch(self.base, self.tensor))
        torch.autograd.graph.increment_version(self.values)
        self.made_of = change, dtype

    def _put(self, update: Delta, code: str, merger: BlockMerger) -> None:
        tensor = self.tensor
        shape = tensor.matrix_shape
        base = np.frombuffer(self.base, ARRAYS[tensor.float_dtype]).reshape(shape)
        in_place = (
            self.values.device.type == "cpu" and self.values.is_contiguous() and code == self.dtype
        )
        torch_dtype = getattr(torch, FLOATS[code])
        merged = self.values if in_place else torch.empty(shape, dtype=torch_dtype)
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
        tensor, delta = self.tensor, one.delta()
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
        changes: what sums add to which tensor of the base, where PEFT does not turn it.
        sources: what the changes are read from.

    Attributes:
        tensors: those that the model has, each once.

    Raises:
        LabkitError: the model holds one in another form than the base's file, or in another size.
    """

    def __init__(
        self, places: Places, changes: Sequence[Change], sources: Sequence[Source]
    ) -> None:
        self._places = places
        self._sources = tuple(sources)
        self._in_force: Mix | None = None
        self.tensors: list[MergedTensor] = []
        # None for what the model does not load, or has as another tensor of the base.
        self._known: dict[str, MergedTensor | None] = {}
        self._taken: set[tuple[int, tuple[int, ...]]] = set()
        for change in changes:
            found = self._hold(change.tensor)
            if found is None:
                continue
            require_tokens(change, self._sources)
            found.change = change

    def _hold(self, tensor: StoredTensor) -> MergedTensor | None:
        """Keep the base's numbers of a tensor, which is not merged yet."""
        if tensor.name in self._known:
            return self._known[tensor.name]
        place = self._places.of(tensor)
        held = None
        if place is not None:
            parameter, values = place
            where = (values.data_ptr(), tuple(values.shape))
            if where not in self._taken:  # else the head of a base whose embedding serves as head
                self._taken.add(where)
                stored = tensor.read_bytes()
                require_equal(values, as_torch(stored, tensor), tensor)
                held = MergedTensor(tensor, parameter, values, stored)
                self.tensors.append(held)
        self._known[tensor.name] = held
        return held

    def hold(self, plan: Plan) -> None:
        """Keep the base's numbers of all tensors that a plan changes.

        Raises:
            LabkitError: the model holds one in another form than the base's file.
        """
        for change in plan.changes.values():
            self._hold(change.tensor)

    @property
    def names(self) -> list[str]:
        """The names of the tensors whose numbers in the base are kept."""
        return [one.tensor.name for one in self.tensors]

    @property
    def in_sums(self) -> list[MergedTensor]:
        """Those that a sum changes, too."""
        return [one for one in self.tensors if one.change is not None]

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the base's numbers that are kept."""
        return sum(len(one.base) for one in self.tensors)

    def key(self, mix: Mix) -> tuple[object, ...]:
        """What decides the numbers of all tensors: mixtures of one key have the same."""
        if mix.plan is not None:
            return (id(mix.plan),)
        return tuple(one.weights(mix) for one in self.in_sums)

    def put(self, mix: Mix) -> None:
        """Merge those that are not as a mixture has them.

        Raises:
            LabkitError: as `MergedTensor.merge`, or a source's file has changed since it was
                opened.
        """
        if mix is self._in_force:  # as for every token of an answer
            return
        self._in_force = None
        jobs = [(one, *one.wanted(mix)) for one in self.tensors]
        jobs = [job for job in jobs if not job[0].is_made_of(*job[1:])]
        if any(change is not None for _, change, _ in jobs):
            terms = mix.plan.recipe.terms if mix.plan else ()
            for source in [term.source for term in terms] or self._sources:
                source.require_unchanged()
        own = threading.local()

        def merge(job: tuple[MergedTensor, Change | None, str]) -> None:
            if not hasattr(own, "merger"):
                own.merger = BlockMerger()
            one, change, dtype = job
            one.merge(change, dtype, own.merger)

        if jobs:
            with in_parallel(merge, jobs) as done:
                for _ in done:
                    pass
        self._in_force = mix

    def let_go(self) -> None:
        """Let go of the model's memory, and of the base's numbers."""
        self.tensors, self._known, self._in_force = [], {}, None
        del self._places


def _same(one: Contribution, other: Contribution) -> bool:
    mine, its = ((each.weight, each.term, each.match) for each in (one, other))
    return one.part is other.part and mine == its


def _as_array(values: Tensor, code: str) -> Any:
    """A tensor's memory as numpy's array, as `labkit.files.floats.ARRAYS` holds such numbers."""
    if code == "BF16":
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()
