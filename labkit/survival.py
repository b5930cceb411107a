"""What survives rounding: how much of a small change reaches a weight of 16 bits."""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labkit.adapter import Adapter
from labkit.arithmetic import BlockMerger
from labkit.checkpoint import Checkpoint
from labkit.delta import Delta, LowRank
from labkit.errors import LabkitError, shown
from labkit.gradient import Gradient
from labkit.plan import Plan, plan
from labkit.receipt import MUCH_LOST
from labkit.recipe import Recipe, Term, as_gradient
from labkit.targets import in_parallel, opened_adapter, opened_base, place, short_names
from labkit.tensor_file import FLOATS, StoredTensor, read_fully

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64
"""Rows of each tensor that an estimate looks at."""
BLOCK_ELEMENTS = 1 << 17


def survival(
    base: Checkpoint | Plan | str | Path,
    adapter: Adapter | str | Path | None = None,
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
        adapter: the adapter, opened or as a reference.
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
        term = Term(opened_adapter(adapter), as_gradient(weights))
        resolved = plan(Recipe(opened_base(base), [term], rest, dtype))
    names = {row.base_tensor: row.layer for row in resolved.ledger if row.base_tensor}
    short = short_names((name.removesuffix(".weight"), layer) for name, layer in names.items())
    ordered = sorted(
        names, key=lambda name: place(names[name], short[name.removesuffix(".weight")])
    )

    def measure(name: str) -> _Survived:
        change = resolved.changes.get(name)
        tensor = resolved.base.tensors[name]
        code = resolved.output_dtype(tensor)
        if change is None and code == tensor.dtype:  # the merge keeps the base's bytes
            return _Survived(0.0, tensor.matrix_shape[0], 0.0, 0.0, math.nan, math.nan)
        update = change.update() if change else _nothing(tensor)
        return _survived(
            tensor, update, getattr(torch, FLOATS[code]), None if exact else rows, seed
        )

    table = []
    with (
        tqdm(total=len(ordered), desc="what survives rounding", disable=not progress) as bar,
        in_parallel(measure, ordered) as measured,
    ):
        for name, survived in zip(ordered, measured, strict=True):
            change = resolved.changes.get(name)
            tensor = resolved.base.tensors[name]
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
    from labkit.survey import lost_in_all

    if not lost_in_all(table)["lost"] > MUCH_LOST:
        return None
    return f"{rounding_sentence(table)}; --dtype float32 keeps it"


def rounding_sentence(table: pd.DataFrame) -> str | None:
    """The same about any loss, and without the way out; None if no change was asked for."""
    from labkit.survey import lost_in_all

    whole = lost_in_all(table)
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

    changed: Tensor
    error: Tensor
    asked: Tensor


def _nothing(tensor: StoredTensor) -> LowRank:
    """A change of rank 0, for a tensor that is only converted to another dtype."""
    rows, columns = tensor.matrix_shape
    return LowRank(
        torch.empty(rows, 0, dtype=torch.float64), torch.empty(0, columns, dtype=torch.float64)
    )


def _survived(
    tensor: StoredTensor, update: Delta, dtype: torch.dtype, sample: int | None, seed: int
) -> _Survived:
    count, columns = tensor.matrix_shape
    if sample is None or sample >= count:
        step = max(1, BLOCK_ELEMENTS // max(columns, 1))
        runs = [(start, min(start + step, count)) for start in range(0, count, step)]
    else:
        chosen = torch.randperm(count, generator=_generator(tensor.name, seed))[:sample]
        runs = [(row, row + 1) for row in sorted(chosen.tolist())]
    seen = _look(tensor, update, dtype, runs)
    n = len(seen.asked)
    left_out = 1 - n / count
    changed = float(seen.changed.mean()) / columns
    changed_error = 0.0
    asked, error = float(seen.asked.sum()), float(seen.error.sum())
    lost = math.sqrt(error / asked) if asked > 0 else math.nan
    lost_error = lost * 0
    if left_out > 0:
        changed_error = float(seen.changed.std()) / columns * math.sqrt(left_out / n)
        if lost > 0:
            # lost² = Σerror/Σasked: the error of a ratio, then of its root.
            deviations = seen.error - lost**2 * seen.asked
            squared_error = float(deviations.std()) * math.sqrt(left_out / n) / (asked / n)
            lost_error = squared_error / (2 * lost)
    return _Survived(update.norm(), n, changed, changed_error, lost, lost_error)


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


_own = threading.local()


def _look(
    tensor: StoredTensor, update: Delta, dtype: torch.dtype, runs: list[tuple[int, int]]
) -> _PerRow:
    """Merge runs of rows and compare each with what was asked for."""
    if not hasattr(_own, "merger"):
        _own.merger = BlockMerger(torch.device("cpu"))
        _own.buffer = bytearray()
    merger: BlockMerger = _own.merger
    stored = getattr(torch, tensor.torch_dtype)
    _, columns = tensor.matrix_shape
    row_bytes = columns * stored.itemsize
    parts: dict[str, list[Tensor]] = {"changed": [], "error": [], "asked": []}
    try:
        with tensor.file.open("rb", buffering=0) as file:
            for start, stop in runs:
                size = (stop - start) * row_bytes
                if len(_own.buffer) < size:
                    _own.buffer = bytearray(size)
                view = memoryview(_own.buffer)[:size]
                read_fully(file.fileno(), view, tensor.start + start * row_bytes, tensor.file)
                block = torch.frombuffer(view, dtype=stored).view(stop - start, columns)
                # Kinds of change that depend on the base's numbers are given them.
                asked = torch.zeros(block.shape, dtype=torch.float64)
                update.add_rows_to(asked, start, block)
                change = merger.merge(block, update, start, dtype)[0].double() - block.double()
                parts["changed"].append(torch.count_nonzero(change, dim=1))
                parts["error"].append(_squares(change.sub_(asked)))
                parts["asked"].append(_squares(asked))
    except OSError as error:
        raise LabkitError(f"cannot read {shown(tensor.file)}: {error.strerror}") from error
    joined: dict[str, Any] = {name: torch.cat(part).double() for name, part in parts.items()}
    return _PerRow(**joined)


def _squares(matrix: Tensor) -> Tensor:
    return torch.linalg.vecdot(matrix, matrix)
