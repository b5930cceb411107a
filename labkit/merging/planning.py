"""A plan: a recipe resolved against opened files. It decides everything before a byte is written.

Making a plan matches every tensor of every adapter to a tensor of the base, checks shapes and
numbers, and refuses whatever would be merged wrongly or not at all.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import FLOAT_CODES, FLOATS, ITEM_BITS, StoredTensor
from labkit.gradients.gradient import Gradient, plain
from labkit.machine import many_objects
from labkit.merging.matching import Change as Change
from labkit.merging.matching import Contribution as Contribution
from labkit.merging.matching import LedgerRow as LedgerRow
from labkit.merging.matching import match_term
from labkit.merging.methods.weighted_sum import WeightedSum
from labkit.merging.recipe import Recipe, Term, as_gradient, pattern_matches
from labkit.merging.vocabulary import changes_of
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.models.source import Source
from labkit.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

    from labkit.exporting.export_receipt import Export
    from labkit.probing.texts import Texts
    from labkit.writing.receipt import Receipt


@dataclass(frozen=True)
class Forecast:
    """What carrying out a plan will take.

    Attributes:
        bytes_to_read: of the base and the adapters.
        bytes_to_write: of the merged model's tensors.
        tensors_touched: tensors of the base that change.
        tensors: tensors of the base.
        peak_memory: bytes of memory at most, on top of what Python starts with.
    """

    bytes_to_read: int
    bytes_to_write: int
    tensors_touched: int
    tensors: int
    peak_memory: int


@dataclass(frozen=True, repr=False)
class Plan(Summary):
    """A recipe resolved against opened files; `write` carries it out.

    Attributes:
        recipe: what was asked for.
        changes: the base's tensors that change, by name; all others keep their bytes.
        ledger: what happens to every tensor of every adapter.
        notes: what is not wrong, but worth knowing before writing.
        added: tensors that the merged model has and the base has not: a head that is untied.
    """

    recipe: Recipe
    changes: dict[str, Change]
    ledger: tuple[LedgerRow, ...]
    notes: tuple[str, ...]
    added: tuple[StoredTensor, ...] = ()

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
        """The size in bytes of a tensor in the merged model."""
        elements = math.prod(self.output_shape(tensor))
        return elements * ITEM_BITS[self.output_dtype(tensor)] // 8

    def output_shape(self, tensor: StoredTensor) -> tuple[int, ...]:
        """The shape of a tensor in the merged model: the base's, or with rows for new tokens."""
        change = self.changes.get(tensor.name)
        return change.shape if change else tensor.shape

    @property
    def vocabulary_size(self) -> int | None:
        """The number of tokens of the merged model, where adapters add some."""
        for name in self.base.vocabulary:
            change = self.changes.get(name)
            if change and change.shape != change.tensor.shape:
                return change.shape[0]
        return None

    def forecast(self) -> Forecast:
        """Say what carrying out the plan will take."""
        from labkit.writing.write import working_memory

        return Forecast(
            bytes_to_read=self.base.nbytes + sum(term.source.nbytes for term in self.recipe.terms),
            bytes_to_write=sum(
                len(file.header_bytes) + sum(map(self.output_bytes, file.tensors))
                for file in self.base.files
            )
            + sum(map(self.output_bytes, self.added)),
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
        reuse: str | Path | None = None,
        progress: bool | Callable[[int, int], None] = True,
    ) -> Receipt:
        """Carry out the plan: stream the base through into a new folder.

        Args:
            out: the folder to make. It appears when it is whole, and not before.
            device: where to calculate: "cpu", "cuda", or "auto" for a GPU if there is one. The
                bytes are the same.
            link: hard-link files that the plan does not touch, in place of copying them; and
                files that are those of `reuse` from their first byte to their last.
            overwrite: replace an existing folder, once the new one is whole.
            hashes: put the SHA-256 of every file read and written into the receipt.
            reuse: the folder of an earlier merge. Tensors that the plan makes of the same numbers
                in the same way are taken over from it, and only the others are computed; the bytes
                are those of a merge without it. What its receipt cannot prove by SHA-256, or what
                was changed since, is computed. `out` itself may be that folder, with `overwrite`.
            progress: show a progress bar; or a function that is told the bytes done and their
                sum. What it raises ends the merge, and leaves nothing behind.

        Raises:
            LabkitError: the folder exists, the disk is too small, a file cannot be read or
                written, or `reuse` is no merge that says what its tensors were made of. Nothing is
                left behind then.
        """
        from labkit.writing.write import write

        return write(
            self,
            Path(out),
            device=device,
            link=link,
            overwrite=overwrite,
            hashes=hashes,
            reuse=reuse,
            progress=progress,
        )

    def export(
        self,
        out: str | Path,
        format: str,
        *,
        calibration: Texts | str | Path | None = None,
        texts: Texts | Sequence[Texts] | None = None,
        check: bool = True,
        overwrite: bool = False,
        progress: bool | Callable[[str], None] = True,
    ) -> Export:
        """Carry out the plan, convert the merge for programs that run models, and keep that alone.

        The merge is written beside `out` and removed at the end; its recipe stays with the export.

        Args:
            out: the folder to make. It appears when it is whole, and not before.
            format: such as "gguf-q4_k_m".
            calibration: as in `labkit.export`, and so are all others.
            texts: what the check measures on.
            check: whether to run it and compare it with the merge.
            overwrite: replace an existing export, once the new one is whole.
            progress: show what is done; or a function that is told it, and that can end it.

        Raises:
            LabkitError: whatever `write` and `labkit.export` refuse. Nothing is left behind then.
        """
        from labkit.exporting.exports import export_plan

        return export_plan(
            self,
            out,
            format,
            calibration=calibration,
            texts=texts,
            check=check,
            overwrite=overwrite,
            progress=progress,
        )

    def summary(self) -> Iterator[tuple[str, str]]:
        """The plan in a few lines: a label and a text each."""
        yield "base", f"{self.base.name}, {self.base.layers} layers"
        for term in self.recipe.terms:
            yield (
                term.source.kind,
                f"{term.source.name}, mean weight {term.weights.mean:.2f}, {term.weights.runs()}",
            )
            for pattern, gradient in term.weights_for.items():
                yield f"  {pattern}", f"mean weight {gradient.mean:.2f}, {gradient.runs()}"
        if self.recipe.rest is not None:
            yield "rest", plain(self.recipe.rest)
        if self.recipe.method != WeightedSum():
            yield "method", self.recipe.method_words
        counts = Counter(row.status for row in self.ledger)
        kinds = " and ".join(dict.fromkeys(term.source.kind for term in self.recipe.terms))
        yield (
            "ledger",
            f"{counts['matched']} {kinds} tensors matched, {counts['skipped']} skipped, "
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


def plan(
    base: Recipe | Checkpoint | str | Path,
    adapter: Source | Checkpoint | str | Path | None = None,
    weights: Gradient | str | None = None,
    rest: float | None = None,
    dtype: str = "auto",
) -> Plan:
    """Resolve a recipe, or a base, what is added and a gradient, against opened files.

    Args:
        base: a recipe, then alone; or a base model.
        adapter: the adapter; or a full model, of which `W_model − W` is added.
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
    term = Term(open_source(adapter), as_gradient(weights))
    return _resolve(Recipe(Checkpoint.open(base), [term], rest, dtype))


@many_objects()
def _resolve(recipe: Recipe) -> Plan:
    base = recipe.base
    base.require_unquantised()
    ledger: list[LedgerRow] = []
    found: dict[str, list[Contribution]] = defaultdict(list)
    notes: list[str] = [*base.notes]
    for number, term in enumerate(recipe.terms):
        term.weights.require(base.layers, f"{term.source.kind} {shown(term.source.name)}")
        for pattern, gradient in term.weights_for.items():
            gradient.require(base.layers, f"modules {shown(pattern)}")
            named = [part.name for part in term.source.parts]
            if not any(pattern_matches(pattern, module) for module in named):
                raise LabkitError(
                    f"the module pattern {shown(pattern)!r} selects none of the "
                    f"{len(named)} modules of {shown(term.source.name)} (such as "
                    f"{shown(named[0])!r}); correct the pattern"
                )
        rows, matched = match_term(number, term, recipe)
        ledger += rows
        for contribution in matched:
            found[contribution.match.tensor.name].append(contribution)
        notes += term.source.notes(base)
    for name, value in vars(recipe.method).items():
        if isinstance(value, Gradient):
            value.require(base.layers, f"{name} of the method {recipe.method.name}")
    changes, added = changes_of(recipe, found)
    targets = [change.target for change in changes.values()]
    for target in targets:
        recipe.method.require(target)
    notes += recipe.method.notes(targets)
    if recipe.untie and not base.tied:
        notes.append("untie changes nothing: the base keeps its head apart already")
    shrunk = {
        f"the vocabulary shrinks from {one.tensor.shape[0]} to {one.shape[0]} tokens, as the "
        "adapter has it"
        for one in changes.values()
        if one.shape[:1] < one.tensor.shape[:1]
    }
    notes += sorted(shrunk)
    if not changes:
        notes.append("every weight is 0: the merged model will be the base model")
    return Plan(recipe, changes, tuple(ledger), tuple(notes), added)
