"""Gradients by layer weights, through tensors that are merged in a model's memory.

A layer weight scales the whole change of a tensor, so that `∂W/∂w = ΔW`, whatever its kind. What a
module's output changes by is then the derivative of the output in the direction `ΔW`, which forward
differentiation finds while the model runs. It is added to the output as `(w - w)·∂y/∂w`, with a
weight that counts for the backward pass alone: the output stays as it was, bit for bit.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.inference.merged_tensors import MergedTensor, MergedTensors


@contextmanager
def flowing(
    model: torch.nn.Module,
    merged: MergedTensors,
    weights: Tensor,
    columns: Mapping[tuple[int, str], int],
) -> Iterator[None]:
    """Let gradients flow to weights in the pass that runs meanwhile.

    Args:
        model: transformers' model.
        merged: its merged tensors, at these weights.
        weights: shape rows × modules, or modules.
        columns: which of them is the weight of an adapter's module.
    """
    of_parameter: dict[int, list[MergedTensor]] = defaultdict(list)
    for one in merged.in_sums:
        of_parameter[id(one.parameter)].append(one)
    with ExitStack() as hooks:
        hooks.enter_context(_experts_one_by_one(model))
        for module in model.modules():
            mine = {
                name: of_parameter[id(parameter)]
                for name, parameter in module.named_parameters(recurse=False)
                if id(parameter) in of_parameter
            }
            if mine:
                hook = _Hook(mine, weights, columns)
                hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def _experts_one_by_one(model: Any) -> Iterator[None]:
    """Let a mixture of experts run them one after the other, as torch can differentiate that.

    transformers' quicker ways give the same but for the last bits.
    """
    asked = getattr(model, "get_experts_implementation", None)
    if asked is None or not any(asked().values()):
        yield
        return
    before = asked()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


class _Hook:
    """Adds to what a module gives how it depends on the weights.

    Args:
        tensors: the merged tensors in each of the module's own parameters.
        weights: as `flowing`.
        columns: as `flowing`.
    """

    def __init__(
        self,
        tensors: Mapping[str, list[MergedTensor]],
        weights: Tensor,
        columns: Mapping[tuple[int, str], int],
    ) -> None:
        self._tensors, self._weights, self._columns = tensors, weights, columns
        self._inside = False

    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Called after the module's own pass."""
        if self._inside:  # the module runs again, for its derivative
            return output
        if not isinstance(output, Tensor):
            raise LabkitError(
                f"no gradient flows through {type(module).__name__}, whose tensors are merged in "
                "memory; use ablation in place of sensitivity, and fit with method='optuna'"
            )
        args, kwargs = _detached(args), _detached(kwargs)
        for column, directions in self._directions().items():
            self._inside = True
            try:
                slope = _derivative(module, directions(), args, kwargs)
            finally:
                self._inside = False
            weight = self._weights[..., column]
            change = (weight - weight.detach()).to(output.dtype)
            if change.dim():  # one for each row; experts see the tokens of all rows in one list
                change = change.repeat_interleave(len(output) // len(change))
                change = change.view(-1, *[1] * (output.dim() - 1))
            output = output + change * slope
        return output

    def _directions(self) -> dict[int, Any]:
        """For each weight that counts here, what makes `∂parameter/∂w` of each parameter."""
        found: dict[int, list[tuple[str, MergedTensor, Any]]] = defaultdict(list)
        for name, tensors in self._tensors.items():
            for one in tensors:
                for contribution in one.change.contributions if one.change else ():
                    column = self._columns[contribution.term, contribution.part.name]
                    found[column].append((name, one, contribution))

        def made(parts: list[tuple[str, MergedTensor, Any]]) -> dict[str, Tensor]:
            directions: dict[str, Tensor] = {}
            for name, one, contribution in parts:
                whole = directions.setdefault(name, torch.zeros_like(one.parameter))
                offset = one.values.storage_offset() - one.parameter.storage_offset()
                place = whole.as_strided(one.values.shape, one.values.stride(), offset)
                place += one.direction(contribution)
            return directions

        return {column: lambda parts=parts: made(parts) for column, parts in found.items()}


def _derivative(
    module: torch.nn.Module,
    directions: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """The derivative of a module's output in the direction of some of its parameters.

    Raises:
        LabkitError: the module uses what torch does not differentiate forwards.
    """
    parameters = {name: getattr(module, name).detach() for name in directions}

    def run(values: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(module, values, args, kwargs)

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own use of what it will give up
            _, slope = torch.func.jvp(run, (parameters,), (directions,))
    except (RuntimeError, NotImplementedError) as error:
        raise LabkitError(
            f"no gradient flows through {type(module).__name__}, whose tensors are merged in "
            "memory; use ablation in place of sensitivity, and fit with method='optuna'"
        ) from error
    return slope.detach()


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {name: _detached(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_detached, value))
    return value
