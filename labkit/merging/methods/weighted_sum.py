"""`sum`: deltas are added, each times its weight. Never factors: `Σ w·(B·A)` is not `(Σ…B)(Σ…A)`.

Ilharco et al., "Editing Models with Task Arithmetic", 2022, arXiv 2212.04089.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from labkit.deltas.delta import Delta
from labkit.deltas.total import total_of
from labkit.merging.formula import BaseTensor, WeightedDelta


@dataclass(frozen=True)
class WeightedSum:
    """`Δ = Σ_t w_t·ΔW_t`."""

    name: ClassVar[str] = "sum"
    linear: ClassVar[bool] = True

    def require(self, base: BaseTensor) -> None:
        """A sum always makes sense."""

    def notes(self, tensors: Sequence[BaseTensor]) -> Iterator[str]:
        """None: the weights are what they are."""
        yield from ()

    def working_memory(self, terms: int) -> int:
        """Nothing more."""
        return 0

    def held_memory(self, terms: int, elements: int) -> int:
        """Nothing."""
        return 0

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Add the deltas up."""
        weighted = [term.delta.times(term.weight) for term in terms]
        return total_of(weighted, base.tensor, base.row_count)
