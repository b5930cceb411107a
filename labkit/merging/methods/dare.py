"""`dare`: of each change a random share is left out, and the rest is made larger for it.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch", 2023, arXiv 2311.03099.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from labkit.deltas.arrays import Array, only, places, shifted, zeros
from labkit.deltas.delta import NORM_ELEMENTS, Delta
from labkit.deltas.elementwise import Elementwise, rule_slices
from labkit.deltas.passes import block_sums, ordered_blocks
from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.merging.formula import BaseTensor, Method, WeightedDelta
from labkit.merging.methods.parameters import as_seed, as_shares, share_at

RESCALES = ("l1", "density", "none")
STEP = 0x9E3779B97F4A7C15
"""What SplitMix64's state grows by."""


@dataclass(frozen=True)
class Dare(Method):
    """`Δ = Σ_t w_t·c_t·M_t∘ΔW_t`: each element of `M_t` is 1 with probability `density`, else 0.

    Which elements stay hangs on the seed, the tensor's name, the number of the term and the
    element's place alone; see `random_bits`.

    Attributes:
        density: the share of elements that stay, above 0 and at most 1; or a gradient with a share
            for each layer, whose first one counts outside the layers.
        rescale: `c_t`: "density" is the paper's `1/density`; "l1" is `Σ|ΔW_t| / Σ|M_t∘ΔW_t|`, as
            mergekit 0.1.5 has it (`sparsify.py`), so that the sum of magnitudes stays; "none" is 1.
        seed: a whole number from 0 on.
    """

    density: float | Gradient = 0.5
    rescale: str = "l1"
    seed: int = 0
    name: ClassVar[str] = "dare"
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", as_shares("density", self.density))
        if self.rescale not in RESCALES:
            raise LabkitError(
                f"rescale is {shown(repr(self.rescale))}; expected one of {', '.join(RESCALES)}"
            )
        as_seed(self.seed)

    def require(self, base: BaseTensor) -> None:
        """Check that a delta is all that changes.

        Raises:
            LabkitError: rows that the base lacks.
        """
        base.require_its_own_rows(self.name)

    def working_memory(self, terms: int) -> int:
        """A block's arrays: for each term the delta, and what is between."""
        return (terms + 9) * 8 * NORM_ELEMENTS

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Draw what stays; by L1, weigh it in a pass over each delta."""
        given = base.one_delta_each(terms)
        drawn = [self._draw(base, term) for term in given]
        masks = [mask for mask, _ in drawn]
        factors = [term.weight * scale for term, (_, scale) in zip(given, drawn, strict=True)]

        def rule(
            values: list[Array], old: Array, positions: Array, bounds: list[float]
        ) -> tuple[Array, None]:
            total = zeros(old.shape, old)
            for one, mask, factor in zip(values, masks, factors, strict=True):
                total += only(mask.keeps(positions), one * factor)
            return total, None

        return Elementwise([term.delta for term in given], rule, base.tensor)

    def _draw(self, base: BaseTensor, term: WeightedDelta) -> tuple[Keeps, float]:
        """Draw what stays of a delta; and what it is multiplied with."""
        share = share_at(self.density, base.layer)
        mask = Mask(share, key_of(self.seed, base.tensor.name, term.term))
        if self.rescale != "l1":
            return mask, 1.0 if self.rescale == "none" else 1 / share
        sums = Sums(base.tensor.matrix_shape[1])
        for first, values, _ in ordered_blocks(base.placed(term.delta), base.at_hand):
            positions = places(first, first + len(values), values)
            sums.add(values, [mask.keeps(some) for some in pieces(positions)])
        return mask, sums.scale


@dataclass
class Sums:
    """Sums of magnitudes, of all elements and of those that stay.

    Attributes:
        columns: how many elements there are in a row.
        before: the sums of each block.
        after: likewise of what stays.
    """

    columns: int
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    def add(self, values: Array, kept: Sequence[Array]) -> None:
        """Add the elements of a block, or of several.

        Args:
            values: the elements, flat.
            kept: which of each piece of them stay, as `Keeps` tells it.
        """
        magnitudes = abs(values)
        self.before += block_sums(magnitudes, self.columns)
        for some, bits in zip(pieces(magnitudes), kept, strict=True):
            some[...] = only(bits, some)
        self.after += block_sums(magnitudes, self.columns)

    @property
    def scale(self) -> float:
        """What makes the second sum the first one; 1 where nothing is left."""
        left = math.fsum(self.after)
        return math.fsum(self.before) / left if left else 1.0


def pieces(values: Array) -> Iterator[Array]:
    """The array in the pieces that a rule is given."""
    return (values[some] for some in rule_slices(values))


class Keeps(Protocol):
    """Which elements of a tensor stay."""

    def keeps(self, positions: Array) -> Array:
        """Tell which elements stay: for each a whole number with all bits 1 (-1), or 0."""


@dataclass(frozen=True)
class Mask:
    """Which elements of a tensor stay, at random.

    Attributes:
        density: the probability.
        key: what the draw hangs on.
    """

    density: float
    key: int

    def keeps(self, positions: Array) -> Array:
        """Tell which elements stay: for each a whole number with all bits 1 (-1), or 0."""
        return below(drawn_at(self.key, positions), math.ceil(self.density * 2**53))


def below(drawn: Array, limits: Array | int) -> Array:
    """Tell which draws are below a limit; overwrites the draws.

    The difference's sign, over all bits: both are far from the ends of what 64 bits hold.
    """
    drawn -= limits
    drawn >>= 63
    return drawn


def key_of(seed: int, tensor: str, term: int) -> int:
    """A key of 64 bits for the random numbers of one term in one tensor."""
    digest = hashlib.sha256(f"{seed}\0{term}\0{tensor}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def drawn_at(key: int, positions: Array) -> Array:
    """A random whole number below 2⁵³ (as many as a float64 has) for each position."""
    return shifted(random_bits(key, positions), 11)


def random_bits(key: int, positions: Array) -> Array:
    """64 random bits (int64) for each position, each by itself: the same in every block.

    SplitMix64, whose state is a counter: Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014; constants of Vigna's `splitmix64.c`. Products and sums of whole
    numbers have the same lower 64 bits with a sign and without.
    """
    bits = positions * signed(STEP)
    bits += signed(key + STEP)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= shifted(bits, shift)
        bits *= signed(factor)
    bits ^= shifted(bits, 31)
    return bits


def signed(number: int) -> int:
    """The number from -2⁶³ on whose lower 64 bits are those of this one."""
    return (number + 2**63) % 2**64 - 2**63
