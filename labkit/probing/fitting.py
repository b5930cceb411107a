"""`fit`: layer weights that follow from what is wanted, and how good they are on other text."""

from __future__ import annotations

import html
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import LiveModel, Weights
from labkit.merging.fitted import Fitted, FittedText, HeldOutRow
from labkit.merging.recipe import Term, as_gradient
from labkit.probing.anchor_search import search_anchors
from labkit.probing.comparison import (
    KNOTS,
    WORTHWHILE,
    ConstantsCurve,
    SameKl,
    held_out_rows,
)
from labkit.probing.evaluation import BASE, FULL
from labkit.probing.families import DECIMALS, FAMILIES, Cells, Family, LayerWeights
from labkit.probing.intervals import LEVEL
from labkit.probing.layer_effects import listed
from labkit.probing.objective import Objective, Scores
from labkit.probing.searching import By, Search, Wanted
from labkit.probing.texts import Texts
from labkit.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

FIT = "fit"
MEASURING = "fit, measuring held-out text"
ROWS = (BASE, FULL, FIT, *(f"best {name}" for name in FAMILIES))
"""Names of a table's own rows; those of constants begin with "constant"."""
MOST_PICTURES = 4
PASSAGES = 32
TOKENS = 32
"""Many passages, and the beginning of each: a list that was searched on 12 passages of 48 tokens
gained on those what it did not gain on others (benchmarks/README.md)."""
SMOOTH = 0.01
"""Weak: 0.1 takes from what a list gains on text that was not searched, where much was searched
(benchmarks/README.md)."""
RIVALS: tuple[Family, ...] = ("ramp", "step")
RIVAL_EVALUATIONS = 2
"""Passes that a rival gets: what was seen before has shown most of the way."""
MORE_HELD_OUT = 2
"""So many times as many passages are held out as are searched on, where there are as many."""

SetsOfTexts = Texts | Sequence[Texts]


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Summary):
    """Fitted layer weights, and how good they are on text that was held out.

    Attributes:
        gradient: the gradient; with several adapters or kinds of module a mapping of them, by the
            keys that `live.weights` takes.
        terms: the same as terms of a recipe, one for each adapter; recipe and card then say what
            they were fitted on.
        better: whether the NLL of each target is below that of the constant of the same KL, and of
            smaller ones, with its whole interval, and by 0.02 nats a token in the mean.
        sentence: that in words.
        table: held-out rows as those of `lk.evaluate`, and `from_constant`, `from_constant_low`,
            `from_constant_high`: the NLL less that of the constant of the same KL, paired by
            passage (measured, for constants interpolated); or of a smaller constant, where
            that has a smaller NLL. Empty if the search was stopped twice.
        rivals: the best list of each other family, by its name in the table ("best ramp").
        history: each evaluation with its weights, values and derivatives; `fit` goes on from it.
        strength: the weight of the KL.
        family: what the lists were chosen among.
        stopped: whether the search was stopped before its evaluations were made.
        seconds: of processor time, all in all.
    """

    gradient: Gradient | Mapping[str, Gradient]
    terms: tuple[Term, ...]
    better: bool
    sentence: str
    table: pd.DataFrame = field(repr=False)
    rivals: Mapping[str, Gradient | Mapping[str, Gradient]] = field(repr=False)
    history: pd.DataFrame = field(repr=False)
    strength: float
    family: Family
    stopped: bool
    seconds: float

    def summary(self) -> Iterator[tuple[str, str]]:
        """The lines: a label and a text each."""
        named = {"": self.gradient} if isinstance(self.gradient, Gradient) else self.gradient
        for name, gradient in named.items():
            yield f"gradient {name}".strip(), str(gradient)
        yield "held out", self.sentence
        made = f"{len(self.history)} evaluations" + (", stopped" if self.stopped else "")
        yield "search", f"{self.family}, strength {self.strength:g}: {made}, {self.seconds:.0f} s"

    def _repr_html_(self) -> str:
        named = {"": self.gradient} if isinstance(self.gradient, Gradient) else self.gradient
        pictures = "".join(
            html.escape(name) + one._repr_mimebundle_()["text/html"]
            for name, one in list(named.items())[:MOST_PICTURES]
        )
        return super()._repr_html_() + pictures + held_out_html(self.table)


def fit(
    model: LiveModel,
    target: SetsOfTexts,
    keep: SetsOfTexts,
    strength: float = 0.3,
    bounds: tuple[float, float] = (0.0, 1.0),
    smooth: float = SMOOTH,
    evaluations: int = 8,
    *,
    by: By = "layer",
    family: Family = "free",
    method: Literal["gradient", "optuna"] = "gradient",
    objective: Callable[[LiveModel], float] | None = None,
    held_out: tuple[SetsOfTexts, SetsOfTexts] | None = None,
    beside: Mapping[str, Weights] | None = None,
    rivals: Sequence[Family] = RIVALS,
    passages: int | None = PASSAGES,
    tokens: int = TOKENS,
    history: pd.DataFrame | str | Path | None = None,
    stop: threading.Event | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """Find the layer weights that make some text likely, and leave the model alone elsewhere.

    Minimises `NLL(target) + strength · KL(base ‖ merge on keep) + smooth · Σ (w_{l+1} - w_l)²`,
    in nats a token, on one part of the texts, and measures the result on the other: against base,
    full LoRA, the best constant, the best ramp and the best step. One sentence then says whether
    the list is better than one number for all layers that moves the model as far, or no better.

    The search begins at the best constant, which six forward passes find. An evaluation is a pass
    over the texts, forwards and backwards, that gives the value and all derivatives; a quasi-Newton
    method with bounds (`labkit.probing.quadratic`) says where the next one is made. Ramp and step,
    for comparison, take two evaluations each on top, and the constants of several LoRAs half as
    many as the search. An interrupt ends the search and keeps the best; a second one ends the
    measuring.

    Args:
        model: the live model, with one LoRA or several.
        target: what is to become likely; of several sets the mean counts.
        keep: where the merge is to stay near the base; likewise.
        strength: the weight of the KL: how much NLL a nat of KL is worth.
        bounds: the smallest and the largest layer weight.
        smooth: the weight of the differences between neighbouring layers.
        evaluations: at most so many; exactly counted.
        by: a weight for each layer, or for each layer and kind of module ("kind").
        family: "free" weights; "anchors" (six, straight lines between), a "ramp", a "step" or a
            "constant", which are lists that people can read.
        method: "gradient"; or "optuna" for what no gradient goes through: Optuna's sampler (TPE)
            over the family's parameters, of which "anchors" is the sensible one then, by forward
            passes; `pip install "labkit[optuna]"`.
        objective: with "optuna", a function of the live model, with the layer weights to judge in
            force, to be minimised in place of NLL and KL: an own metric, such as the share of
            wrong answers.
        held_out: target and keep to measure on, in place of a part of the texts.
        beside: name -> a gradient of your own, for all LoRAs, that the table shall show too.
        rivals: other families whose best list the table shows.
        passages: of each set at most so many are searched on, drawn over its documents, and twice
            as many held out; all if None.
        tokens: of each passage the first so many that count.
        history: an earlier result's `.history`, or a file, to go on from. The file is written to
            as well, so a search whose process ended can go on.
        stop: ends the search when another thread sets it; the best is kept and measured.
        seed: of splits, draws of passages, intervals and Optuna.
        progress: whether to show a bar with the objective.

    Raises:
        LabkitError: a number out of range, an unknown choice, a name in `beside` that is a row's
            own, texts that cannot be split, or a history of something else.
    """
    wanted = wanted_from(strength, smooth, bounds, evaluations)
    began = time.process_time()
    if method not in ("gradient", "optuna"):
        raise LabkitError(f"the method is {shown(repr(method))}; expected gradient or optuna")
    for wished in (family, *rivals):
        if wished not in FAMILIES:
            raise LabkitError(
                f"the family {shown(repr(wished))} is unknown; known are {', '.join(FAMILIES)}"
            )
    if objective is not None and method != "optuna":
        raise LabkitError("an objective of your own has no gradient; use it with method='optuna'")
    own = {name: as_gradient(one) for name, one in (beside or {}).items()}
    for name, one in own.items():
        one.require(model.base.layers, f"beside, {shown(name)}")
        if name in ROWS or name.startswith("constant"):
            raise LabkitError(
                f"the name {shown(repr(name))} in beside is that of a row which the table has of "
                "its own; choose another"
            )
    parts = search_and_held_out(target, keep, held_out, passages, tokens, seed)
    more = RIVAL_EVALUATIONS * len(rivals) + of_constants(len(model.adapters), evaluations)
    with bar_of(evaluations + more, progress) as bar:
        search = Search(model, *parts[0], tokens, by, history, stop, bar, objective is not None)
        measured = HeldOut(model, search.weights, *parts[1], tokens, wanted.bounds[1], seed)
        found = search_once(search, wanted, family, evaluations, method, objective, seed, rivals)
        bar.set_description(MEASURING)
        table, same = _measured(measured, found, own)
    cells = found.cells
    sentence = measured.sentence(same, found.direction)
    record = fitted_record(
        sentence, wanted, family, len(search.history.made), listed(target), listed(keep), table
    )
    return Fit(
        search.weights.shown(cells),
        tuple(replace(term, fitted=record) for term in search.weights.terms(cells)),
        same is not None and same.better,
        sentence,
        table,
        {f"best {name}": search.weights.shown(one) for name, one in found.rivals.items()},
        search.history.table(),
        float(strength),
        family,
        search.stopped,
        time.process_time() - began,
    )


def fitted_record(
    sentence: str,
    wanted: Wanted,
    family: str,
    evaluations: int,
    targets: Sequence[Texts],
    keeps: Sequence[Texts],
    table: pd.DataFrame,
) -> Fitted:
    """What a recipe and a card say of a fit; a row without an interval is left out."""
    texts = [
        FittedText(role, one.name, one.sha256, len(one))
        for role, sets in (("target", targets), ("keep", keeps))
        for one in sets
    ]
    rows = [
        HeldOutRow(row.gradient, row.text, row.metric, row.estimate, row.low, row.high)
        for row in rows_of(table)
        if math.isfinite(row.low) and math.isfinite(row.high)
    ]
    return Fitted(
        sentence, wanted.strength, wanted.smooth, family, evaluations, tuple(texts), tuple(rows)
    )


def wanted_from(
    strength: float, smooth: float, bounds: tuple[float, float], evaluations: int
) -> Wanted:
    """Check what to minimise.

    Raises:
        LabkitError: a number out of range.
    """
    for name, value in (("strength", strength), ("smooth", smooth)):
        if not (math.isfinite(value) and value >= 0):
            raise LabkitError(f"{name} is {value:g}; expected a number of at least 0")
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high and high > 0):
        raise LabkitError(
            f"bounds are {low:g} and {high:g}; expected the smallest and the largest layer weight, "
            "the largest above 0"
        )
    if evaluations < 1:
        raise LabkitError(f"evaluations is {evaluations}; expected at least 1")
    return Wanted(float(strength), float(smooth), (float(low), float(high)))


@contextmanager
def bar_of(evaluations: int, progress: bool) -> Iterator[Any]:
    """A bar of evaluations, full at the end: a search that needs fewer is no failure."""
    from tqdm.auto import tqdm

    with tqdm(total=evaluations, desc="fit", disable=not progress) as bar:
        yield bar
        bar.total = bar.n
        bar.refresh()


Parts = tuple[list[Texts], list[Texts]]


def search_and_held_out(
    target: SetsOfTexts,
    keep: SetsOfTexts,
    held_out: tuple[SetsOfTexts, SetsOfTexts] | None,
    passages: int | None,
    tokens: int,
    seed: int,
) -> tuple[Parts, Parts]:
    """Target and keep to search on, and target and keep that are held out.

    Raises:
        LabkitError: sets of one name, no passages to be drawn, or texts that cannot be split.
    """
    if passages is not None and passages < 1:
        raise LabkitError(f"passages is {passages}; expected at least 1, or None for all")
    if tokens < 1:
        raise LabkitError(f"tokens is {tokens}; expected at least 1")
    targets, keeps = listed(target), listed(keep)
    listed([*targets, *keeps])
    if held_out is None:
        split = [[one.split(seed=seed) for one in sets] for sets in (targets, keeps)]
        searched, other = (
            tuple([pair[part] for pair in pairs] for pairs in split) for part in (0, 1)
        )
    else:
        searched, other = (targets, keeps), tuple(listed(one) for one in held_out)
    if passages is not None:
        searched = tuple([one.take(passages, seed) for one in sets] for sets in searched)
        more = MORE_HELD_OUT * passages
        other = tuple([one.take(more, seed) for one in sets] for sets in other)
    return (searched[0], searched[1]), (other[0], other[1])


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        cells: the layer weights.
        direction: the constants of the adapters, the largest of them 1.
        constant: the best constants, as layer weights.
        rivals: the best lists of other families.
    """

    cells: Cells
    direction: tuple[float, ...]
    constant: Cells
    rivals: dict[str, Cells]


def search_once(
    search: Search,
    wanted: Wanted,
    family: Family,
    evaluations: int,
    method: str = "gradient",
    objective: Callable[[LiveModel], float] | None = None,
    seed: int = 0,
    rivals: Sequence[Family] = RIVALS,
) -> Found:
    """Search from the best constant on, or from a better point seen, and look for rivals beside.

    Raises:
        KeyboardInterrupt: it came before anything was found.
    """
    direction, constant = _best_constant(search, wanted, evaluations)
    others = [] if method == "optuna" else [rival for rival in rivals if rival != family]
    with search.interruptible():
        if method == "optuna":
            search_anchors(search, wanted, family, constant, evaluations, objective, seed)
        else:
            search.minimise(wanted, family, constant, evaluations)
            for rival in others:
                search.minimise(wanted, rival, constant, RIVAL_EVALUATIONS)
    best = {one: search.best(wanted, one) for one in (family, *others)}
    cells = best.pop(family)
    return Found(
        constant if cells is None else cells,
        direction,
        constant,
        {name: one for name, one in best.items() if one is not None},
    )


def of_constants(adapters: int, evaluations: int) -> int:
    """How many evaluations the constants of several adapters take, on top of the search's."""
    return max(1, evaluations // 2) if adapters > 1 else 0


def _best_constant(
    search: Search, wanted: Wanted, evaluations: int
) -> tuple[tuple[float, ...], Cells]:
    """The constants' proportion, the largest 1, and the best constants as layer weights."""
    low, high = wanted.bounds
    direction = (1.0,) * search.weights.adapters
    share = search.curve(direction, high).best(wanted.strength)
    start = search.weights.constant([min(max(share, low), high)] * len(direction))
    if len(direction) > 1:
        with search.interruptible():
            search.minimise(wanted, "constant", start, of_constants(len(direction), evaluations))
        best = search.best(wanted, "constant")
        start = start if best is None else best
        constants = search.weights.constants(start)
        if max(constants) > 0:
            direction = tuple(one / max(constants) for one in constants)
    return direction, np.round(start, DECIMALS)


class HeldOut:
    """Held-out texts, and the constants' curve on them.

    Args:
        model: the live model.
        weights: its layer weights as cells.
        targets: target texts.
        keeps: texts to keep.
        tokens: of each passage at most.
        largest: the largest constant of the curve, at least 1.
        seed: of the intervals' draws.
    """

    def __init__(
        self,
        model: LiveModel,
        weights: LayerWeights,
        targets: Sequence[Texts],
        keeps: Sequence[Texts],
        tokens: int,
        largest: float,
        seed: int,
    ) -> None:
        self.objective = Objective(model, targets, keeps, tokens)
        self._model, self._weights, self._seed = model, weights, seed
        self._largest = max(1.0, largest)

    def cells(self, gradient: Gradient) -> Cells:
        """One gradient for all adapters and kinds of module."""
        return np.tile(list(gradient), len(self._weights.chains))

    def constant(self, share: float, direction: Sequence[float]) -> Scores:
        """What each passage has at the constants `share · direction`."""
        cells = self._weights.constant(share * np.array(direction))
        return self.objective.scores(self._weights.modules(cells))

    def curve(self, direction: Sequence[float]) -> ConstantsCurve:
        """The constants `share · direction`, interpolated between a few."""
        shares = [share * self._largest for share in KNOTS]
        measured = [self.constant(share, direction) for share in shares]
        return ConstantsCurve(self.objective, shares, measured)

    def _on_curve(self, cells: Cells, direction: Sequence[float]) -> bool:
        """Whether layer weights are a constant of the curve, but for rounding."""
        constant = self._weights.constant(float(cells.max()) * np.array(direction))
        return bool(np.abs(cells - constant).max() < 10**-DECIMALS)

    def rows(
        self, merges: Mapping[str, Cells], direction: Sequence[float], exact: Collection[str]
    ) -> tuple[pd.DataFrame, dict[str, SameKl]]:
        """The table of base, full LoRA and merges, and each against the constant of its KL.

        Args:
            merges: name -> layer weights.
            direction: the constants' proportion.
            exact: the merges whose constant of the same KL is measured, not interpolated.
        """
        import pandas as pd

        whole = {
            BASE: np.array(self._model.mix(0.0).flat()),
            FULL: np.array(self._model.mix(1.0).flat()),
        }
        modules = {**whole, **{name: self._weights.modules(one) for name, one in merges.items()}}
        every = np.ones(len(self._weights))
        all_cells = {BASE: 0 * every, FULL: every, **merges}
        rows, same = held_out_rows(
            self.objective,
            {name: self.objective.scores(one) for name, one in modules.items()},
            {name: float(one.mean()) for name, one in modules.items()},
            self.objective.scores(modules[BASE]),
            self.curve(direction),
            self._seed,
            lambda share: self.constant(share, direction),
            exact,
            {
                name: float(one.max())
                for name, one in all_cells.items()
                if self._on_curve(one, direction)
            },
        )
        table = pd.DataFrame(rows)
        table.attrs["level"] = LEVEL
        return table, same

    def sentence(self, same: SameKl | None, direction: Sequence[float]) -> str:
        """What a merge's comparison with the constant of its KL says."""
        if same is None:
            return "not measured on held-out text: the measuring was interrupted"
        if same.share is None:
            return (
                "no better than the constant: its KL is above that of every constant up to "
                f"{self._largest:g}"
            )
        constants = " and ".join(f"{same.share * one:.2f}" for one in direction)
        named = f"the constant{'s' if len(direction) > 1 else ''} {constants}"
        names = [read.texts.name for read in self.objective.targets]
        kl = "less" if same.less else "the same"
        if same.better:
            gains = " and ".join(
                f"by {-gain.value:.3f} [{-gain.high:.3f}, {-gain.low:.3f}] on {shown(name)}"
                for name, gain in zip(names, same.gains, strict=True)
            )
            return f"better than {named} {gains} at {kl} KL (nats a token)"
        gains = " and ".join(
            f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on {shown(name)}"
            for name, gain in zip(names, same.gains, strict=True)
        )
        if same.lower:
            named += f" by {WORTHWHILE:g} or more"
        return f"no better than {named} at {kl} KL: NLL {gains} (nats a token)"


def _measured(
    held_out: HeldOut, found: Found, beside: Mapping[str, Gradient]
) -> tuple[pd.DataFrame, SameKl | None]:
    import pandas as pd

    merges = {FIT: found.cells, _name(found.constant): found.constant}
    merges |= {f"best {name}": one for name, one in found.rivals.items()}
    merges |= {name: held_out.cells(one) for name, one in beside.items()}
    try:
        table, same = held_out.rows(merges, found.direction, set(merges) - {_name(found.constant)})
    except KeyboardInterrupt:
        return pd.DataFrame(), None
    return table, same[FIT]


def _name(constant: Cells) -> str:
    return f"constant {' and '.join(f'{one:g}' for one in dict.fromkeys(constant.tolist()))}"


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """The rows, their columns as attributes."""
    return table.itertuples(index=False)


def held_out_html(table: pd.DataFrame) -> str:
    """The table for a notebook: a row for each merge, a column for each text and measure."""
    if table.empty:
        return ""
    import pandas as pd

    columns: dict[str, dict[str, str]] = {}
    for row in rows_of(table):
        name = f"{row.metric} of {row.text}"
        seen = f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]"
        columns.setdefault(name, {})[row.gradient] = seen
        if math.isfinite(row.from_constant):
            name += ", from the constant of the same KL"
            interval = f"[{row.from_constant_low:+.3f}, {row.from_constant_high:+.3f}]"
            columns.setdefault(name, {})[row.gradient] = f"{row.from_constant:+.3f} {interval}"
    wide = pd.DataFrame(columns).reindex(list(dict.fromkeys(table["gradient"])))
    said = "Held out, nats a token, with 95 % intervals; below 0 is better than the constant"
    return f"<p>{html.escape(said)}</p>{wide.to_html(na_rep='')}"
