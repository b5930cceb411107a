"""What survives rounding: how much of a small change reaches a weight of 16 bits."""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from labkit.deltas.delta import Delta
from labkit.errors import LabkitError
from labkit.files.floats import wide
from labkit.files.tensor_file import FLOATS, StoredTensor
from labkit.gradients.gradient import Gradient
from labkit.machine import in_parallel
from labkit.merging.planning import Plan, plan
from labkit.merging.recipe import Recipe, Term, as_gradient
from labkit.merging.rounding import BlockMerger
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.models.source import Source
from labkit.surveys.adding_up import totals
from labkit.surveys.surveyed_tensors import short_names, table_order

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64
"""Rows of each tensor that an estimate looks at."""
BLOCK_ELEMENTS = 1 << 17
MUCH_LOST = 0.1
"""A part of the change that is worth a word when rounding loses it."""


def survival(
    base: Checkpoint | Plan | str | Path,
    adapter: Source | Checkpoint | str | Path | None = None,
    weights: Gradient | str | None = None,
    dtype: str = "auto",
    *,
    rest: float | None = None,
    exact: bool = False,
    rows: int = ROWS,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what rounding leaves of a merge: one row for each tensor with an adapter's change.

    `W'` is what a merge writes, `W + wΔW` rounded once to the output's dtype: measured with the
    very arithmetic of the merge. Columns, beside `layer`, `module`, `name` and `shape`:

    | column | what |
    |---|---|
    | `dtype` | the output's |
    | `weight` | the layer weight (of several adapters, their sum) |
    | `weighted_norm` | `‖wΔW‖_F`, what was asked for |
    | `changed` | fraction of the elements with `W' ≠ W` |
    | `lost` | `‖(W' - W) - wΔW‖_F / ‖wΔW‖_F`; NaN where nothing was asked for |
    | `changed_error`, `lost_error` | their standard errors; 0 where every row was looked at |
    | `rows` | rows looked at |

    An estimate looks at a sample of rows, drawn without replacement by `seed` and the tensor's
    name. `changed` is then a mean over rows and `lost²` a ratio of two; their standard errors are
    the usual ones of both, with the correction for a finite population (Cochran, Sampling
    Techniques, 1977, sections 2.6 and 2.11).

    Args:
        base: the base model, opened or as a reference; or a plan, then alone.
        adapter: the adapter or the full model, opened or as a reference.
        weights: the gradient.
        dtype: of the merged model; "auto" keeps each tensor's own.
        rest: the weight of what lies outside the layers.
        exact: look at every row, streamed in bounded memory, in place of a sample.
        rows: how many rows of each tensor a sample has.
        seed: of the sample.
        progress: show a progress bar.

    Raises:
        LabkitError: whatever a plan refuses, or a sample of fewer than 2 rows.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    if rows < 2:
        raise LabkitError(f"a sample needs 2 rows at least to know its error, found rows={rows}")
    if isinstance(base, Plan):
        resolved = base
    elif adapter is None or weights is None:
        raise LabkitError("survival needs a plan, or a base, an adapter and its layer weights")
    else:
        term = Term(open_source(adapter), as_gradient(weights))
        resolved = plan(Recipe(Checkpoint.open(base), [term], rest, dtype))
    # A head that is tied to the embedding is no tensor of its own, unless the merge unties it.
    tensors = {**resolved.base.tensors, **{tensor.name: tensor for tensor in resolved.added}}
    names = {row.base_tensor: row.layer for row in resolved.ledger if row.base_tensor in tensors}
    short = short_names((name.removesuffix(".weight"), layer) for name, layer in names.items())
    ordered = sorted(
        names, key=lambda name: table_order(names[name], short[name.removesuffix(".weight")])
    )

    def measure(name: str) -> _Survived:
        change = resolved.changes.get(name)
        tensor = tensors[name]
        output_dtype = resolved.output_dtype(tensor)
        if change is None and output_dtype == tensor.dtype:  # the merge keeps the base's bytes
            return _Survived(0.0, tensor.matrix_shape[0], 0.0, 0.0, math.nan, math.nan)
        update = change.update() if change else None
        return _survived(tensor, update, output_dtype, None if exact else rows, seed)

    table = []
    with (
        tqdm(total=len(ordered), desc="what survives rounding", disable=not progress) as bar,
        in_parallel(measure, ordered) as measured,
    ):
        for name, survived in zip(ordered, measured, strict=True):
            change = resolved.changes.get(name)
            tensor = tensors[name]
            table.append(
                {
                    "layer": names[name],
                    "module": short[name.removesuffix(".weight")],
                    "name": name.removesuffix(".weight"),
                    "shape": tensor.shape,
                    "dtype": FLOATS[resolved.output_dtype(tensor)],
                    "weight": math.fsum(change.weights) if change else 0.0,
                    **vars(survived),
                }
            )
            bar.update()
    resolved.base.require_unchanged()
    result = pd.DataFrame(table)
    result["layer"] = result["layer"].astype("Int64")
    return result


def rounding_line(table: pd.DataFrame) -> str | None:
    """A sentence about what rounding loses, if that is more than a tenth of the change.

    Args:
        table: what `survival` gave, or a survey with weights.
    """
    if not totals(table, "all")["lost"][0] > MUCH_LOST:
        return None
    return f"{rounding_sentence(table)}; dtype float32 keeps it"


def rounding_sentence(table: pd.DataFrame) -> str | None:
    """The same about any loss, and without the way out; None if no change was asked for."""
    whole = totals(table, "all").iloc[0]
    if math.isnan(whole["lost"]):
        return None
    dtypes = sorted({str(dtype) for dtype in table.loc[table["lost"].notna(), "dtype"]})
    error = f" ± {whole['lost_error']:.1%}" if whole["lost_error"] > 0 else ""
    return (
        f"rounding to {' and '.join(dtypes)} loses {whole['lost']:.1%}{error} of the change, and "
        f"{1 - whole['changed']:.0%} of the elements stay as they are"
    )


@dataclass(frozen=True)
class _Survived:
    """What was measured of one tensor: see `survival`."""

    weighted_norm: float
    rows: int
    changed: float
    changed_error: float
    lost: float
    lost_error: float


@dataclass
class _PerRow:
    """Sums over the elements of each row: changed elements, and two squares."""

    changed: Float64[np.ndarray, " rows"]
    error: Float64[np.ndarray, " rows"]
    asked: Float64[np.ndarray, " rows"]


def _survived(
    tensor: StoredTensor, update: Delta | None, output_dtype: str, sample: int | None, seed: int
) -> _Survived:
    """Measure one tensor.

    Args:
        tensor: the base's.
        update: all that is added to it; None for a change of dtype alone.
        output_dtype: of the merged tensor, by safetensors' name.
        sample: how many rows to look at; None for all.
        seed: of the sample.
    """
    count, columns = tensor.matrix_shape
    if sample is None or sample >= count:
        step = max(1, BLOCK_ELEMENTS // max(columns, 1))
        runs = [(start, min(start + step, count)) for start in range(0, count, step)]
    else:
        chosen = _generator(tensor.name, seed).choice(count, sample, replace=False)
        runs = [(row, row + 1) for row in sorted(chosen.tolist())]
    # A change that is too large for the dtype becomes infinite, and then so is what is lost.
    with np.errstate(over="ignore", invalid="ignore"):
        seen = _look(tensor, update, output_dtype, runs)
        return _summed_up(seen, count, columns, 0.0 if update is None else update.norm())


def _summed_up(seen: _PerRow, count: int, columns: int, norm: float) -> _Survived:
    """What the rows say of a tensor of `count` rows, whose change has this norm."""
    n = len(seen.asked)
    left_out = 1 - n / count
    changed = float(seen.changed.mean()) / columns
    changed_error = 0.0
    asked, error = float(seen.asked.sum()), float(seen.error.sum())
    lost = math.sqrt(error / asked) if asked > 0 else math.nan
    lost_error = lost * 0
    if left_out > 0:
        changed_error = float(seen.changed.std(ddof=1)) / columns * math.sqrt(left_out / n)
        if lost > 0:
            # lost² = Σerror/Σasked: the error of a ratio, then of its root.
            deviations = seen.error - lost**2 * seen.asked
            squared_error = float(deviations.std(ddof=1)) * math.sqrt(left_out / n) / (asked / n)
            lost_error = squared_error / (2 * lost)
    return _Survived(norm, n, changed, changed_error, lost, lost_error)


def _generator(name: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


_own = threading.local()
"""Each thread's `BlockMerger`, whose memory every block uses again."""


def _look(
    tensor: StoredTensor, update: Delta | None, output_dtype: str, runs: list[tuple[int, int]]
) -> _PerRow:
    """Merge runs of rows and compare each with what was asked for."""
    if not hasattr(_own, "merger"):
        _own.merger = BlockMerger()
    merger: BlockMerger = _own.merger
    _, columns = tensor.matrix_shape
    parts: dict[str, list[Any]] = {"changed": [], "error": [], "asked": []}
    blocks = tensor.read_runs((start * columns, stop * columns) for start, stop in runs)
    for (start, stop), values in zip(runs, blocks, strict=True):
        block = values.reshape(stop - start, columns)
        original = wide(block, tensor.dtype)
        asked = np.zeros(block.shape)
        if update is not None:
            # Kinds of change that depend on the base's numbers are given them.
            update.add_rows_to(asked, start, original)
        merged = merger.merge(block, tensor.dtype, update, start, output_dtype)[0]
        change = wide(merged, output_dtype)
        change -= original
        parts["changed"].append(np.count_nonzero(change, axis=1))
        change -= asked
        parts["error"].append(_squares(change))
        parts["asked"].append(_squares(asked))
    joined = {name: np.concatenate(part).astype(np.float64) for name, part in parts.items()}
    return _PerRow(**joined)


def _squares(matrix: Float64[np.ndarray, "rows columns"]) -> Float64[np.ndarray, " rows"]:
    squares: Float64[np.ndarray, " rows"] = np.einsum("ij,ij->i", matrix, matrix)
    return squares
