"""The layer weight of an adapter's module where no base says which layer it is in."""

from __future__ import annotations

import re

from labkit.errors import LabkitError, shown, spelled
from labkit.merging.recipe import Term

LAYER = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d{1,6})\..*")
"""A module's name, split at its first number: the layer, of the stack whose name comes before."""


def layer_and_weight(term: Term, module: str, rest: float | None) -> tuple[int | None, float]:
    """The layer of a module by its name (None outside the layers), and the weight it gets.

    Args:
        term: an adapter and its layer weights.
        module: the module's name.
        rest: the weight outside the layers.

    Raises:
        LabkitError: a layer that has no weight, or a module outside the layers and no `rest`.
    """
    match, layers = LAYER.fullmatch(module), len(term.weights)
    if match is None:
        if rest is None:
            raise LabkitError(
                f"module {shown(module)!r} of {shown(term.adapter.name)} lies outside the layers, "
                "and no layer weight counts for it; say how much of it to keep with "
                f"{spelled('rest=', '--rest')} (1 for all of it, 0 for none)"
            )
        return None, float(rest)
    layer = int(match["layer"])
    if layer >= layers:
        raise LabkitError(
            f"module {shown(module)!r} of {shown(term.adapter.name)} lies in layer {layer}, and "
            f"there are {layers} weights; write one weight for each layer of the base model, the "
            "first one is layer 0's"
        )
    return layer, term.gradient_for(module)[layer]
