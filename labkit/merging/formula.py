"""The formula of a merge, and what a method of merging is.

For each tensor of the base, in layer `l`, with terms `t` (an adapter and its layer weights):

    W'_l = round( W_l + Δ_l )          Δ_l = method( W_l, (w_{t,l}, ΔW_{t,l}) for each term t )

The plain method, `sum`, is `Δ_l = Σ_t w_{t,l}·ΔW_{t,l}`. `ΔW` is what a term makes of the tensor at
weight 1, less what the base has there: `s·B·A` for a LoRA (see `labkit.models.kinds`). All of it is
float64; `round` happens once, to the output's dtype (`labkit.merging.rounding`). Where every weight
is 0 the tensor keeps the base's bytes, whatever the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import ClassVar, Protocol

from labkit.deltas.delta import Delta
from labkit.deltas.resident_tensor import ResidentTensor
from labkit.deltas.total import total_of
from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor


@dataclass(frozen=True)
class WeightedDelta:
    """One term's share in the change of one tensor.

    Attributes:
        weight: `w`, the term's weight for the tensor's layer; never 0.
        delta: `ΔW`, what the term adds to the tensor at weight 1.
        term: the number of the term in the recipe. One term can have several shares, such as the
            factors of the query and of the key where the base holds both in one tensor.
    """

    weight: float
    delta: Delta
    term: int = 0


@dataclass(frozen=True)
class BaseTensor:
    """The tensor that a method changes.

    Attributes:
        tensor: where the base's numbers lie.
        row_count: rows of the result; more than the base's if tokens are added.
        layer: its layer; None outside the layers.
        weights: the weight that each term of the recipe has for it, whether or not the term
            changes it. Empty for a method that is linear, which does not ask.
        device: where a method looks through whole tensors: "cpu", or a GPU as torch names it. What
            it finds is the same.
    """

    tensor: StoredTensor
    row_count: int
    layer: int | None = None
    weights: tuple[float, ...] = ()
    device: str = "cpu"

    @cached_property
    def at_hand(self) -> StoredTensor:
        """The tensor for passes over it: on a device, one that is read there once."""
        return self.tensor if self.device == "cpu" else ResidentTensor.of(self.tensor, self.device)

    def placed(self, delta: Delta) -> Delta:
        """A delta for passes over it, on the same device."""
        return delta if self.device == "cpu" else delta.to(self.device)

    @property
    def where(self) -> str:
        """How errors name it."""
        layer = "outside the layers" if self.layer is None else f"in layer {self.layer}"
        return f"tensor {shown(self.tensor.name)!r} {layer}"

    def one_delta_each(self, terms: Sequence[WeightedDelta]) -> list[WeightedDelta]:
        """Add up the shares of each term: one for each term that changes the tensor."""
        return [
            WeightedDelta(
                self.weights[number],
                total_of([share.delta for share in shares], self.tensor, self.row_count),
                number,
            )
            for number, shares in groupby(terms, lambda share: share.term)
        ]

    def require_its_own_rows(self, method: str) -> None:
        """Check that no rows are added or taken away.

        Raises:
            LabkitError: there are other tokens than the base's.
        """
        rows = self.tensor.matrix_shape[0]
        if self.row_count != rows:
            raise LabkitError(
                f"{self.where} gets {self.row_count} rows in place of {rows}, and the method "
                f"{method} has no base to compare new rows with; merge with the method sum"
            )


class Method(Protocol):
    """A way to make one change of one tensor out of several weighted deltas.

    A method makes the same numbers on every device, whatever it draws at random: `labkit verify`
    computes them again. It is a frozen dataclass; its fields are the parameters that a recipe can
    give. One file of `labkit.merging.methods` holds one method, and a line of its registry makes it
    known. What a method does not say is as a sum has it.

    Attributes:
        name: what a recipe calls it.
        linear: `Δ` is linear in the weights: then a live model can turn them by scaling what each
            adapter adds, and a bake can put them into the adapter.
    """

    name: ClassVar[str]
    linear: ClassVar[bool]

    def require(self, base: BaseTensor) -> None:
        """Check before anything is written that the method makes sense for a tensor.

        Raises:
            LabkitError: it makes none, such as weights of which none would count.
        """
        return

    def notes(self, tensors: Sequence[BaseTensor]) -> Iterator[str]:
        """Say what is not wrong, but worth knowing before writing; nothing, unless a method does.

        Args:
            tensors: all that change.
        """
        yield from ()

    def working_memory(self, terms: int) -> int:
        """Bytes that merging one block of rows takes, beside what a sum of deltas takes.

        Args:
            terms: how many terms the recipe has.
        """
        return 0

    def held_memory(self, terms: int, elements: int) -> int:
        """Bytes that are held for one tensor while it is looked through, and while it is merged.

        Args:
            terms: how many terms the recipe has.
            elements: the tensor's.
        """
        return 0

    def combine(self, base: BaseTensor, terms: Sequence[WeightedDelta]) -> Delta:
        """Make the change `Δ` of one tensor.

        Args:
            base: the base's tensor.
            terms: what is added, in the order of the recipe's terms; at least one.
        """
