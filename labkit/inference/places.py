"""Where a model in memory keeps the numbers of a base's tensor.

transformers gives some tensors other names than their files have, and since its fifth version puts
the matrices of all experts of a layer into one stack. Names say where to look, and numbers whether
it is the right place: what a model holds there must be what the file does.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import FLOATS, StoredTensor
from labkit.models.checkpoint import Checkpoint
from labkit.models.names import canonical

STACKED = {
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "down_proj": ("down_proj", None),
}
"""An expert's matrix -> the stack that holds it, and which half of the expert's rows it is."""


class Places:
    """Finds a model's memory for tensors of its base.

    Args:
        model: transformers' model, as it was loaded.
        base: the files that it was loaded from.
    """

    def __init__(self, model: Any, base: Checkpoint) -> None:
        self._base = base
        self._parameters = list(model.parameters())
        self._named: dict[str, Tensor] = {}
        self._by_canonical_name: dict[str, list[Tensor]] = defaultdict(list)
        for named in (model.named_parameters, model.named_buffers):
            for name, tensor in named(remove_duplicate=False):
                self._named[name] = tensor
                self._by_canonical_name[canonical(name)].append(tensor)

    def parameter_of(self, tensor: StoredTensor) -> Tensor | None:
        """The whole parameter that holds a base's tensor, perhaps among others."""
        found = self._place(tensor)
        return None if found is None else found[0]

    def of(self, tensor: StoredTensor) -> tuple[Tensor, Tensor] | None:
        """The memory of a base's tensor; None for what the model does not load.

        Returns:
            the parameter that it lies in, and the view of it that has the tensor's shape.

        Raises:
            LabkitError: the model holds it in another form.
        """
        found = self._place(tensor)
        if found is None:
            if self._all_are_known():
                return None  # layers for other tasks, say, which transformers leaves in the file
            raise LabkitError(_another_form(tensor, "has no such parameter"))
        whole, values = found[0], found[1].detach()
        if not values.is_floating_point():
            raise LabkitError(
                f"the model is quantised in memory, where plain LoRA alone can be turned, and "
                f"{shown(tensor.name)!r} would have to be merged; leave out quantize, or merge it "
                "(lk.plan)"
            )
        if values.shape != tensor.shape:
            raise LabkitError(_another_form(tensor, f"has the shape {tuple(values.shape)} there"))
        return whole, values

    def _place(self, tensor: StoredTensor) -> tuple[Tensor, Tensor] | None:
        """The parameter, and the view of it that has the tensor's shape where names are right."""
        whole = self._named.get(tensor.name)
        if whole is None:
            candidates = self._by_canonical_name.get(canonical(tensor.name), [])
            whole = candidates[0] if len(candidates) == 1 else None
        if whole is not None:
            return whole, whole
        return self._in_stack(canonical(tensor.name))

    def _in_stack(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The memory of one expert's matrix in a stack of experts."""
        experts, _, last = name.removesuffix(".weight").rpartition(".experts.")
        number, _, leaf = last.partition(".")
        if leaf not in STACKED or not number.isdecimal():
            return None
        stack, half = STACKED[leaf]
        candidates = self._by_canonical_name.get(f"{experts}.experts.{stack}", [])
        if len(candidates) != 1 or candidates[0].dim() != 3:
            return None
        whole = candidates[0]
        if int(number) >= len(whole):
            return None
        expert = whole[int(number)]
        rows = len(expert) // 2
        return whole, expert if half is None else expert[half * rows : (half + 1) * rows]

    def _all_are_known(self) -> bool:
        """Whether the base's tensors, by their names, fill all of the model."""
        found = {id(self.parameter_of(tensor)) for tensor in self._base.tensors.values()}
        return all(id(parameter) in found for parameter in self._parameters)


def require_equal(values: Tensor, stored: Tensor, tensor: StoredTensor) -> None:
    """Check that a model's memory holds what the base's file does.

    Args:
        values: the memory.
        stored: the file's numbers, of the same shape.
        tensor: the tensor.

    Raises:
        LabkitError: it holds other numbers.
    """
    if not torch.equal(values.cpu(), stored.to(values.dtype)):
        raise LabkitError(_another_form(tensor, "has other numbers there"))


def as_torch(stored: Any, tensor: StoredTensor) -> Tensor:
    """A tensor's bytes as torch's tensor of its dtype, without copying them."""
    if not tensor.elements:
        return torch.empty(tensor.shape, dtype=getattr(torch, FLOATS[tensor.float_dtype]))
    dtype = getattr(torch, FLOATS[tensor.float_dtype])
    return torch.frombuffer(stored, dtype=dtype).reshape(tensor.shape)


def _another_form(tensor: StoredTensor, why: str) -> str:
    return (
        f"transformers holds {shown(tensor.name)!r} of {shown(tensor.file.parent.name)} in another "
        f"form than the file does: its model {why}; a live model cannot merge there, so merge it "
        "instead (lk.plan)"
    )
