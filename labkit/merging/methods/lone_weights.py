"""Says where a method that divides by the weights divides a weight by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from labkit.merging.formula import BaseTensor

MOST_NAMED = 8
"""Layers that are named."""


def lone_weights(method: str, tensors: Sequence[BaseTensor]) -> Iterator[str]:
    """Name the layers where one term alone has a weight, and it is not 1.

    Args:
        method: the method's name.
        tensors: all that change.
    """
    alone: dict[str, None] = {}
    for tensor in tensors:
        there = [weight for weight in tensor.weights if weight]
        if len(there) == 1 and there[0] != 1:
            alone["outside" if tensor.layer is None else str(tensor.layer)] = None
    if alone:
        named = ", ".join(list(alone)[:MOST_NAMED])
        yield (
            f"the method {method} divides by the weights: where one term alone has one, it counts "
            f"as 1 (layers {named}{', …' if len(alone) > MOST_NAMED else ''})"
        )
