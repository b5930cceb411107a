"""The columns of surveys: of each one entry that says all there is to say of it.

An entry has the column's formula and the calculation, how rows add up to a layer, a module or the
whole adapter, and how figures and the command line show it. `survey`, `totals`, the figures and
`labkit inspect` read this list, so that a new column is a new entry, and a line in the docstring of
the function that gives it (a test says which).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from labkit.deltas.projection import project

if TYPE_CHECKING:
    import pandas as pd

    from labkit.deltas.delta import Delta
    from labkit.surveys.surveyed_tensors import SurveyedTensor

Needs = Literal["delta", "base", "weights", "rounding", "pair"]
"""What a column is made from: the delta alone; the base's norms too; layer weights too; the base's
numbers, merged and rounded (`labkit.survival`); or two adapters (`labkit.overlap`)."""


PROJECTED_VALUES = 16
"""Singular values of a full model's matrix that a survey looks for."""
HELD = threading.Semaphore(2)
"""Deltas of full models that are in memory at a time."""


@dataclass(frozen=True)
class MeasuredDelta:
    """A delta and what the columns are calculated from.

    Attributes:
        tensor: the tensor that it is added to.
        delta: what is added.
        singular_values: all of them, largest first; none for a change that is no product of
            factors.
        norm: its Frobenius norm.
        complete: whether these are all the singular values. Of a full model's matrix they are the
            largest, `PROJECTED_VALUES` at most.
    """

    tensor: SurveyedTensor
    delta: Delta
    singular_values: list[float]
    norm: float
    complete: bool = True

    @staticmethod
    def of(tensor: SurveyedTensor, values_wanted: int | None = None) -> MeasuredDelta:
        """Read a tensor's delta and measure it."""
        delta = tensor.delta()
        if tensor.projected and tensor.tensor is not None:
            with HELD:
                seen = project(delta, tensor.tensor, values_wanted or PROJECTED_VALUES)
            return MeasuredDelta(tensor, delta, seen.values.tolist(), seen.norm, seen.complete)
        found = delta.singular_values()
        values: list[float] = [] if found is None else found.tolist()
        norm = math.sqrt(math.fsum(v * v for v in values)) if values else delta.norm()
        return MeasuredDelta(tensor, delta, values, norm)


@dataclass(frozen=True)
class Column:
    """A column of a survey.

    Attributes:
        name: its name in the table.
        formula: what it is, in the words of the docstrings' tables.
        source: who defined it.
        needs: what it is made from.
        measure: calculates a row's value from its delta.
        derive: calculates the column from others of the table; a column with neither is given by
            the function that makes the table.
        adds_up: the value for several rows together, from these rows and the column's name; None
            where rows do not add up.
        label: its name on figures.
        heading: its name on the command line, which shows no column without one.
        importance: a narrow terminal leaves out the columns of least importance.
        text: how the command line writes a value, as Python's format.
        scale_from: where a colour scale begins.
    """

    name: str
    formula: str
    source: str = ""
    needs: Needs = "delta"
    measure: Callable[[MeasuredDelta], Any] | None = None
    derive: Callable[[pd.DataFrame], pd.Series[float]] | None = None
    adds_up: Callable[[pd.DataFrame, str], float] | None = None
    label: str = ""
    heading: str = ""
    importance: int = 0
    text: str = "#.4g"
    scale_from: float = 0.0

    @property
    def title(self) -> str:
        """What figures call it."""
        return self.label or self.name

    @property
    def per_cent(self) -> bool:
        """Whether its values are written in per cent."""
        return self.text.endswith("%")

    def written(self, value: float) -> str:
        """A value as the command line writes it; a missing one as a dash."""
        return "–" if math.isnan(value) else f"{value:{self.text}}".rstrip(".")


def _shape(measured: MeasuredDelta) -> tuple[int, ...]:
    tensor = measured.tensor.tensor
    return tuple(getattr(measured.delta, "shape", tensor.shape if tensor else ()))


def _spectral_norm(measured: MeasuredDelta) -> float:
    return max(measured.singular_values, default=math.nan)


def _stable_rank(measured: MeasuredDelta) -> float:
    largest = _spectral_norm(measured)
    return (measured.norm / largest) ** 2 if largest > 0 else math.nan


def _effective_rank(measured: MeasuredDelta) -> float:
    if not measured.complete:
        return math.nan
    total = math.fsum(measured.singular_values)
    portions = [value / total for value in measured.singular_values if value > 0]
    return math.exp(-math.fsum(p * math.log(p) for p in portions)) if portions else math.nan


def _share_of(norms: pd.Series[float]) -> pd.Series[float]:
    squares = norms**2
    total = squares.sum()
    return squares / total if total > 0 else squares * math.nan


def root_of_squares(rows: pd.DataFrame, name: str) -> float:
    """The norm of all rows together: they are different elements of one model."""
    return math.sqrt(math.fsum(rows[name].dropna() ** 2))


def largest(rows: pd.DataFrame, name: str) -> float:
    """The largest of the rows."""
    return float(rows[name].max())


def mean(rows: pd.DataFrame, name: str) -> float:
    """The rows' mean."""
    return float(rows[name].mean())


def total(rows: pd.DataFrame, name: str) -> float:
    """The rows' sum."""
    return float(rows[name].sum())


def _relative_norm(rows: pd.DataFrame, _: str) -> float:
    whole = root_of_squares(rows, "base_norm")
    return root_of_squares(rows, "norm") / whole if whole > 0 else math.nan


def _of_asked_for(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that were asked to change, their elements and the squared norm asked for."""
    asked = rows[rows["lost"].notna()]
    squares = asked["weighted_norm"] ** 2
    if not math.fsum(squares) > 0:
        asked = asked.iloc[:0]
    return asked.assign(squares=squares, elements=asked["shape"].map(math.prod))


def _changed(rows: pd.DataFrame, _: str) -> float:
    asked = _of_asked_for(rows)
    if asked.empty:
        return math.nan
    return math.fsum(asked["changed"] * asked["elements"]) / float(asked["elements"].sum())


def _changed_error(rows: pd.DataFrame, _: str) -> float:
    # Errors of different tensors are independent, and add as squares.
    asked = _of_asked_for(rows)
    if asked.empty:
        return math.nan
    squares = (asked["changed_error"] * asked["elements"]) ** 2
    return math.sqrt(math.fsum(squares)) / float(asked["elements"].sum())


def _lost(rows: pd.DataFrame, _: str) -> float:
    asked = _of_asked_for(rows)
    if asked.empty:
        return math.nan
    squares = asked["squares"]
    return math.sqrt(math.fsum(asked["lost"] ** 2 * squares) / math.fsum(squares))


def _lost_error(rows: pd.DataFrame, name: str) -> float:
    asked = _of_asked_for(rows)
    if asked.empty:
        return math.nan
    lost, squares = _lost(rows, name), asked["squares"]
    # d(lost) = Σ squares·lost_i·d(lost_i) / (Σ squares · lost)
    parts = (squares * asked["lost"] * asked["lost_error"]) ** 2
    return math.sqrt(math.fsum(parts)) / (math.fsum(squares) * lost) if lost > 0 else 0.0


SURVEY = (
    Column(
        "layer",
        "index from 0; missing outside the decoder layers",
        measure=lambda one: one.tensor.layer,
        heading="layer",
    ),
    Column(
        "module",
        "a short name, and the tensor's own",
        measure=lambda one: one.tensor.module,
        heading="module",
    ),
    Column("name", "a short name, and the tensor's own", measure=lambda one: one.tensor.name),
    Column("shape", "out × in, as the base stores it", measure=_shape),
    Column(
        "rank",
        "r, the columns of `B`",
        measure=lambda one: one.delta.rank,
    ),
    Column(
        "scaling",
        "`s`: alpha / r, or alpha / √r",
        "Kalajdzievski 2023, arXiv:2312.03732",
        measure=lambda one: one.tensor.scaling,
    ),
    Column(
        "norm",
        "`‖ΔW‖_F = √Σσ_i²`",
        measure=lambda one: one.norm,
        adds_up=root_of_squares,
        label="‖ΔW‖ (Frobenius)",
        heading="‖ΔW‖",
        importance=9,
    ),
    Column(
        "base_norm",
        "`‖W‖_F`",
        needs="base",
        adds_up=root_of_squares,
        label="‖W‖ (Frobenius)",
    ),
    Column(
        "relative_norm",
        "`‖ΔW‖_F / ‖W‖_F`",
        needs="base",
        derive=lambda table: table["norm"] / table["base_norm"].where(table["base_norm"] > 0),
        adds_up=_relative_norm,
        label="‖ΔW‖ / ‖W‖",
        heading="‖ΔW‖/‖W‖",
        importance=5,
        text=".2%",
    ),
    Column(
        "share",
        "`‖ΔW‖_F²` of this row / sum over all rows",
        derive=lambda table: _share_of(table["norm"]),
        adds_up=total,
        label="share of ‖ΔW‖²",
        heading="share",
        importance=3,
        text=".1%",
    ),
    Column(
        "spectral_norm",
        "`‖ΔW‖₂ = σ_1`",
        measure=_spectral_norm,
        adds_up=largest,
        label="‖ΔW‖₂ (spectral)",
    ),
    Column(
        "stable_rank",
        "`‖ΔW‖_F² / ‖ΔW‖₂²`, from 1 to r",
        "Rudelson and Vershynin 2007, J. ACM 54(4)",
        measure=_stable_rank,
        adds_up=mean,
        label="stable rank",
        heading="stable rank",
        importance=2,
        text=".1f",
        scale_from=1.0,
    ),
    Column(
        "effective_rank",
        "`exp(-Σ p_i log p_i)`, `p_i = σ_i/Σσ`",
        "Roy and Vetterli 2007, EUSIPCO",
        measure=_effective_rank,
        adds_up=mean,
        label="effective rank",
        heading="eff. rank",
        importance=1,
        text=".1f",
        scale_from=1.0,
    ),
    Column(
        "weight",
        "`w`, the layer's; `rest` outside the layers",
        needs="weights",
        adds_up=mean,
        label="layer weight",
        heading="w",
        importance=6,
        text=".2f",
    ),
    Column(
        "weighted_norm",
        "`‖wΔW‖_F` = absolute value of w, times `norm`",
        needs="weights",
        derive=lambda table: table["weight"].abs() * table["norm"],
        adds_up=root_of_squares,
        label="‖wΔW‖ (Frobenius)",
        heading="‖wΔW‖",
        importance=8,
    ),
    Column(
        "weighted_share",
        "`‖wΔW‖_F²` / sum over all rows",
        needs="weights",
        derive=lambda table: _share_of(table["weighted_norm"]),
        adds_up=total,
        label="share of ‖wΔW‖²",
        text=".1%",
    ),
    Column("dtype", "the output's", needs="rounding"),
    Column(
        "changed",
        "fraction of the elements with `W' ≠ W`",
        needs="rounding",
        adds_up=_changed,
        label="elements that change",
        heading="changed",
        importance=4,
        text=".1%",
    ),
    Column(
        "changed_error",
        "their standard errors; 0 where every row was looked at",
        needs="rounding",
        adds_up=_changed_error,
    ),
    Column(
        "lost",
        "`‖(W' - W) - wΔW‖_F / ‖wΔW‖_F`; NaN where nothing was asked for",
        needs="rounding",
        adds_up=_lost,
        label="lost to rounding",
        heading="lost",
        importance=7,
        text=".1%",
    ),
    Column(
        "lost_error",
        "their standard errors; 0 where every row was looked at",
        needs="rounding",
        adds_up=_lost_error,
    ),
)
"""The columns of a survey. Those that need the same stand in it in this order, those of the delta
alone first."""

_SPAN_OVERLAP = (
    "`‖UₐᵀU_b‖_F² / k`: the mean squared cosine of the principal angles between the spans of the "
    "top k left singular vectors (what the deltas write), from 0 to 1"
)
OVERLAP = tuple(
    Column(name, formula, needs="pair", label=label)
    for name, formula, label in (
        (
            "cosine",
            "`⟨ΔA, ΔB⟩_F / (‖ΔA‖_F ‖ΔB‖_F)`, from -1 to 1",
            "cosine of the two deltas",
        ),
        ("chance", "its standard deviation for deltas of random directions: `1/√(out·in)`", ""),
        ("k", "singular vectors that are compared", ""),
        ("left_overlap", _SPAN_OVERLAP, ""),
        ("right_overlap", "the same of the right ones (what the deltas read)", ""),
        ("left_angle", "the smallest principal angle, in degrees", ""),
        ("right_angle", "the smallest principal angle, in degrees", ""),
        ("left_chance", "the overlap to expect of random spans: `k/out`, `k/in`", ""),
        ("right_chance", "the overlap to expect of random spans: `k/out`, `k/in`", ""),
    )
)
"""The numbers that `labkit.overlap` gives of two deltas."""


def columns_that_need(*needs: Needs) -> list[Column]:
    """The survey's columns made from these things."""
    return [column for column in SURVEY if column.needs in needs]


def column_named(name: str) -> Column:
    """A table's column; one that is in no list shows its name and its plain numbers."""
    return _BY_NAME.get(name, Column(name, ""))


def derive(table: pd.DataFrame, needs: Needs) -> None:
    """Add the columns to a table that follow from those it has."""
    for column in columns_that_need(needs):
        if column.derive:
            table[column.name] = column.derive(table)


_BY_NAME = {column.name: column for column in (*SURVEY, *OVERLAP)}
