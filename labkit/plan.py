"""A plan: a recipe resolved against opened files. It decides everything before a byte is written.

Making a plan matches every tensor of every adapter to a tensor of the base, checks shapes and
numbers, and refuses whatever would be merged wrongly or not at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.adapter import Adapter, LoraModule
from labkit.checkpoint import Checkpoint
from labkit.errors import LabkitError, shown
from labkit.gradient import Gradient, plain
from labkit.recipe import Recipe, Term, as_gradient, pattern_matches
from labkit.tensor_file import FLOAT_CODES, FLOATS, ITEM_BITS, StoredTensor

if TYPE_CHECKING:
    import pandas as pd

    from labkit.delta import LowRank
    from labkit.receipt import Receipt

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models whose linear modules transformers stores as in × out (its Conv1D)."""


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
        module: the adapter's module.
        weight: its layer weight; never 0.
        transposed: the base stores this tensor as in × out.
    """

    module: LoraModule
    weight: float
    transposed: bool

    def delta(self) -> LowRank:
        """Read `ΔW`, in the orientation of the base's tensor."""
        delta = self.module.delta()
        return delta.transposed() if self.transposed else delta


@dataclass(frozen=True)
class Change:
    """A tensor of the base that the plan changes, and all that is added to it."""

    tensor: StoredTensor
    layer: int | None
    contributions: tuple[Contribution, ...]

    def update(self) -> LowRank:
        """Read all that is added, `Σ w·ΔW`, as one pair of factors in float64."""
        from labkit.delta import LowRank

        return LowRank.weighted_sum(
            [(contribution.weight, contribution.delta()) for contribution in self.contributions]
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """The layer weight of each contribution."""
        return tuple(contribution.weight for contribution in self.contributions)


@dataclass(frozen=True)
class Forecast:
    """What carrying out a plan will take.

    Attributes:
        bytes_to_read: of the base and the adapters.
        bytes_to_write: of the merged model's tensors.
        tensors_touched: tensors of the base that change.
        tensors: tensors of the base.
        peak_memory: bytes of memory at most, on top of what Python and torch take.
    """

    bytes_to_read: int
    bytes_to_write: int
    tensors_touched: int
    tensors: int
    peak_memory: int


@dataclass(frozen=True, repr=False)
class Plan:
    """A recipe resolved against opened files; `write` carries it out.

    Attributes:
        recipe: what was asked for.
        changes: the base's tensors that change, by name; all others keep their bytes.
        ledger: what happens to every tensor of every adapter.
        notes: what is not wrong, but worth knowing before writing.
    """

    recipe: Recipe
    changes: dict[str, Change]
    ledger: tuple[LedgerRow, ...]
    notes: tuple[str, ...]

    @property
    def base(self) -> Checkpoint:
        """The base model."""
        return self.recipe.base

    def output_dtype(self, tensor: StoredTensor) -> str:
        """The dtype (safetensors' name) a tensor of the base has in the merged model."""
        if self.recipe.dtype == "auto" or tensor.dtype not in FLOATS:
            return tensor.dtype
        return FLOAT_CODES[self.recipe.dtype]

    def output_bytes(self, tensor: StoredTensor) -> int:
        """The size in bytes of a tensor of the base in the merged model."""
        return tensor.elements * ITEM_BITS[self.output_dtype(tensor)] // 8

    def forecast(self) -> Forecast:
        """Say what carrying out the plan will take."""
        from labkit.write import working_memory

        return Forecast(
            bytes_to_read=self.base.nbytes
            + sum(term.adapter.file.size for term in self.recipe.terms),
            bytes_to_write=sum(
                len(file.header_bytes) + sum(map(self.output_bytes, file.tensors))
                for file in self.base.files
            ),
            tensors_touched=len(self.changes),
            tensors=len(self.base.tensors),
            peak_memory=working_memory(self),
        )

    def table(self) -> pd.DataFrame:
        """The ledger as a table, one row for each tensor of the adapters."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self.ledger])

    def write(
        self,
        out: str | Path,
        *,
        device: str = "auto",
        link: bool = False,
        overwrite: bool = False,
        hashes: bool = True,
        progress: bool | Callable[[int, int], None] = True,
    ) -> Receipt:
        """Carry out the plan: stream the base through into a new folder.

        Args:
            out: the folder to make. It appears when it is whole, and not before.
            device: where to calculate: "cpu", "cuda", or "auto" for a GPU if there is one. The
                bytes are the same.
            link: hard-link files that the plan does not touch, in place of copying them.
            overwrite: replace an existing folder, once the new one is whole.
            hashes: put the SHA-256 of every file read and written into the receipt.
            progress: show a progress bar; or a function that is told the bytes done and their
                sum. What it raises ends the merge, and leaves nothing behind.

        Raises:
            LabkitError: the folder exists, the disk is too small, or a file cannot be read or
                written. Nothing is left behind then.
        """
        from labkit.write import write

        return write(
            self,
            Path(out),
            device=device,
            link=link,
            overwrite=overwrite,
            hashes=hashes,
            progress=progress,
        )

    def summary(self) -> Iterator[tuple[str, str]]:
        """The plan in a few lines: a label and a text each."""
        yield "base", f"{self.base.name}, {self.base.layers} layers"
        for term in self.recipe.terms:
            yield (
                "adapter",
                f"{term.adapter.name}, mean weight {term.weights.mean:.2f}, {term.weights.runs()}",
            )
            for pattern, gradient in term.weights_for.items():
                yield f"  {pattern}", f"mean weight {gradient.mean:.2f}, {gradient.runs()}"
        if self.recipe.rest is not None:
            yield "rest", plain(self.recipe.rest)
        counts = Counter(row.status for row in self.ledger)
        yield (
            "ledger",
            f"{counts['matched']} adapter tensors matched, {counts['skipped']} skipped, "
            f"{counts['unmatched']} unmatched",
        )
        forecast = self.forecast()
        yield (
            "touches",
            f"{forecast.tensors_touched} of {forecast.tensors} tensors; "
            "the others keep the base's bytes",
        )
        yield (
            "forecast",
            f"reads {forecast.bytes_to_read / 1e9:.2f} GB, "
            f"writes {forecast.bytes_to_write / 1e9:.2f} GB, "
            f"in at most {forecast.peak_memory / 1e6:.0f} MB of working memory",
        )
        for note in self.notes:
            yield "note", note

    def __repr__(self) -> str:
        return "\n".join(f"{label:<9}{shown(text, 400)}" for label, text in self.summary())

    def _repr_html_(self) -> str:
        from labkit.receipt import summary_html

        return summary_html(self.summary())


def plan(
    base: Recipe | Checkpoint | str | Path,
    adapter: Adapter | str | Path | None = None,
    weights: Gradient | str | None = None,
    rest: float | None = None,
    dtype: str = "auto",
) -> Plan:
    """Resolve a recipe, or a base, an adapter and a gradient, against opened files.

    Args:
        base: a recipe, then alone; or a base model.
        adapter: the adapter.
        weights: the gradient, one weight for each layer of the base.
        rest: the weight of what the adapter changes outside the layers.
        dtype: the output's dtype, or "auto" to keep each tensor's own.

    Raises:
        LabkitError: whatever would be merged wrongly or not at all: a gradient of the wrong
            length, tensors that match nothing, shapes that do not fit, changes outside the layers
            without a weight for them, NaN or infinity in an adapter, a quantised base, a module
            pattern that selects nothing.
    """
    if isinstance(base, Recipe):
        return _resolve(base)
    if adapter is None or weights is None:
        raise LabkitError("a plan needs a recipe, or a base, an adapter and its layer weights")
    checkpoint = base if isinstance(base, Checkpoint) else Checkpoint(base)
    opened = adapter if isinstance(adapter, Adapter) else Adapter(adapter)
    return _resolve(Recipe(checkpoint, [Term(opened, as_gradient(weights))], rest, dtype))


def _resolve(recipe: Recipe) -> Plan:
    base = recipe.base
    method = base.quantisation()
    if method:
        raise LabkitError(
            f"the base {shown(base.name)} is quantised ({shown(method)}); a merge needs the "
            "unquantised model: name its original folder, and quantise the merged model afterwards"
        )
    names = _ModuleNames(base)
    ledger: list[LedgerRow] = []
    contributions: dict[str, list[Contribution]] = defaultdict(list)
    notes: list[str] = []
    for term in recipe.terms:
        term.weights.require(base.layers, f"adapter {shown(term.adapter.name)}")
        for pattern, gradient in term.weights_for.items():
            gradient.require(base.layers, f"modules {shown(pattern)}")
            if not any(pattern_matches(pattern, module) for module in term.adapter.modules):
                raise LabkitError(
                    f"the module pattern {shown(pattern)!r} selects none of the "
                    f"{len(term.adapter.modules)} modules of {shown(term.adapter.name)} (such as "
                    f"{shown(next(iter(term.adapter.modules)))!r}); correct the pattern"
                )
        rows, matched = _match_term(term, recipe, names)
        ledger += rows
        for name, contribution in matched:
            if contribution.weight != 0:
                contributions[name].append(contribution)
        notes += _term_notes(term, base)
    changes = {
        name: Change(tensor, base.layer_of(name), tuple(contributions[name]))
        for name, tensor in base.tensors.items()
        if name in contributions
    }
    if not changes:
        notes.append("every weight is 0: the merged model will be the base model")
    return Plan(recipe, changes, tuple(ledger), tuple(notes))


class _ModuleNames:
    """Finds the base's tensor for an adapter's module name.

    Adapters name modules as the model that was trained had them, which can have a wrapper's name in
    front (`model.layers.0…`, `transformer.h.0…`) that the checkpoint on disk lacks, or the other
    way round. One name then ends in the other, at a dot.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._exact: dict[str, StoredTensor] = {}
        self._ends_in: dict[str, set[str]] = defaultdict(set)
        for name, tensor in base.tensors.items():
            if not name.endswith(".weight"):
                continue
            module = name.removesuffix(".weight")
            self._exact[module] = tensor
            for end in _ends(module):
                self._ends_in[end].add(module)

    def find(self, module: str) -> StoredTensor | str:
        """The tensor, or the reason why there is none."""
        if module in self._exact:
            return self._exact[module]
        longer = self._ends_in.get(module, set())
        # The longest end that is a whole name of the base is the nearest.
        shorter = next((end for end in _ends(module) if end in self._exact), None)
        candidates = longer | ({shorter} if shorter else set())
        if len(candidates) == 1:
            return self._exact[candidates.pop()]
        if candidates:
            return f"the base has {len(candidates)} modules of that name"
        return "the base has no module of that name"


def _ends(module: str) -> Iterator[str]:
    parts = module.split(".")
    for position in range(1, len(parts)):
        yield ".".join(parts[position:])


def _match_term(
    term: Term, recipe: Recipe, names: _ModuleNames
) -> tuple[list[LedgerRow], list[tuple[str, Contribution]]]:
    adapter, base = term.adapter, recipe.base
    rows: list[LedgerRow] = []
    matched: list[tuple[str, Contribution]] = []
    problems: list[str] = []
    pairs: list[tuple[LoraModule, StoredTensor]] = []
    for module in adapter.modules.values():
        if not adapter.targets(module.name):
            rows += [
                LedgerRow(adapter.name, t.name, "skipped", reason="target_modules does not name it")
                for t in module.tensors
            ]
            continue
        found = names.find(module.name)
        if isinstance(found, str):
            problems.append(f"{shown(module.name)!r}: {found}")
            rows += [
                LedgerRow(adapter.name, t.name, "unmatched", reason=found) for t in module.tensors
            ]
            continue
        pairs.append((module, found))
    for tensor in adapter.other_tensors:
        problems.append(f"{shown(tensor.name)!r}: no LoRA factor (lora_A, lora_B)")
        rows.append(LedgerRow(adapter.name, tensor.name, "unmatched", reason="no LoRA factor"))
    if problems:
        raise LabkitError(
            f"{len(problems)} of the adapter {shown(adapter.name)}'s tensors match nothing in the "
            f"base {shown(base.name)}: {'; '.join(problems[:3])}"
            f"{'; …' if len(problems) > 3 else ''}; the adapter was made for another model"
        )
    straight_fits = any(
        module.shape == tensor.shape and module.shape[0] != module.shape[1]
        for module, tensor in pairs
    )
    for module, tensor in pairs:
        contribution = _contribution(term, recipe, module, tensor, straight_fits)
        matched.append((tensor.name, contribution))
        rows += [
            LedgerRow(
                adapter.name,
                t.name,
                "matched",
                tensor.name,
                base.layer_of(tensor.name),
                contribution.weight,
            )
            for t in module.tensors
        ]
    return rows, matched


def _contribution(
    term: Term, recipe: Recipe, module: LoraModule, tensor: StoredTensor, straight_fits: bool
) -> Contribution:
    base, adapter = recipe.base, term.adapter
    where = f"module {shown(module.name)!r} of {shown(adapter.name)}"
    _ = tensor.torch_dtype  # refuses a tensor that is not stored in floating-point numbers
    fits = tensor.shape == module.shape
    fits_transposed = tensor.shape == module.shape[::-1]
    transposed = fits_transposed and not fits
    if fits and fits_transposed:
        # A square tensor tells nothing by its shape; the model's kind or its other tensors do.
        transposed = base.config.get("model_type") in CONV1D_MODELS or (
            bool(adapter.config.get("fan_in_fan_out")) and not straight_fits
        )
    if not (fits or fits_transposed):
        raise LabkitError(
            f"{where} changes a tensor of shape {module.shape}, but the base's "
            f"{shown(tensor.name)!r} has shape {tensor.shape}; the adapter was made for another "
            "model"
        )
    for factor in module.tensors:
        _refuse_not_finite(factor, where)
    layer = base.layer_of(tensor.name)
    if layer is not None:
        return Contribution(module, term.gradient_for(module.name)[layer], transposed)
    if recipe.rest is None:
        raise LabkitError(
            f"{where} lies outside the layers, and no layer weight counts for it; say how much of "
            "it to add with rest (--rest 1 for all of it, --rest 0 for none)"
        )
    return Contribution(module, float(recipe.rest), transposed)


def _refuse_not_finite(factor: StoredTensor, where: str) -> None:
    values = factor.read()
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise LabkitError(
            f"{where} holds {bad} numbers that are NaN or infinite in {shown(factor.name)!r}; "
            "its training failed; use another checkpoint of the adapter"
        )


def _term_notes(term: Term, base: Checkpoint) -> Iterator[str]:
    adapter = term.adapter
    name = shown(adapter.name)
    if all(module.scaling == 0 for module in adapter.modules.values()):
        yield f"{name} has alpha 0: it changes nothing at any weight"
    claimed: Any = adapter.config.get("base_model_name_or_path")
    if isinstance(claimed, str) and claimed and base.repository:
        trained_on = claimed.rstrip("/").split("/")[-1]
        if trained_on.lower() != base.repository.split("/")[-1].lower():
            yield f"{name} says it was trained on {shown(claimed)}, not on {shown(base.name)}"
    kinds = {name.rsplit(".", 1)[-1] for name in adapter.modules}
    for kind in sorted(kinds):
        layers = {
            base.layer_of(module) for module in adapter.modules if module.rsplit(".", 1)[-1] == kind
        } - {None}
        if layers and len(layers) < base.layers and not adapter.config.get("layers_to_transform"):
            yield f"{name} changes {kind} in {len(layers)} of {base.layers} layers only"
