"""The norms that the editor draws behind its bars."""

from __future__ import annotations

import math

from labkit.merging.recipe import pattern_matches
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.surveys.delta_survey import survey, totals


def layer_norms(base: Checkpoint, adapter: Adapter, pattern: str = "") -> list[float]:
    """‖ΔW‖/‖W‖ of each layer, over the modules that an adapter changes there.

    Args:
        base: the base model.
        adapter: the adapter.
        pattern: a module pattern; all modules if empty.
    """
    table = survey(base, adapter, progress=False)
    table = table[table["layer"].notna()]
    if pattern:
        table = table[[pattern_matches(pattern, name) for name in table["name"]]]
    norms = [0.0] * base.layers
    if not table.empty:
        summed = totals(table, by="layer")
        for layer, norm in zip(summed["layer"], summed["relative_norm"], strict=True):
            norms[layer] = float(norm) if math.isfinite(norm) else 0.0
    return norms
