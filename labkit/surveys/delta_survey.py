"""The survey: how much an adapter changes each layer and module, measured from its factors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.machine import in_parallel
from labkit.merging.recipe import as_gradient
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.surveys.measured import Target, opened_adapter, opened_base, targets

if TYPE_CHECKING:
    import pandas as pd

OUTSIDE = "outside"
"""How tables by layer name what lies outside the decoder layers."""


def survey(
    base: Checkpoint | str | Path | None,
    adapter: Adapter | str | Path,
    weights: Gradient | str | None = None,
    *,
    rest: float | None = None,
    dtype: str = "auto",
    exact: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    r"""Measure what an adapter changes: one row for each layer and module.

    All columns about `ΔW` come from its factors and open no tensor of the base. `σ_i` are the
    singular values of `ΔW`, from QR of `s·B` and `Aᵀ` and an r × r SVD (Golub and Van Loan, Matrix
    Computations, section 5.4). No column has a unit but the norms, which have that of the weights.

    | column | formula | source |
    |---|---|---|
    | `layer` | index from 0; missing outside the decoder layers | |
    | `module`, `name` | a short name, and the tensor's own | |
    | `shape` | out × in, as the base stores it | |
    | `rank` | r, the columns of `B` | |
    | `scaling` | `s`: alpha / r, or alpha / √r | Kalajdzievski 2023, arXiv:2312.03732 |
    | `norm` | `‖ΔW‖_F = √Σσ_i²` | |
    | `spectral_norm` | `‖ΔW‖₂ = σ_1` | |
    | `stable_rank` | `‖ΔW‖_F² / ‖ΔW‖₂²`, from 1 to r | Rudelson and Vershynin 2007, J. ACM 54(4) |
    | `effective_rank` | `exp(-Σ p_i log p_i)`, `p_i = σ_i/Σσ` | Roy and Vetterli 2007, EUSIPCO |
    | `share` | `‖ΔW‖_F²` of this row / sum over all rows | |

    With a base, from one pass over its tensors, remembered in the user's cache:

    | column | formula |
    |---|---|
    | `base_norm` | `‖W‖_F` |
    | `relative_norm` | `‖ΔW‖_F / ‖W‖_F` |

    With weights:

    | column | formula |
    |---|---|
    | `weight` | `w`, the layer's; `rest` outside the layers |
    | `weighted_norm` | `‖wΔW‖_F` = absolute value of w, times `norm` |
    | `weighted_share` | `‖wΔW‖_F²` / sum over all rows |
    | `changed`, `lost`, … | with a base: what survives rounding, as `labkit.survival` gives it |

    A ΔW that is 0 has no stable and no effective rank: both are NaN. So are all columns about rank
    and singular values for a change that is no product of factors.

    Args:
        base: the base model, opened or as a reference; None for the columns that need none. Then
            the layers are told from the modules' names.
        adapter: the adapter, opened or as a reference.
        weights: a gradient, to see what it leaves of the adapter.
        rest: the weight of what lies outside the layers; None leaves those rows' weight missing.
        dtype: of the merged model, for what survives rounding; "auto" keeps each tensor's own.
        exact: measure what survives rounding on every row, in place of a sample of rows.
        progress: show progress bars.

    Raises:
        LabkitError: adapter and base do not fit, or the gradient has another number of layers.
    """
    import pandas as pd

    checkpoint = None if base is None else opened_base(base)
    opened = opened_adapter(adapter)
    gradient = None if weights is None else as_gradient(weights)
    found = targets(checkpoint, opened)
    if gradient is not None:
        layers = [target.layer for target in found if target.layer is not None]
        gradient.require(checkpoint.layers if checkpoint else max(layers, default=-1) + 1)
    with in_parallel(_measure, found) as measured:
        rows = [row for row, _ in measured]
    table = pd.DataFrame(rows)
    table["layer"] = table["layer"].astype("Int64")
    table["share"] = _shares(table["norm"])
    if checkpoint is not None:
        from labkit.surveys.base_norms import base_norms

        names = [target.tensor.name for target in found if target.tensor]
        norms = base_norms(checkpoint, names, progress)
        table["base_norm"] = [norms[name] for name in names]
        table["relative_norm"] = table["norm"] / table["base_norm"].where(table["base_norm"] > 0)
    if gradient is not None:
        outside = math.nan if rest is None else rest
        table["weight"] = [
            outside if target.layer is None else gradient[target.layer] for target in found
        ]
        table["weighted_norm"] = table["weight"].abs() * table["norm"]
        table["weighted_share"] = _shares(table["weighted_norm"])
        if checkpoint is not None:
            from labkit.surveys.rounding_loss import survival

            survived = survival(
                checkpoint,
                opened,
                gradient,
                dtype,
                rest=0.0 if rest is None else rest,
                exact=exact,
                progress=progress,
            )
            columns = ["name", "dtype", "changed", "changed_error", "lost", "lost_error"]
            table = table.merge(survived[columns], on="name", how="left", validate="many_to_one")
    table.attrs["adapter"] = opened.name
    return table


def spectra(
    base: Checkpoint | str | Path | None, adapter: Adapter | str | Path, *, progress: bool = True
) -> pd.DataFrame:
    """Give every singular value of every delta, largest first: one row for each.

    Columns: `layer`, `module`, `name`, `index` from 1, `value` (`σ_i`), and `relative`
    (`σ_i / σ_1`).

    Args:
        base: the base model, for its names and layers; None tells them from the adapter's names.
        adapter: the adapter, opened or as a reference.
        progress: not used so far; nothing here takes long.
    """
    import pandas as pd

    opened = opened_adapter(adapter)
    found = targets(None if base is None else opened_base(base), opened)
    with in_parallel(_measure, found) as measured:
        rows = [
            {
                "layer": row["layer"],
                "module": row["module"],
                "name": row["name"],
                "index": index,
                "value": value,
                "relative": value / values[0] if values[0] > 0 else math.nan,
            }
            for row, values in measured
            for index, value in enumerate(values, start=1)
        ]
    table = pd.DataFrame(rows)
    table["layer"] = table["layer"].astype("Int64")
    table.attrs["adapter"] = opened.name
    return table


def totals(table: pd.DataFrame, by: Literal["layer", "module", "tensor"] = "layer") -> pd.DataFrame:
    """Add a survey's rows up by layer or by module, in the order in which they stand.

    Norms add as their squares, `‖·‖² = Σ‖·‖²`, since the rows are different elements of one model;
    shares add; `changed` is the mean over elements and `lost` the one over squares; ranks and
    weights are the rows' mean.

    Args:
        table: what `survey` gave.
        by: "layer", "module", or "tensor" for the rows as they are.

    Raises:
        LabkitError: another word for `by`.
    """
    import pandas as pd

    if by not in ("layer", "module", "tensor"):
        raise LabkitError(
            f"a survey is added up by layer, module or tensor, found {shown(repr(by))}"
        )
    work = table.copy()
    work["layer"] = [OUTSIDE if pd.isna(layer) else int(layer) for layer in table["layer"]]
    if by == "tensor":
        return work
    rows = []
    for key, group in work.groupby(by, sort=False):
        row: dict[str, Any] = {by: key, "tensors": len(group)}
        for column in ("norm", "base_norm", "weighted_norm"):
            if column in group:
                row[column] = math.sqrt(math.fsum(group[column].dropna() ** 2))
        row["spectral_norm"] = group["spectral_norm"].max()
        for column in ("stable_rank", "effective_rank", "weight"):
            if column in group:
                row[column] = group[column].mean()
        for column in ("share", "weighted_share"):
            if column in group:
                row[column] = group[column].sum()
        if "base_norm" in group and row["base_norm"] > 0:
            row["relative_norm"] = row["norm"] / row["base_norm"]
        if "lost" in group:
            row |= lost_in_all(group)
        rows.append(row)
    return pd.DataFrame(rows)


def lost_in_all(table: pd.DataFrame) -> dict[str, float]:
    """What rounding loses of all rows together: `changed` and `lost`, each with its error.

    `lost² = Σ lost²·‖wΔW‖² / Σ‖wΔW‖²` over the rows, and `changed` is the mean over all elements
    of the tensors with a weight. Errors of different tensors are independent, and add as squares.

    Args:
        table: with the columns of `labkit.survival`.
    """
    counted = table[table["lost"].notna()]
    squares = counted["weighted_norm"] ** 2
    whole = math.fsum(squares)
    elements = counted["shape"].map(math.prod)
    if not whole > 0:
        return dict.fromkeys(("changed", "changed_error", "lost", "lost_error"), math.nan)
    lost = math.sqrt(math.fsum(counted["lost"] ** 2 * squares) / whole)
    # d(lost) = Σ squares·lost_i·d(lost_i) / (whole·lost)
    parts = (squares * counted["lost"] * counted["lost_error"]) ** 2
    return {
        "changed": math.fsum(counted["changed"] * elements) / elements.sum(),
        "changed_error": math.sqrt(math.fsum((counted["changed_error"] * elements) ** 2))
        / float(elements.sum()),
        "lost": lost,
        "lost_error": math.sqrt(math.fsum(parts)) / (whole * lost) if lost > 0 else 0.0,
    }


def _measure(target: Target) -> tuple[dict[str, Any], list[float]]:
    """One row of the survey, and the singular values."""
    delta = target.delta()
    # A change that is no product of factors has a norm, and neither rank nor singular values.
    found = delta.singular_values()
    values: list[float] = [] if found is None else found.tolist()
    norm = math.sqrt(math.fsum(v * v for v in values)) if values else delta.norm()
    largest, total = max(values, default=math.nan), math.fsum(values)
    portions = [value / total for value in values if value > 0]
    row = {
        "layer": target.layer,
        "module": target.module,
        "name": target.name,
        "shape": tuple(getattr(delta, "shape", target.tensor.shape if target.tensor else ())),
        "rank": getattr(delta, "rank", None),
        "scaling": target.scaling,
        "norm": norm,
        "spectral_norm": largest,
        "stable_rank": (norm / largest) ** 2 if largest > 0 else math.nan,
        "effective_rank": math.exp(-math.fsum(p * math.log(p) for p in portions))
        if portions
        else math.nan,
    }
    return row, values


def _shares(norms: pd.Series[float]) -> pd.Series[float]:
    squares = norms**2
    total = squares.sum()
    return squares / total if total > 0 else squares * math.nan
