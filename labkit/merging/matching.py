"""Finds the base's tensor for every part of a term's source, and checks that it fits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from labkit.deltas.delta import Delta
from labkit.errors import LabkitError, shown, spelled
from labkit.files.tensor_file import StoredTensor
from labkit.merging.formula import BaseTensor, Method, WeightedDelta
from labkit.merging.recipe import Recipe, Term
from labkit.models.kinds.part import CHECKED_ELEMENTS, Match, Part
from labkit.models.source import Source


@dataclass(frozen=True)
class LedgerRow:
    """What happens to one tensor of an adapter.

    Attributes:
        adapter: the adapter's name.
        tensor: the tensor's name in the adapter's file.
        status: "matched", "skipped" or "unmatched".
        base_tensor: the base's tensor that it changes, if matched.
        layer: that tensor's layer; None outside the layers.
        weight: the weight it gets, if matched.
        reason: why it is skipped or unmatched.
    """

    adapter: str
    tensor: str
    status: str
    base_tensor: str | None = None
    layer: int | None = None
    weight: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Contribution:
    """One term's share in the change of one tensor.

    Attributes:
        part: the source's part.
        match: where it applies.
        weight: its layer weight.
        for_head: what it changes in an embedding is meant for a head that is tied to it, too.
        term: the number of the term in the recipe.
    """

    part: Part
    match: Match
    weight: float
    for_head: bool = False
    term: int = 0

    def delta(self) -> Delta:
        """Read `ΔW`, in the orientation of the base's tensor."""
        return self.part.delta(self.match)


@dataclass(frozen=True)
class Change:
    """A tensor of the base that the plan changes, and all that is added to it.

    Attributes:
        tensor: the base's tensor.
        layer: its layer; None outside the layers.
        contributions: what is added; no weight is 0.
        shape: the shape it gets: the base's, or one with more rows for new tokens.
        method: how the contributions become one change.
        term_weights: see `BaseTensor.weights`.
    """

    tensor: StoredTensor
    layer: int | None
    contributions: tuple[Contribution, ...]
    shape: tuple[int, ...]
    method: Method = field(repr=False)
    term_weights: tuple[float, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        """The layer weight of each contribution."""
        return tuple(contribution.weight for contribution in self.contributions)

    @property
    def row_count(self) -> int:
        """Rows of the result, seen as a matrix."""
        grown = self.shape != self.tensor.shape
        return self.shape[0] if grown else self.tensor.matrix_shape[0]

    @property
    def target(self) -> BaseTensor:
        """The tensor as the method sees it."""
        return BaseTensor(self.tensor, self.row_count, self.layer, self.term_weights)

    def update(self, device: str = "cpu") -> Delta:
        """Read all that is added, in float64, weights included: see `labkit.merging.formula`.

        Args:
            device: where the method looks through whole tensors. What is added is the same.
        """
        terms = [WeightedDelta(one.weight, one.delta(), one.term) for one in self.contributions]
        return self.method.combine(replace(self.target, device=device), terms)


def match_term(
    number: int, term: Term, recipe: Recipe
) -> tuple[list[LedgerRow], list[Contribution]]:
    """Match one term of a recipe: its rows of the ledger, and what it adds to which tensor.

    Raises:
        LabkitError: a part that matches nothing or does not fit, or numbers that are not finite.
    """
    source, base = term.source, recipe.base
    rows: list[LedgerRow] = []
    problems: list[str] = []
    found: list[tuple[Part, list[Match]]] = []
    source.require_base(base)
    source.require_selection(base)
    for part in source.parts:
        reason = source.why_skipped(part, base)
        if reason:
            rows += [LedgerRow(source.name, t.name, "skipped", reason=reason) for t in part.tensors]
            continue
        matches = part.matches(base)
        if isinstance(matches, str) and recipe.rest == 0 and base.is_outside(part.name):
            reason = f"{matches}, and the weight outside the layers is 0"
            rows += [LedgerRow(source.name, t.name, "skipped", reason=reason) for t in part.tensors]
            continue
        if isinstance(matches, str):
            label = part.name if part.known_by_key else part.tensors[0].name
            problems.append(f"{shown(label)!r}: {matches}")
            continue
        found.append((part, matches))
    if problems:
        raise LabkitError(
            f"{len(problems)} of the {source.kind} {shown(source.name)}'s tensors match nothing in "
            f"the base {shown(base.name)}: {'; '.join(problems[:3])}"
            f"{'; …' if len(problems) > 3 else ''}; {source.wanted_base(base)}"
        )
    matched: list[Contribution] = []
    for part, matches in found:
        matched += [_contribution(number, term, recipe, part, match) for match in matches]
        first, weight = matches[0].tensor.name, matched[-1].weight
        rows += [
            LedgerRow(source.name, t.name, "matched", first, base.layer_of(first), weight)
            for t in part.tensors
        ]
    _require_one_adapter(matched, source)
    check_numbers([part for part, _ in found if part.checked], source)
    return rows, matched


def _contribution(
    number: int, term: Term, recipe: Recipe, part: Part, match: Match
) -> Contribution:
    base, describe = recipe.base, term.source.describe
    _ = match.tensor.float_dtype  # refuses a tensor that is not stored in floating-point numbers
    transposed = part.orientation(match, base)
    if transposed is None:
        raise LabkitError(
            f"{describe(part)} {part.misfit(match)}; the {term.source.kind} was made for another "
            "model"
        )
    layer = base.layer_of(match.tensor.name)
    if layer is not None:
        weight = term.gradient_for(part.name)[layer]
    elif recipe.rest is None:
        raise LabkitError(
            f"{describe(part)} lies outside the layers, and no layer weight counts for it; say "
            f"how much of it to add with {spelled('rest=', '--rest')} (1 for all of it, 0 for none)"
        )
    else:
        weight = float(recipe.rest)
    for_head = part.follows_tie or term.source.gives_head(base)
    return Contribution(part, replace(match, transposed=transposed), weight, for_head, number)


def _require_one_adapter(matched: Sequence[Contribution], source: Source) -> None:
    """Check that no two parts of one kind change the same rows of a tensor.

    Raises:
        LabkitError: two do, as where a file holds several adapters.
    """
    spans: dict[tuple[object, str], list[tuple[int, int, Part]]] = defaultdict(list)
    for one in matched:
        # All that has factors would be added up; one parameter can also have a change of each
        # other kind.
        kind = "factors" if one.part.rank else type(one.part)
        first, last = one.match.block or (0, max(one.match.tensor.matrix_shape[0], 1))
        spans[kind, one.match.tensor.name].append((first, last, one.part))
    for (_, name), of_tensor in spans.items():
        of_tensor.sort(key=lambda span: span[:2])
        for (_, last, former), (first, _, latter) in pairwise(of_tensor):
            if first < last:
                raise LabkitError(
                    f"{source.describe(latter)} and {shown(former.name)!r} both name the base's "
                    f"{shown(name)!r}; the file seems to hold several adapters; save one by itself"
                )


def check_numbers(parts: Sequence[Part], source: Source) -> None:
    """Check that parts hold finite numbers only.

    Raises:
        LabkitError: some are NaN or infinite; it names the first part that holds such.
    """
    tensors = [tensor for part in parts for tensor in part.tensors]
    bad = {tensor for run in _runs(tensors) if _not_finite_in(_as_one(run)) for tensor in run}
    for part in parts:
        for tensor in part.tensors:
            if tensor in bad:
                refuse_not_finite(_not_finite_in(tensor), tensor, source.describe(part))


def _runs(tensors: Iterable[StoredTensor]) -> list[list[StoredTensor]]:
    """Group tensors that follow each other in a file and have one dtype: thousands may be small."""
    runs: list[list[StoredTensor]] = []
    for tensor in sorted(tensors, key=lambda one: (str(one.file), one.start, one.stop)):
        last = runs[-1][-1] if runs else None
        if last is not None and (last.file, last.stop, last.dtype) == (
            tensor.file,
            tensor.start,
            tensor.dtype,
        ):
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
    return runs


def _as_one(run: Sequence[StoredTensor]) -> StoredTensor:
    """Tensors that follow each other, as one to read."""
    if len(run) == 1:
        return run[0]
    elements = sum(tensor.elements for tensor in run)
    return replace(run[0], shape=(elements,), stop=run[-1].stop)


def _not_finite_in(tensor: StoredTensor) -> int:
    return sum(not_finite(block) for _, block in tensor.blocks(CHECKED_ELEMENTS))


def not_finite(values: np.ndarray) -> int:
    """How many numbers are NaN or infinite."""
    return int(values.size - np.isfinite(values).sum())


def refuse_not_finite(bad: int, tensor: StoredTensor, where: str) -> None:
    """Refuse a tensor of an adapter that holds numbers that are NaN or infinite.

    Raises:
        LabkitError: it holds some.
    """
    if bad:
        raise LabkitError(
            f"{where} holds {bad} numbers that are NaN or infinite in {shown(tensor.name)!r}; "
            "its training failed; use another checkpoint of the adapter"
        )
