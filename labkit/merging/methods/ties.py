"""`ties`: small changes are left out, and of those that disagree about a sign the weaker side.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023, arXiv 2306.01708.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from labkit.deltas.delta import NORM_ELEMENTS, Delta
from labkit.deltas.elementwise import Elementwise
from labkit.deltas.passes import Cut, largest
from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.merging.formula import BaseTensor, WeightedDelta
from labkit.merging.methods.lone_weights import lone_weights
from labkit.merging.methods.parameters import as_number, as_shares, share_at

CONVENTIONS = ("mergekit", "peft")


@dataclass(frozen=True)
class Ties:
    """Trim each delta, elect a sign for each element, and average what agrees with it.

    Each `ΔW_t` keeps its largest elements by magnitude, a share `density` of them. Two conventions
    differ in what the layer weights do:

    - "mergekit": weights come before the election. The sign is that of `Σ w_t·ΔW_t`, and
      `Δ = Σ w_t·ΔW_t / Σ w_t` over the terms whose `w_t·ΔW_t` has it. Only the weights' ratios
      count: where one term alone speaks, its weight changes nothing. mergekit 0.1.5,
      `generalized_task_arithmetic.py`, with its `normalize: true`.
    - "peft": signs come first. The sign is that of `Σ ΔW_t`, and `Δ = Σ w_t·ΔW_t / n` over the `n`
      terms that have it. With all weights 1 it is the paper's. PEFT's `merge_utils.ties`, which
      PEFT's `ties_svd` applies to deltas.

    A sum of 0 counts as positive. A term whose weight is 0 in a layer is not asked there.

    Attributes:
        density: the share of elements that each delta keeps, above 0 and at most 1; rounded down
            to a number of elements, and at least one. Or a gradient with a share for each layer,
            whose first one counts outside the layers.
        convention: "mergekit" or "peft".
        scale: what the change is multiplied with at the end: the paper's λ.
    """

    density: float | Gradient = 0.2
    convention: str = "peft"
    scale: float = 1.0
    name: ClassVar[str] = "ties"
    linear: ClassVar[bool] = False
    mask_bits: ClassVar[int] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", as_shares("density", self.density))
        object.__setattr__(self, "scale", as_number("scale", self.scale))
        if self.convention not in CONVENTIONS:
            raise LabkitError(
                f"the convention {shown(repr(self.convention))} is unknown; expected "
                f"{' or '.join(CONVENTIONS)}"
            )

    def require(self, base: BaseTensor) -> None:
        """Check that weights count.

        Raises:
            LabkitError: one term alone divided by its own weight, or rows that the base lacks.
        """
        if self.convention == "mergekit" and len(base.weights) == 1:
            raise LabkitError(
                f"{base.where}: ties by mergekit's convention divides by the weights, so that the "
                "weights of one term alone would change nothing; take convention: peft, or two "
                "terms"
            )
        base.require_its_own_rows(self.name)

    def notes(self, tensors: Sequence[BaseTensor]) -> Iterator[str]:
        """Layers where a weight is divided by itself."""
        if self.convention == "mergekit":
            yield from lone_weights(self.name, tensors)

    def working_memory(self, terms: int) -> int:
        """A block's arrays: for each term delta, trimmed and mark, and what is between."""
        return (4 * terms + 6) * 8 * NORM_ELEMENTS

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Find what each delta keeps, in some passes over it."""
        given = base.one_delta_each(terms)
        weights = [term.weight for term in given]
        count = max(1, int(share_at(self.density, base.layer) * base.tensor.elements))
        cuts: list[Cut | None] = [None] * len(given)
        if count < base.tensor.elements:
            cuts = [largest(term.delta, base.tensor, count) for term in given]

        def rule(values: list[np.ndarray], old: np.ndarray, positions: np.ndarray) -> np.ndarray:
            trimmed = [
                np.where(cut.keeps(one, positions), one, 0.0) if cut else one
                for one, cut in zip(values, cuts, strict=True)
            ]
            return self._mean_of_agreeing(trimmed, weights) * self.scale

        def unsure(values: list[np.ndarray], bounds: list[np.ndarray]) -> np.ndarray:
            """Where a sign, or whether an element is kept, hangs on the last bits."""
            marks = np.zeros(values[0].shape, bool)
            votes, sizes, off = (np.zeros_like(values[0]) for _ in range(3))
            for one, bound, cut, weight in zip(values, bounds, cuts, weights, strict=True):
                size, share = np.abs(one), abs(weight) if self.convention == "mergekit" else 1.0
                marks |= size < bound
                kept = one
                if cut:
                    marks |= np.abs(size - cut.magnitude) < bound
                    kept = np.where(size >= cut.magnitude, one, 0.0)
                votes += kept * weight if self.convention == "mergekit" else kept
                sizes += np.abs(kept) * share
                off += bound * share
            off += sizes * (len(values) * 2.0**-50)  # the rounding of the votes' own sum
            return np.asarray(marks | ((np.abs(votes) < off) & (sizes > 0)))

        return Elementwise([term.delta for term in given], rule, base.tensor, unsure)

    def _mean_of_agreeing(
        self, trimmed: Sequence[np.ndarray], weights: Sequence[float]
    ) -> np.ndarray:
        before = self.convention == "mergekit"
        weighted = [one * weight for one, weight in zip(trimmed, weights, strict=True)]
        voting = weighted if before else trimmed
        election = np.zeros_like(voting[0])
        for one in voting:
            election += one
        sign = np.where(election >= 0, 1.0, -1.0)
        total, divisor = np.zeros_like(sign), np.zeros_like(sign)
        for vote, one, weight in zip(voting, weighted, weights, strict=True):
            agrees = vote * sign > 0
            total += np.where(agrees, one, 0.0)
            divisor += agrees * (weight if before else 1.0)
        divisor[divisor == 0] = 1.0
        return np.asarray(total / divisor)
