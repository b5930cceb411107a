"""`slerp`: from the base's tensor to a model's on an arc, in place of a straight line.

Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; for whole tensors as mergekit
does it (`merge_methods/slerp.py`, 0.1.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from labkit.deltas.arrays import Array
from labkit.deltas.delta import NORM_ELEMENTS, Delta
from labkit.deltas.elementwise import Elementwise
from labkit.deltas.passes import block_sums, rows_at_once
from labkit.errors import LabkitError
from labkit.merging.formula import BaseTensor, Method, WeightedDelta

PARALLEL = 0.9995
"""`|cos|` above which the arc is taken for a straight line."""
ROUNDING = 1e-6
"""By how much a cosine that is found quickly can be off, and far more."""
BLOCK_ARRAYS = 6
"""Arrays of float64 that a block takes: delta, result, positions, and what is between."""


@dataclass(frozen=True)
class Slerp(Method):
    """`W' = sin((1−t)·θ)/sin θ · W + sin(t·θ)/sin θ · (W + ΔW)`, with `t` the layer weight.

    `θ` is the angle between `W` and `W + ΔW`, each seen as one long vector. Where `|cos θ|` is
    above 0.9995 (nearly every tensor of a base and its LoRA), or one of the two is 0, it is the
    straight line `W + t·ΔW`. There are two models: the base and one term.
    """

    name: ClassVar[str] = "slerp"
    linear: ClassVar[bool] = False

    def require(self, base: BaseTensor) -> None:
        """Check that there are two models.

        Raises:
            LabkitError: more than one term, or rows that the base lacks.
        """
        if len(base.weights) != 1:
            raise LabkitError(
                f"{base.where}: the method slerp goes from the base to one model, and the recipe "
                f"has {len(base.weights)} terms; leave one, or merge with the method linear"
            )
        base.require_its_own_rows(self.name)

    def working_memory(self, terms: int) -> int:
        """A block's arrays."""
        return BLOCK_ARRAYS * 8 * NORM_ELEMENTS

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Find the angle in a pass over both tensors, and how much of each to take."""
        (term,) = base.one_delta_each(terms)
        of_base, of_delta = _shares(term.delta, base, term.weight)

        def rule(
            values: list[Array], old: Array, positions: Array, bounds: list[float]
        ) -> tuple[Array, None]:
            return old * of_base + values[0] * of_delta, None

        return Elementwise([term.delta], rule, base.tensor)


def _shares(delta: Delta, base: BaseTensor, t: float) -> tuple[float, float]:
    """How much of `W` and of `ΔW` is added to `W`."""
    if abs(_cosine(delta, base, quickly=True)) > PARALLEL + ROUNDING:
        return 0.0, t  # whatever its last bits
    cosine = _cosine(delta, base)
    if abs(cosine) > PARALLEL:
        return 0.0, t
    angle = math.acos(cosine)
    of_old = math.sin((1 - t) * angle) / math.sin(angle)
    of_new = math.sin(t * angle) / math.sin(angle)
    return of_old + of_new - 1, of_new


def _cosine(delta: Delta, base: BaseTensor, quickly: bool = False) -> float:
    """The cosine of the angle between `W` and `W + ΔW`; 1 if one of the two is 0.

    Args:
        delta: what is added.
        base: the base's tensor.
        quickly: by products and sums in any order, whose last bits hang on the processor.
    """
    sums: tuple[list[float], list[float], list[float]] = [], [], []
    delta, columns = base.placed(delta), base.tensor.matrix_shape[1]
    for start, old in base.at_hand.blocks(rows_at_once(columns, base.device == "cpu") * columns):
        new = old + 0.0
        add = delta.add_rows_to if quickly else delta.add_rows_in_order
        add(new, start, old)
        one, other = old.reshape(-1), new.reshape(-1)
        for some, (x, y) in zip(sums, ((one, one), (other, other), (one, other)), strict=True):
            some += [float(x @ y)] if quickly else block_sums(x * y, columns)
    of_old, of_new, of_both = map(math.fsum, sums)
    length = math.sqrt(of_old) * math.sqrt(of_new)
    return of_both / length if length else 1.0
