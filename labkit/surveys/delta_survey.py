"""The survey: how much an adapter changes each layer and module, measured from its factors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.gradients.gradient import Gradient
from labkit.machine import in_parallel
from labkit.merging.recipe import as_gradient, pattern_matches
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.models.source import Source
from labkit.surveys.adding_up import totals
from labkit.surveys.base_norms import base_norms
from labkit.surveys.columns import MeasuredDelta, columns_that_need, derive
from labkit.surveys.rounding_loss import survival
from labkit.surveys.surveyed_tensors import tensors_to_survey

if TYPE_CHECKING:
    import pandas as pd


def survey(
    base: Checkpoint | str | Path | None,
    adapter: Source | Checkpoint | str | Path,
    weights: Gradient | str | None = None,
    *,
    rest: float | None = None,
    dtype: str = "auto",
    exact: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    r"""Measure what an adapter or a full model changes: one row for each layer and module.

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
    | `share` | `‖ΔW‖_F²` of this row / sum over all rows | |
    | `spectral_norm` | `‖ΔW‖₂ = σ_1` | |
    | `stable_rank` | `‖ΔW‖_F² / ‖ΔW‖₂²`, from 1 to r | Rudelson and Vershynin 2007, J. ACM 54(4) |
    | `effective_rank` | `exp(-Σ p_i log p_i)`, `p_i = σ_i/Σσ` | Roy and Vetterli 2007, EUSIPCO |

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

    Of a full model `ΔW = W_model − W` is read from both, in bounded memory, and `σ_1` is found by
    random projection (`labkit.deltas.projection`). It has no rank and no scaling, and an effective
    rank only where a matrix is so small that all its singular values are known.

    A ΔW that is 0 has no stable and no effective rank: both are NaN. So are all columns about rank
    and singular values for a change that is no product of factors.

    Args:
        base: the base model, opened or as a reference; None for the columns that need none. Then
            the layers are told from the modules' names.
        adapter: the adapter or the full model, opened or as a reference; a model needs a base.
        weights: a gradient, to see what it leaves of the adapter.
        rest: the weight of what lies outside the layers; None leaves those rows' weight missing.
        dtype: of the merged model, for what survives rounding; "auto" keeps each tensor's own.
        exact: measure what survives rounding on every row, in place of a sample of rows.
        progress: show progress bars.

    Raises:
        LabkitError: adapter and base do not fit, or the gradient has another number of layers.
    """
    import pandas as pd

    checkpoint = None if base is None else Checkpoint.open(base)
    opened = open_source(adapter)
    gradient = None if weights is None else as_gradient(weights)
    tensors = tensors_to_survey(checkpoint, opened)
    if gradient is not None:
        layers = [tensor.layer for tensor in tensors if tensor.layer is not None]
        gradient.require(checkpoint.layers if checkpoint else max(layers, default=-1) + 1)
    with in_parallel(lambda tensor: _row(MeasuredDelta.of(tensor)), tensors) as measured:
        table = pd.DataFrame(list(measured))
    table["layer"] = table["layer"].astype("Int64")
    derive(table, "delta")
    if checkpoint is not None:
        names = [tensor.tensor.name for tensor in tensors if tensor.tensor]
        norms = base_norms(checkpoint, names, progress)
        table["base_norm"] = [norms[name] for name in names]
        derive(table, "base")
    if gradient is not None:
        outside = math.nan if rest is None else rest
        table["weight"] = [
            outside if tensor.layer is None else gradient[tensor.layer] for tensor in tensors
        ]
        derive(table, "weights")
    if gradient is not None and checkpoint is not None:
        survived = survival(
            checkpoint,
            opened,
            gradient,
            dtype,
            rest=0.0 if rest is None else rest,
            exact=exact,
            progress=progress,
        )
        rounding = ["name", *(column.name for column in columns_that_need("rounding"))]
        table = table.merge(survived[rounding], on="name", how="left", validate="many_to_one")
    table.attrs["adapter"] = opened.name
    return table


def spectra(
    base: Checkpoint | str | Path | None, adapter: Source | Checkpoint | str | Path, k: int = 64
) -> pd.DataFrame:
    """Give every singular value of every delta, largest first: one row for each.

    Columns: `layer`, `module`, `name`, `index` from 1, `value` (`σ_i`), and `relative`
    (`σ_i / σ_1`). A change that is no product of factors has none.

    Args:
        base: the base model, for its names and layers; None tells them from the adapter's names.
        adapter: the adapter or the full model, opened or as a reference.
        k: of a full model's large matrix the `k` largest are given, found by random projection.
    """
    import pandas as pd

    opened = open_source(adapter)
    tensors = tensors_to_survey(None if base is None else Checkpoint.open(base), opened)
    with in_parallel(
        lambda tensor: MeasuredDelta.of(tensor, k).singular_values, tensors
    ) as measured:
        rows = [
            {
                "layer": tensor.layer,
                "module": tensor.module,
                "name": tensor.name,
                "index": index,
                "value": value,
                "relative": value / values[0] if values[0] > 0 else math.nan,
            }
            for tensor, values in zip(tensors, measured, strict=True)
            for index, value in enumerate(values, start=1)
        ]
    table = pd.DataFrame(rows, columns=["layer", "module", "name", "index", "value", "relative"])
    table["layer"] = table["layer"].astype("Int64")
    table.attrs["adapter"] = opened.name
    return table


def layer_norms(
    base: Checkpoint | str | Path, adapter: Source | Checkpoint | str | Path, pattern: str = ""
) -> list[float]:
    """Measure how much an adapter changes each layer: `‖ΔW‖ / ‖W‖` over the modules it changes.

    Args:
        base: the base model, opened or as a reference.
        adapter: the adapter, opened or as a reference.
        pattern: a module pattern, as in `Recipe`'s `weights_for`; every module if left out.

    Returns:
        One number for each layer; 0 where no such module changes.
    """
    checkpoint = Checkpoint.open(base)
    table = survey(checkpoint, adapter, progress=False)
    chosen = table["layer"].notna() & table["name"].map(
        lambda name: not pattern or pattern_matches(pattern, name)
    )
    norms = [0.0] * checkpoint.layers
    for row in totals(table[chosen], "layer").to_dict("records"):
        if row["relative_norm"] > 0:
            norms[row["layer"]] = float(row["relative_norm"])
    return norms


def _row(measured: MeasuredDelta) -> dict[str, Any]:
    return {
        column.name: column.measure(measured)
        for column in columns_that_need("delta")
        if column.measure
    }
