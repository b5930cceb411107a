"""The formula of a merge, and what a method of merging is.

For each tensor of the base, in layer `l`, with terms `t` (an adapter and its layer weights):

    W'_l = round( W_l + Δ_l )          Δ_l = method( W_l, (w_{t,l}, ΔW_{t,l}) for each term t )

The plain method, `sum`, is `Δ_l = Σ_t w_{t,l}·ΔW_{t,l}`. `ΔW` is what a term makes of the tensor at
weight 1, less what the base has there: `s·B·A` for a LoRA (see `labkit.models.kinds`). All of it is
float64; `round` happens once, to the output's dtype (`labkit.merging.rounding`). Where every weight
is 0 the tensor keeps the base's bytes, whatever the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from labkit.deltas.delta import Delta
from labkit.files.tensor_file import StoredTensor


@dataclass(frozen=True)
class WeightedDelta:
    """One term's share in the change of one tensor.

    Attributes:
        weight: `w`, the term's weight for the tensor's layer; never 0.
        delta: `ΔW`, what the term adds to the tensor at weight 1.
    """

    weight: float
    delta: Delta


@dataclass(frozen=True)
class BaseTensor:
    """The tensor that a method changes.

    Attributes:
        tensor: where the base's numbers lie.
        row_count: rows of the result; more than the base's if tokens are added.
    """

    tensor: StoredTensor
    row_count: int


class Method(Protocol):
    """A way to make one change of one tensor out of several weighted deltas.

    A method makes the same numbers on every device, whatever it draws at random: `labkit verify`
    computes them again. It is a frozen dataclass; its fields are the parameters that a recipe can
    give. One file of `labkit.merging.methods` holds one method, and a line of its registry makes it
    known.

    Attributes:
        name: what a recipe calls it.
        linear: `Δ` is linear in the weights: then a live model can turn them by scaling what each
            adapter adds, and a bake can put them into the adapter.
    """

    name: ClassVar[str]
    linear: ClassVar[bool]

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Make the change `Δ` of one tensor.

        Args:
            base: the base's tensor.
            terms: what is added, in the order of the recipe's terms; at least one.
        """
