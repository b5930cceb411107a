"""`linear`: a weighted mean of the terms' models, as in model soups.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", 2022, arXiv 2203.05482.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from labkit.deltas.delta import Delta
from labkit.deltas.total import total_of
from labkit.errors import LabkitError
from labkit.gradients.gradient import plain
from labkit.merging.formula import BaseTensor, Method, WeightedDelta
from labkit.merging.methods.lone_weights import lone_weights

NOTHING = 1e-9
"""A sum of weights counts as 0 below this share of the sum of their magnitudes."""


@dataclass(frozen=True)
class Linear(Method):
    """`Δ = Σ_t w_t·ΔW_t / Σ_t w_t`: so `W + Δ` is the mean of the terms' models.

    The divisor counts every term's weight, also of terms that leave the tensor as the base has it.
    """

    name: ClassVar[str] = "linear"
    linear: ClassVar[bool] = False

    def require(self, base: BaseTensor) -> None:
        """Check that weights count, and can be divided by.

        Raises:
            LabkitError: one term alone, or weights that add up to 0.
        """
        if len(base.weights) == 1:
            raise LabkitError(
                f"{base.where}: the method linear divides by the sum of the weights, so that the "
                f"weight {plain(base.weights[0])} of one term alone would change nothing; merge "
                "with the method sum, or with two terms"
            )
        if abs(math.fsum(base.weights)) <= NOTHING * math.fsum(map(abs, base.weights)):
            raise LabkitError(
                f"{base.where}: the method linear divides by the sum of the weights "
                f"{', '.join(map(plain, base.weights))}, which is 0; choose others, or the method "
                "sum"
            )

    def notes(self, tensors: Sequence[BaseTensor]) -> Iterator[str]:
        """Layers where a weight is divided by itself."""
        yield from lone_weights(self.name, tensors)

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Add the deltas up, each times its share of the weights."""
        divisor = math.fsum(base.weights)
        weighted = [term.delta.times(term.weight / divisor) for term in terms]
        return total_of(weighted, base.tensor, base.row_count)
