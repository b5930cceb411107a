"""`ties`: small changes are left out, and of those that disagree about a sign the weaker side.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023, arXiv 2306.01708.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from labkit.deltas.arrays import Array, bits_of, marks_of, only, zeros
from labkit.deltas.delta import NORM_ELEMENTS, Delta
from labkit.deltas.elementwise import Elementwise
from labkit.deltas.passes import HELD_BYTES, MOST_HELD, Cut, largest
from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.merging.formula import BaseTensor, Method, WeightedDelta
from labkit.merging.methods.lone_weights import lone_weights
from labkit.merging.methods.parameters import as_number, as_shares, share_at

CONVENTIONS = ("mergekit", "peft")


@dataclass(frozen=True)
class Ties(Method):
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

    def held_memory(self, terms: int, elements: int) -> int:
        """Elements near a cut, of one term at a time; once more while they are joined."""
        return HELD_BYTES * min(elements, MOST_HELD)

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Find what each delta keeps, in some passes over it."""
        given = base.one_delta_each(terms)
        weights = [term.weight for term in given]
        count = max(1, int(share_at(self.density, base.layer) * base.tensor.elements))
        cuts: list[Cut | None] = [None] * len(given)
        if count < base.tensor.elements:
            found = [largest(base.placed(term.delta), base.at_hand, count) for term in given]
            # What is 0 has no sign, and changes nothing whether it is kept or not.
            cuts = [cut if cut.magnitude else None for cut in found]

        def rule(
            values: list[Array], old: Array, positions: Array, bounds: list[float]
        ) -> tuple[Array, Array | None]:
            kept = [
                cut.keeps(one, positions) if cut else marks_of(one != 0)
                for one, cut in zip(values, cuts, strict=True)
            ]
            change, votes = self._mean_of_agreeing(values, kept, weights)
            if not any(bounds):
                return change, None
            return change, self._unsure(values, kept, votes, cuts, weights, bounds)

        return Elementwise([term.delta for term in given], rule, base.tensor, jumps=True)

    def _mean_of_agreeing(
        self, values: Sequence[Array], kept: Sequence[Array], weights: Sequence[float]
    ) -> tuple[Array, Array]:
        """Elect a sign for each element and average what agrees with it.

        Args:
            values: each delta's elements.
            kept: where they are kept and not 0: all bits, or none.
            weights: the deltas' weights.

        Returns:
            the change; and the sums whose signs were elected.
        """
        before = self.convention == "mergekit"
        trimmed = [only(marks, one) for marks, one in zip(kept, values, strict=True)]
        weighted = [one * weight for one, weight in zip(trimmed, weights, strict=True)]
        voting = weighted if before else trimmed
        election = zeros(voting[0].shape, voting[0])
        for one in voting:
            election += one
        total, divisor = zeros(election.shape, election), zeros(election.shape, election)
        for vote, marks, one, weight in zip(voting, kept, weighted, weights, strict=True):
            disagrees = bits_of(vote) ^ bits_of(election)
            disagrees >>= 63  # the sign, over all bits
            agrees = marks & ~disagrees
            total += only(agrees, one)
            divisor += only(agrees, weight if before else 1.0)
        divisor += divisor == 0
        total /= divisor
        return total * self.scale, election

    def _unsure(
        self,
        values: Sequence[np.ndarray],
        kept: Sequence[np.ndarray],
        votes: np.ndarray,
        cuts: Sequence[Cut | None],
        weights: Sequence[float],
        bounds: Sequence[float],
    ) -> np.ndarray:
        """Mark where a sign, or whether an element is kept, hangs on the last bits."""
        marks, somebody_votes = np.zeros(votes.shape, bool), np.zeros(votes.shape, np.int64)
        off = 0.0
        for one, here, cut, weight, bound in zip(values, kept, cuts, weights, bounds, strict=True):
            size = np.abs(one)
            bound *= 2  # what follows is rounded, too
            if cut:
                marks |= (size > cut.magnitude - bound) & (size < cut.magnitude + bound)
            if cut is None or cut.magnitude <= 2 * bound:
                marks |= size < bound
            somebody_votes |= here
            off += bound * (abs(weight) if self.convention == "mergekit" else 1.0)
        # The rounding of the votes' own sum: each vote is at most 2⁵⁰ times its bound.
        off *= 1 + len(values)
        marks |= (np.abs(votes) < off) & (somebody_votes != 0)
        return marks
