"""`Mix`: which weights, or which plan, a live model answers with."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import FLOAT_CODES, FLOATS
from labkit.machine import workers
from labkit.merging.planning import Change, Plan
from labkit.merging.rounding import BUFFER_BYTES
from labkit.models.source import Source


@dataclass(frozen=True, eq=False)
class Mix:
    """A mixture, resolved for a model's modules: a sum, or the merge of a plan.

    Attributes:
        weights: of a sum, one mapping of module to weight for each adapter, in the model's order.
            All are 0 where a plan is merged in their place.
        plan: what is merged in the model's memory as `Plan.write` writes it; None for a sum.
    """

    weights: tuple[dict[str, float], ...]
    plan: Plan | None = None

    def flat(self) -> list[float]:
        """All weights in one list, in the order of `LiveModel.module_names`."""
        return [weight for of_adapter in self.weights for weight in of_adapter.values()]

    @property
    def mean(self) -> float:
        """The mean weight: of a sum over its modules, of a plan over its sources' tensors."""
        weights = self.flat()
        if self.plan is not None:
            weights = [row.weight for row in self.plan.ledger if row.weight is not None]
        return math.fsum(weights) / len(weights)

    @property
    def key(self) -> object:
        """What tells mixtures of one model apart."""
        return tuple(self.flat()) if self.plan is None else self


def require_form(plan: Plan) -> None:
    """Check that a live model of the plan's base has the tensors that the plan would write.

    Raises:
        LabkitError: a head of its own, or other tokens than the base's.
    """
    base, recipe = plan.base, plan.recipe
    outside = [name for name in plan.changes if base.layer_of(name) is None]
    if recipe.untie and base.tied and outside:
        raise LabkitError(
            "the recipe unties embedding and head, which a live model keeps as one tensor; leave "
            "untie out, or write it (lk.plan)"
        )
    sources = [term.source for term in recipe.terms]
    for name in outside:
        require_tokens(plan.changes[name], sources)


def require_tokens(change: Change, sources: Sequence[Source]) -> None:
    """Check that a tensor keeps its rows.

    Args:
        change: what is added to it.
        sources: the terms' sources, in order.

    Raises:
        LabkitError: it gets other tokens than the base's.
    """
    if change.shape != change.tensor.shape:
        raise LabkitError(
            f"{shown(sources[change.contributions[0].term].name)} changes the number of tokens "
            f"from {change.tensor.shape[0]} to {change.shape[0]}, which a live model keeps; leave "
            "what is outside the layers out (rest=0), or merge it instead (lk.plan)"
        )


def require_dtype(plan: Plan, dtype: str) -> None:
    """Check that what a plan does not change is in a live model as the plan would write it.

    Args:
        plan: the plan.
        dtype: the live model's, as torch calls it.

    Raises:
        LabkitError: a merge would round it to another dtype.
    """
    base, recipe = plan.base, plan.recipe
    stored = {tensor.dtype for tensor in base.tensors.values() if tensor.dtype in FLOATS}
    if recipe.dtype not in ("auto", dtype) and stored != {FLOAT_CODES[recipe.dtype]}:
        raise LabkitError(
            f"the recipe's merge is all in {recipe.dtype}, and the live model in {dtype} has other "
            f"numbers in what does not change; load it with dtype={recipe.dtype!r}, or leave the "
            "recipe's dtype at auto"
        )


def memory_to_merge(plan: Plan, kept: Collection[str] = ()) -> int:
    """Bytes of memory that a plan takes beside the live model that it is merged in.

    Args:
        plan: the plan.
        kept: names of tensors whose numbers in the base are kept already.
    """
    changes = plan.changes.values()
    if not changes:
        return 0
    method, terms = plan.recipe.method, len(plan.recipe.terms)
    largest = max(change.tensor.elements for change in changes)
    factors = max(sum(one.part.memory for one in change.contributions) for change in changes)
    merged = max(plan.output_bytes(change.tensor) for change in changes)
    # A tensor for each processor, whole in the output's dtype before it is the model's.
    each = merged + factors + BUFFER_BYTES
    each += method.working_memory(terms) + method.held_memory(terms, largest)
    new = sum(one.tensor.nbytes for one in changes if one.tensor.name not in kept)
    return new + workers() * each


def require_memory(plan: Plan, needed: int, free: int | None) -> None:
    """Check that there is memory to hear a plan.

    Args:
        plan: the plan.
        needed: bytes that it takes, the model included where that is not loaded yet.
        free: bytes that are free; None where nobody knows.

    Raises:
        LabkitError: there is too little.
    """
    if free is not None and needed > free:
        raise LabkitError(
            f"to merge by {plan.recipe.method.name} in a live model's memory takes "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; write it (lk.plan), and "
            "give the folder to lk.live as a model"
        )
