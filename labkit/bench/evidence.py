"""Which layers matter for two texts, at the gradient on the screen: what the editor's evidence is.

As `lk.sensitivity`, for the layer weights of one gradient: a weight of "attention" moves the
modules of attention alone, and one of "all modules" those that have no gradient of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from labkit.inference.live_model import LiveModel, live
from labkit.merging.recipe import Recipe
from labkit.probing.intervals import Bootstrap
from labkit.probing.scores import Reader
from labkit.probing.texts import Texts

TOKENS = 32
"""Tokens of each passage that are read: benchmarks/what_matters.py says what that costs."""
COPIED_BYTES = 500_000_000
"""Up to this size of the base, a copy in bfloat16 is measured, in two thirds of the time."""

Row = tuple[float, float | None, float | None]


def quick_copy(model: LiveModel) -> LiveModel:
    """The same model in bfloat16, where a copy is small and quicker; else the model itself."""
    size = sum(tensor.nbytes for tensor in model.base.tensors.values())
    if model.device != "cpu" or model.quantize or size > COPIED_BYTES:
        return model
    return live(model.base, *model.adapters, rest=model.rest, device="cpu", dtype="bfloat16")


def evidence(
    model: LiveModel, texts: Texts, recipe: Recipe, adapter: int, pattern: str
) -> list[Row]:
    """How the NLL begins to change as the weight of each layer is raised, in nats per token.

    Args:
        model: the live model.
        texts: passages.
        recipe: what is in force.
        adapter: the number of the adapter whose gradient is asked about.
        pattern: the pattern of the modules that the gradient is for; "" for those of no pattern.

    Returns:
        for each layer the estimate and its 95 % interval, (None, None) for a single document.
    """
    reader = Reader(model, texts)
    slopes = reader.gradient(model.mix(recipe.terms))[1]
    draws = Bootstrap([passage.document for passage in texts], reader.counts)
    term = recipe.terms[adapter]
    rows: list[Row] = []
    for layer in range(model.base.layers):
        columns = [
            column
            for column, (index, name) in enumerate(model.module_names)
            if index == adapter
            and model.layer_of(index, name) == layer
            and term.pattern_for(name) == pattern
        ]
        found = draws.estimate(slopes[:, columns].sum(axis=1))
        known = math.isfinite(found.low)
        rows.append((found.value, *((found.low, found.high) if known else (None, None))))
    return rows


def said_of(texts: Sequence[Texts], layers: int, gradient: str) -> str:
    """What was measured, how, and at which gradient."""
    read = " and ".join(f"{len(one)} passage{'s' * (len(one) > 1)} of {one.name}" for one in texts)
    intervals = layers * len(texts)
    return (
        f"How the NLL begins to change as a layer's weight is raised (∂NLL/∂w, nats per token), at "
        f"{gradient}. Read: the first {TOKENS} tokens of {read}. Whiskers are 95 % intervals; of "
        f"{intervals} of them {intervals * 0.05:g} leave out the truth."
    )
