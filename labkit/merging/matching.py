"""Finds the base's tensor for every part of an adapter, and checks that it fits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor
from labkit.merging.recipe import Recipe, Term
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.names import canonical
from labkit.models.parts import BiasOfB, ExpertLora, LoraModule, Part, TokenRows, WholeTensor

if TYPE_CHECKING:
    from labkit.deltas.delta import LowRank, Sum

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models whose linear modules transformers stores as in × out (its Conv1D)."""
TRANSPOSED_EXPERTS = ("gpt_oss", "llama4", "llama4_text")
"""Models whose stacked experts are stored as experts × in × out."""
CHECKED_ROWS = 4096


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
    """One adapter's share in the change of one tensor.

    Attributes:
        module: the adapter's part.
        weight: its layer weight; never 0.
        transposed: the base stores this tensor as in × out.
        expert: of a stack of experts, the one whose own tensor this is.
        rows: of a fused matrix, the rows that this tensor is: first, and behind the last.
    """

    module: Part
    weight: float
    transposed: bool = False
    expert: int | None = None
    rows: tuple[int, int] | None = None

    def delta(self) -> LowRank:
        """Read `ΔW`, in the orientation of the base's tensor.

        Raises:
            LabkitError: the change is no product of factors.
        """
        from labkit.deltas.delta import LowRank

        if isinstance(self.module, ExpertLora) and self.expert is not None:
            delta = self.module.factors_of(self.expert)
            if self.rows:
                delta = LowRank(np.ascontiguousarray(delta.left[slice(*self.rows)]), delta.right)
        elif isinstance(self.module, (LoraModule, BiasOfB)):
            delta = self.module.delta()
        else:
            raise LabkitError(f"{shown(self.module.name)!r} is not changed by a product of factors")
        return delta.transposed() if self.transposed else delta


@dataclass(frozen=True)
class Change:
    """A tensor of the base that the plan changes, and all that is added to it.

    Attributes:
        tensor: the base's tensor.
        layer: its layer; None outside the layers.
        contributions: what is added.
        shape: the shape it gets: the base's, or one with more rows for new tokens.
    """

    tensor: StoredTensor
    layer: int | None
    contributions: tuple[Contribution, ...]
    shape: tuple[int, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """The layer weight of each contribution."""
        return tuple(contribution.weight for contribution in self.contributions)

    def update(self) -> LowRank | Sum:
        """Read all that is added, in float64: one pair of factors if that says it all."""
        from labkit.merging.updates import update_of

        return update_of(self)


@dataclass(frozen=True)
class Target:
    """A tensor of the base that a part of an adapter changes, or one slice of the part's."""

    tensor: StoredTensor
    expert: int | None = None
    rows: tuple[int, int] | None = None


class Names:
    """Finds the base's tensors for a name in an adapter."""

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._canonical: dict[str, list[StoredTensor]] = defaultdict(list)
        for name, tensor in base.tensors.items():
            self._canonical[canonical(name)].append(tensor)

    def find(self, part: Part) -> list[Target] | str:
        """The tensors, or the reason why there are none."""
        whole = self._one(f"{part.name}.{part.parameter}")
        if isinstance(whole, StoredTensor):
            return [Target(whole)]
        if isinstance(part, ExpertLora):
            single = self._experts(part)
            if single:
                return single
        if canonical(part.name) == "lm_head" and part.parameter == "weight" and self._base.head:
            return [Target(self._base.head)]
        return whole

    def _one(self, name: str) -> StoredTensor | str:
        if name in self._base.tensors:
            return self._base.tensors[name]
        candidates = self._canonical.get(canonical(name), [])
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            return f"the base has {len(candidates)} tensors of that name"
        return "the base has no module of that name"

    def _experts(self, part: ExpertLora) -> list[Target]:
        """Every expert's own matrices: most checkpoints keep them apart on disk."""
        out = part.shape[0]
        halves = {"gate_up_proj": (("gate_proj", (0, out // 2)), ("up_proj", (out // 2, out)))}
        targets = []
        for expert in range(part.experts):
            for leaf, rows in halves.get(part.parameter, ((part.parameter, None),)):
                tensor = self._one(f"{part.name}.{expert}.{leaf}.weight")
                if isinstance(tensor, str):
                    return []
                targets.append(Target(tensor, expert, rows))
        beyond = self._one(f"{part.name}.{part.experts}.{leaf}.weight")
        return targets if isinstance(beyond, str) else []


def match_term(
    term: Term, recipe: Recipe, names: Names
) -> tuple[list[LedgerRow], list[tuple[StoredTensor, Contribution]]]:
    """Match one adapter of a recipe: its rows of the ledger, and what it adds to which tensor.

    Raises:
        LabkitError: a part that matches nothing or does not fit, or numbers that are not finite.
    """
    adapter, base = term.adapter, recipe.base
    rows: list[LedgerRow] = []
    problems: list[str] = []
    pairs: list[tuple[Part, list[Target]]] = []
    for part in adapter.parts:
        if isinstance(part, (LoraModule, BiasOfB)) and not adapter.targets(part.name):
            reason = "target_modules does not name it"
            rows += [
                LedgerRow(adapter.name, t.name, "skipped", reason=reason) for t in part.tensors
            ]
            continue
        found = names.find(part)
        if isinstance(found, str):
            label = part.tensors[0].name if isinstance(part, WholeTensor) else part.name
            problems.append(f"{shown(label)!r}: {found}")
            continue
        pairs.append((part, found))
    if problems:
        raise LabkitError(
            f"{len(problems)} of the adapter {shown(adapter.name)}'s tensors match nothing in the "
            f"base {shown(base.name)}: {'; '.join(problems[:3])}"
            f"{'; …' if len(problems) > 3 else ''}; the adapter was made for another model"
        )
    matched: list[tuple[StoredTensor, Contribution]] = []
    straight_fits = any(
        targets[0].tensor.shape == part.shape and part.shape[0] != part.shape[1]
        for part, targets in pairs
        if isinstance(part, LoraModule) and not part.embedding
    )
    taken: dict[tuple[str, str], Part] = {}
    for part, targets in pairs:
        for tensor in part.tensors:
            _check_numbers(tensor, module_of(part, term.adapter))
        for target in targets:
            key = (type(part).__name__, target.tensor.name)
            if key in taken:
                raise LabkitError(
                    f"{module_of(part, term.adapter)} and {shown(taken[key].name)!r} both name the "
                    f"base's {shown(target.tensor.name)!r}; the file seems to hold several "
                    "adapters; save one by itself"
                )
            taken[key] = part
            contribution = _contribution(term, recipe, part, target, straight_fits)
            matched.append((target.tensor, contribution))
        first = targets[0].tensor.name
        rows += [
            LedgerRow(
                adapter.name, t.name, "matched", first, base.layer_of(first), matched[-1][1].weight
            )
            for t in part.tensors
        ]
    return rows, matched


def module_of(part: Part, adapter: Adapter) -> str:
    """How errors name a part of an adapter."""
    return f"module {shown(part.name)!r} of {shown(adapter.name)}"


def _contribution(
    term: Term, recipe: Recipe, part: Part, target: Target, straight_fits: bool
) -> Contribution:
    base, tensor = recipe.base, target.tensor
    where = module_of(part, term.adapter)
    _ = tensor.float_dtype  # refuses a tensor that is not stored in floating-point numbers
    transposed = _orientation(part, target, term, base, straight_fits)
    layer = base.layer_of(tensor.name)
    if layer is not None:
        weight = term.gradient_for(part.name)[layer]
    elif recipe.rest is None:
        raise LabkitError(
            f"{where} lies outside the layers, and no layer weight counts for it; say how much of "
            "it to add with rest (--rest 1 for all of it, --rest 0 for none)"
        )
    else:
        weight = float(recipe.rest)
    return Contribution(part, weight, transposed, target.expert, target.rows)


def _orientation(
    part: Part, target: Target, term: Term, base: Checkpoint, straight_fits: bool
) -> bool:
    """Tell whether the base stores the tensor as in × out.

    Raises:
        LabkitError: the tensor fits in neither way.
    """
    found = expected = target.tensor.shape
    model_type = base.config.get("model_type")
    if isinstance(part, TokenRows):
        if (
            len(found) == 2
            and part.shape[1] == found[1]
            and max(part.indices, default=0) < found[0]
        ):
            return False
        rows = max(part.indices, default=0) + 1
        raise LabkitError(
            f"{module_of(part, term.adapter)} trains rows up to {rows - 1} of width "
            f"{part.shape[1]}, but the base's {shown(target.tensor.name)!r} has shape {found}; the "
            "adapter was made for another model"
        )
    if isinstance(part, WholeTensor):
        grows = (
            target.tensor.name in base.vocabulary
            and len(part.shape) == len(found) == 2
            and part.shape[1] == found[1]
            and part.shape[0] >= found[0]
        )
        if part.shape == found or grows:
            return False
        expected = part.shape
    elif isinstance(part, BiasOfB):
        if part.shape == found:
            return False
        expected = part.shape
    else:
        expected = part.shape
        if isinstance(part, ExpertLora) and target.expert is None:
            found = found[1:] if len(found) == 3 and found[0] == part.experts else found
        elif target.rows:
            expected = (target.rows[1] - target.rows[0], part.shape[1])
        straight, turned = found == expected, found == expected[::-1]
        if isinstance(part, LoraModule) and part.embedding:
            straight = False
            # Saved embeddings with more rows may come with the LoRA; then it has more as well.
            turned = turned or (
                target.tensor.name in base.vocabulary
                and expected[0] == found[-1]
                and expected[1] > found[0]
            )
        if straight and turned:
            # A square tensor tells nothing by its shape; the model's kind or its other tensors do.
            if isinstance(part, ExpertLora):
                return target.expert is None and model_type in TRANSPOSED_EXPERTS
            return model_type in CONV1D_MODELS or (
                bool(term.adapter.config.get("fan_in_fan_out")) and not straight_fits
            )
        if straight or turned:
            return turned
    raise LabkitError(
        f"{module_of(part, term.adapter)} changes a tensor of shape {expected}, but the base's "
        f"{shown(target.tensor.name)!r} has shape {target.tensor.shape}; the adapter was made for "
        "another model"
    )


def _check_numbers(tensor: StoredTensor, where: str) -> None:
    rows = tensor.matrix_shape[0]
    bad = 0
    for start in range(0, rows, CHECKED_ROWS):
        values = tensor.read_rows(start, min(start + CHECKED_ROWS, rows))
        bad += not_finite(values)
    refuse_not_finite(bad, tensor, where)


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
