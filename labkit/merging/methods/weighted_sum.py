"""`sum`: deltas are added, each times its weight. Never factors: `Σ w·(B·A)` is not `(Σ…B)(Σ…A)`.

Ilharco et al., "Editing Models with Task Arithmetic", 2022, arXiv 2212.04089.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from labkit.deltas.delta import Delta
from labkit.deltas.total import total_of
from labkit.merging.formula import BaseTensor, Method, WeightedDelta


@dataclass(frozen=True)
class WeightedSum(Method):
    """`Δ = Σ_t w_t·ΔW_t`."""

    name: ClassVar[str] = "sum"
    linear: ClassVar[bool] = True

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Add the deltas up."""
        weighted = [term.delta.times(term.weight) for term in terms]
        return total_of(weighted, base.tensor, base.row_count)
