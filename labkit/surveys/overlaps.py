"""Between adapters: where two LoRAs pull together, apart, or do not meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from labkit.deltas.delta import Delta
from labkit.deltas.low_rank import LowRank
from labkit.deltas.passes import near_blocks
from labkit.deltas.projection import project
from labkit.errors import LabkitError
from labkit.files.tensor_file import StoredTensor
from labkit.machine import in_parallel
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.models.source import Source
from labkit.surveys.columns import HELD, OVERLAP, PROJECTED_VALUES
from labkit.surveys.surveyed_tensors import SurveyedTensor, table_order, tensors_to_survey

if TYPE_CHECKING:
    import pandas as pd

TOGETHER = 0.1
"""The cosine from which two deltas count as pulling together; its negative, as pulling apart.
At 0.1, the squared norm of the sum of two equally long deltas is 10 % more than if they did not
meet."""
NO_NUMBERS = {column.name: math.nan for column in OVERLAP}


def overlap(
    adapters: Sequence[Source | Checkpoint | str | Path],
    base: Checkpoint | str | Path | None = None,
    *,
    k: int | None = None,
) -> pd.DataFrame:
    """Compare adapters: one row for each pair of them, layer and module, all from the factors.

    A full model can stand among them, with a base: of its matrices the differences are read, and
    their largest singular vectors found by random projection.

    | column | formula |
    |---|---|
    | `layer`, `module`, `name` | as in `labkit.survey` |
    | `a`, `b` | the adapters' names |
    | `cosine` | `⟨ΔA, ΔB⟩_F / (‖ΔA‖_F ‖ΔB‖_F)`, from -1 to 1 |
    | `chance` | its standard deviation for deltas of random directions: `1/√(out·in)` |
    | `k` | singular vectors that are compared |
    | `left_overlap` | `‖UₐᵀU_b‖_F² / k`: the mean squared cosine of the principal angles between the spans of the top k left singular vectors (what the deltas write), from 0 to 1 |
    | `right_overlap` | the same of the right ones (what the deltas read) |
    | `left_angle`, `right_angle` | the smallest principal angle, in degrees |
    | `left_chance`, `right_chance` | the overlap to expect of random spans: `k/out`, `k/in` |
    | `meeting` | "together" from a cosine of 0.1 on, "apart" from -0.1 down, "do not meet" between; "only NAME" where one adapter changes nothing; "no factors" where one change is no product of factors |

    Two deltas can share a span without meeting: they write to the same directions what they read
    from different ones, and then their cosine is near 0.

    Sources: principal angles as in Björck and Golub 1973, Mathematics of Computation 27(123); the
    overlap of spans as in Hu et al. 2021, LoRA, arXiv:2106.09685, section 7.2.

    Args:
        adapters: two or more, opened or as references.
        base: the base model, to match names by; None compares modules of the same name.
        k: how many singular vectors; the smaller rank of the two, if left out, and of full models'
            large matrices 16. Directions with no part in ΔW (singular values below 1e-12 of the
            largest) never count.

    Raises:
        LabkitError: fewer than two adapters, a k below 1, or adapters of different shapes.
    """  # noqa: E501 - a table's row is one line
    import pandas as pd

    if len(adapters) < 2:
        raise LabkitError(f"an overlap needs two adapters or more, found {len(adapters)}")
    if k is not None and k < 1:
        raise LabkitError(f"an overlap compares k ≥ 1 singular vectors, found k={k}")
    opened = [open_source(adapter) for adapter in adapters]
    checkpoint = None if base is None else Checkpoint.open(base)
    names = _different_names(opened)
    listed = [
        {tensor.name: tensor for tensor in tensors_to_survey(checkpoint, one)} for one in opened
    ]
    pairs = [
        (names[first], names[second], listed[first].get(name), listed[second].get(name), k)
        for first, second in combinations(range(len(opened)), 2)
        for name in {**listed[first], **listed[second]}
    ]
    with in_parallel(_compare, pairs) as compared:
        rows = list(compared)
    order = {name: position for position, name in enumerate(names)}
    rows.sort(
        key=lambda row: (
            order[row["a"]],
            order[row["b"]],
            *table_order(row["layer"], row["module"]),
        )
    )
    table = pd.DataFrame(rows)
    table["layer"] = table["layer"].astype("Int64")
    return table


def _different_names(adapters: Sequence[Source]) -> list[str]:
    names: list[str] = []
    for adapter in adapters:
        name, count = adapter.name, 2
        while name in names:
            name, count = f"{adapter.name} ({count})", count + 1
        names.append(name)
    return names


def _compare(
    pair: tuple[str, str, SurveyedTensor | None, SurveyedTensor | None, int | None],
) -> dict[str, Any]:
    a, b, first, second, k = pair
    one = first or second
    assert one is not None  # noqa: S101 - a name comes from one of the two
    row: dict[str, Any] = {"layer": one.layer, "module": one.module, "name": one.name}
    row |= {"a": a, "b": b}
    if first is None or second is None:
        return row | {"meeting": f"only {a if first else b}", **NO_NUMBERS}
    x, y = first.delta(), second.delta()
    if first.projected or second.projected:
        spectra = [_spectrum(each, delta, k) for each, delta in ((first, x), (second, y))]
    elif isinstance(x, LowRank) and isinstance(y, LowRank):
        spectra = [_of_factors(x), _of_factors(y)]
    else:
        return row | {"meeting": "no factors", **NO_NUMBERS}
    if spectra[0].shape != spectra[1].shape:
        shapes = [f"{rows} × {columns}" for rows, columns in (each.shape for each in spectra)]
        raise LabkitError(
            f"{a} changes {one.name} as {shapes[0]} and {b} as {shapes[1]}; adapters of one base "
            "are compared"
        )
    inner = None
    if first.tensor is not None and (first.projected or second.projected):
        inner = _inner(x, y, first.tensor)
    return row | _numbers(spectra[0], spectra[1], inner, k, (a, b))


@dataclass(frozen=True)
class _Spectrum:
    """The norm of a delta, and the singular values and vectors that are known."""

    shape: tuple[int, int]
    norm: float
    left: np.ndarray
    values: np.ndarray
    right: np.ndarray


def _of_factors(delta: LowRank) -> _Spectrum:
    left, values, right = delta.svd()
    return _Spectrum(delta.shape, float(np.linalg.norm(values)), left, values, right)


def _spectrum(tensor: SurveyedTensor, delta: Delta, k: int | None) -> _Spectrum:
    if isinstance(delta, LowRank):
        return _of_factors(delta)
    assert tensor.tensor is not None  # noqa: S101 - beside a full model there is a base
    with HELD:
        seen = project(delta, tensor.tensor, k or PROJECTED_VALUES)
    return _Spectrum(tensor.tensor.matrix_shape, seen.norm, seen.left, seen.values, seen.right)


def _inner(x: Delta, y: Delta, base: StoredTensor) -> float:
    """`⟨ΔA, ΔB⟩_F`, of rows that are read from both."""
    return math.fsum(
        float(np.dot(one.values.reshape(-1), other.values.reshape(-1)))
        for one, other in zip(near_blocks(x, base), near_blocks(y, base), strict=True)
    )


def _numbers(
    x: _Spectrum, y: _Spectrum, inner: float | None, k: int | None, names: tuple[str, str]
) -> dict[str, Any]:
    rows, columns = x.shape
    sizes = [_size(x.values), _size(y.values)]
    if 0 in sizes:
        both = sizes == [0, 0]
        meeting = "do not meet" if both else f"only {names[0] if sizes[0] else names[1]}"
        return {**NO_NUMBERS, "meeting": meeting}
    top = min(*sizes, k or min(sizes))
    # ⟨ΔA, ΔB⟩ = Σ_ij σ_i τ_j (u_i·x_j)(v_i·y_j), so nothing but the spans' angles is needed.
    left, right = x.left.T @ y.left, x.right.T @ y.right
    if inner is None:
        inner = float(x.values @ (left * right) @ y.values)
    cosine = inner / (x.norm * y.norm)
    # Rounding alone may leave [-1, 1].
    cosine = min(1.0, max(-1.0, cosine))
    left_cosines, right_cosines = _cosines(left[:top, :top]), _cosines(right[:top, :top])
    meeting = "do not meet"
    if abs(cosine) >= TOGETHER:
        meeting = "together" if cosine > 0 else "apart"
    return {
        "cosine": cosine,
        "chance": 1 / math.sqrt(rows * columns),
        "k": top,
        "left_overlap": float((left_cosines**2).mean()),
        "right_overlap": float((right_cosines**2).mean()),
        "left_angle": math.degrees(math.acos(float(left_cosines[0]))),
        "right_angle": math.degrees(math.acos(float(right_cosines[0]))),
        "left_chance": top / rows,
        "right_chance": top / columns,
        "meeting": meeting,
    }


def _size(values: Float64[np.ndarray, " values"]) -> int:
    """How many singular values are not 0 but for rounding."""
    return int((values > 1e-12 * values[0]).sum()) if len(values) and values[0] > 0 else 0


def _cosines(products: Float64[np.ndarray, "k k"]) -> Float64[np.ndarray, " k"]:
    """The cosines of the principal angles, the smallest angle first."""
    return np.clip(np.linalg.svd(products, compute_uv=False), 0, 1)
