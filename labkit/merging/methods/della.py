"""`della`: as `dare`, but the larger an element is in its row, the likelier it stays.

Deep et al., "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based
Sampling", 2024, arXiv 2406.11617.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from labkit.deltas.arrays import (
    Array,
    as_numpy,
    bits_of,
    marks_of,
    of_numpy,
    on_device,
    places,
    places_where,
    put_in_rows,
    sorted_rows,
    stable_order,
)
from labkit.deltas.passes import ordered_blocks
from labkit.errors import LabkitError, shown
from labkit.merging.formula import BaseTensor, WeightedDelta
from labkit.merging.methods.dare import Dare, Keeps, Sums, below, drawn_at, key_of, pieces
from labkit.merging.methods.parameters import as_number, share_at


@dataclass(frozen=True)
class Della(Dare):
    """`Δ = Σ_t w_t·c_t·M_t∘ΔW_t`, where `M_t` keeps large elements with a higher probability.

    In a row of `n` elements the one with `k` smaller ones in it stays with the probability
    `density − epsilon + 2·epsilon·k/(n − 1)`, by magnitude, of equals the first one counted as the
    smaller. A vector is one row. So it is in mergekit 0.1.5 (`sparsify.py`), whose `della_linear`
    this is; its `della` elects signs besides.

    Attributes:
        density: as in `dare`: the mean probability.
        rescale: likewise.
        seed: likewise.
        epsilon: half of what the largest element's probability is above the smallest's;
            `density ± epsilon` must lie between 0 and 1.
    """

    epsilon: float = 0.15
    name: ClassVar[str] = "della"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "epsilon", as_number("epsilon", self.epsilon))
        density = self.density
        for share in [density] if isinstance(density, float) else density:
            if not 0 < share - abs(self.epsilon) <= share + abs(self.epsilon) < 1:
                raise LabkitError(
                    f"density {shown(share)} ± epsilon {shown(self.epsilon)} must lie between 0 "
                    "and 1; choose a smaller epsilon"
                )

    def working_memory(self, terms: int) -> int:
        """A block's arrays: those of `dare`, and ranks."""
        return super().working_memory(terms + 4)

    def held_memory(self, terms: int, elements: int) -> int:
        """What was drawn: a bit for each element of each term."""
        return terms * elements // 8

    def _draw(self, base: BaseTensor, term: WeightedDelta) -> tuple[Keeps, float]:
        """Draw in a pass over the delta; the result is kept, a bit for each element."""
        tensor, density = base.tensor, share_at(self.density, base.layer)
        key = key_of(self.seed, tensor.name, term.term)
        columns = tensor.matrix_shape[1]
        packed = np.zeros(tensor.elements // 8 + 1, np.uint8)
        left, place, sums = np.zeros(0, bool), 0, Sums(columns)
        for first, values, _ in ordered_blocks(base.placed(term.delta), base.at_hand):
            # A vector is one row.
            rows = abs(values).reshape((1, -1) if len(tensor.shape) < 2 else (-1, columns))
            limits = self._limits(density, rows)
            kept = below(drawn_at(key, places(first, first + len(values), values)), limits)
            if self.rescale == "l1":
                sums.add(values, list(pieces(kept)))
            left = np.concatenate([left, as_numpy(kept != 0)])
            whole = len(left) // 8
            packed[place : place + whole] = np.packbits(left[: 8 * whole])
            left, place = left[8 * whole :], place + whole
        packed[place:] = np.packbits(np.concatenate([left, np.zeros(8, bool)]))[
            : len(packed) - place
        ]
        scales = {"none": 1.0, "density": 1 / density, "l1": sums.scale}
        return Drawn(packed), scales[self.rescale]

    def _limits(self, density: float, rows: Array) -> Array:
        """What each element's draw must be below, by its rank in its row.

        Args:
            density: the mean probability.
            rows: magnitudes.
        """
        columns = rows.shape[1]
        shares = np.arange(columns) / max(1, columns - 1)
        odds = density - self.epsilon + shares * (2 * self.epsilon)
        of_rank = np.ceil(odds * 2.0**53).astype(np.int64)
        # To sort numbers is quicker than to sort places by them: so the lowest bits hold the place,
        # which also keeps equals in their order.
        low = (1 << (columns - 1).bit_length()) - 1
        bits = bits_of(rows)
        keys = sorted_rows((bits & ~low) | places(0, columns, rows))
        limits = put_in_rows(keys & low, of_rank)
        alike = ((keys[:, 1:] ^ keys[:, :-1]) & ~low) == 0
        unsure = places_where(alike.any(axis=1) & ((bits & low) != 0).any(axis=1))
        if len(unsure):  # numbers that differ in the lowest bits alone
            limits[unsure] = put_in_rows(stable_order(rows[unsure]), of_rank)
        return limits.reshape(-1)


@dataclass(frozen=True)
class Drawn:
    """Which elements of a tensor stay, drawn before.

    Attributes:
        packed: a bit for each element, as `numpy.packbits` packs them.
    """

    packed: np.ndarray
    _elsewhere: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)

    def keeps(self, positions: Array) -> Array:
        """Tell which elements stay: for each a whole number with all bits 1 (-1), or 0."""
        packed = self.packed
        if not of_numpy(positions):
            device = str(positions.device)
            if device not in self._elsewhere:
                self._elsewhere[device] = on_device(device, self.packed)
            packed = self._elsewhere[device]
        # The first of eight is the highest bit.
        return marks_of(((packed[positions >> 3] >> (~positions & 7)) & 1) != 0)
