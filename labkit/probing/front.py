"""`pareto`: fits for several strengths, beside the constants' curve."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import LiveModel
from labkit.merging.recipe import Term
from labkit.probing.evaluation import BASE, FULL
from labkit.probing.families import Cells, Family
from labkit.probing.fitting import (
    MEASURING,
    PASSAGES,
    SMOOTH,
    TOKENS,
    Found,
    HeldOut,
    SetsOfTexts,
    bar_of,
    fitted_record,
    held_out_html,
    of_constants,
    search_and_held_out,
    search_once,
    wanted_from,
)
from labkit.probing.layer_effects import listed
from labkit.probing.searching import By, Search, Wanted
from labkit.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

STRENGTHS = (0.1, 0.3, 1.0, 3.0)
CURVE_POINTS = 51


@dataclass(frozen=True, eq=False, repr=False)
class Front(Summary):
    """Fits for several strengths: each trades the NLL of the target against the KL to the base.

    Attributes:
        gradients: strength -> the gradient, as `Fit.gradient` has it.
        terms: strength -> the terms of a recipe.
        sentences: strength -> the comparison with the constant of the same KL.
        table: held-out rows as those of `Fit.table`, of base, full LoRA, the best constant of each
            strength and each fit (`fit, strength 0.3`).
        curve: the constants from 0 on: `constant`, `nll`, `kl`, interpolated between those that
            were measured.
        history: every evaluation.
        seconds: of processor time.
    """

    gradients: Mapping[float, Gradient | Mapping[str, Gradient]]
    terms: Mapping[float, tuple[Term, ...]]
    sentences: Mapping[float, str]
    table: pd.DataFrame = field(repr=False)
    curve: pd.DataFrame = field(repr=False)
    history: pd.DataFrame = field(repr=False)
    seconds: float

    def summary(self) -> Iterator[tuple[str, str]]:
        """The lines: a label and a text each."""
        for strength, sentence in self.sentences.items():
            yield f"{strength:g}", sentence
        yield "search", f"{len(self.history)} evaluations, {self.seconds:.0f} s"

    def _repr_html_(self) -> str:
        return super()._repr_html_() + held_out_html(self.table)


def pareto(
    model: LiveModel,
    target: SetsOfTexts,
    keep: SetsOfTexts,
    strengths: Sequence[float] = STRENGTHS,
    bounds: tuple[float, float] = (0.0, 1.0),
    smooth: float = SMOOTH,
    evaluations: int = 8,
    *,
    by: By = "layer",
    family: Family = "free",
    held_out: tuple[SetsOfTexts, SetsOfTexts] | None = None,
    passages: int | None = PASSAGES,
    tokens: int = TOKENS,
    history: pd.DataFrame | str | Path | None = None,
    stop: threading.Event | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Front:
    """Fit for several strengths, and measure all on held-out text beside the constants' curve.

    Values and derivatives of NLL and KL are kept apart, so each evaluation serves every strength:
    the first strength takes `evaluations`, each other one half as many, from the best point seen.
    The constants of several LoRAs have the proportion that is best at the first strength.
    `lk.figures.front` draws the result. Arguments are those of `fit`.

    Args:
        model: the live model.
        target: what is to become likely.
        keep: where the merge is to stay near the base.
        strengths: the weights of the KL, one fit each.
        bounds: the smallest and the largest layer weight.
        smooth: the weight of the differences between neighbouring layers.
        evaluations: at most so many for the first strength.
        by: "layer" or "kind".
        family: the lists to choose among.
        held_out: target and keep to measure on.
        passages: of each set at most so many are searched on.
        tokens: of each passage the first so many that count.
        history: what to go on from.
        stop: ends the search; strengths not begun have the best point seen.
        seed: of splits, draws and intervals.
        progress: whether to show a bar.

    Raises:
        LabkitError: as `fit`, or no strength, or one twice.
    """
    import pandas as pd

    began = time.process_time()
    every = [wanted_from(strength, smooth, bounds, evaluations) for strength in strengths]
    if not every or len({one.strength for one in every}) < len(every):
        raise LabkitError("strengths are different numbers, at least one")
    later = max(1, evaluations // 2)
    parts = search_and_held_out(target, keep, held_out, passages, tokens, seed)
    counts = [evaluations] + [later] * (len(every) - 1)
    total = sum(count + of_constants(len(model.adapters), count) for count in counts)
    with bar_of(total, progress) as bar:
        search = Search(model, *parts[0], tokens, by, history, stop, bar)
        measured = HeldOut(model, search.weights, *parts[1], tokens, bounds[1], seed)
        found: dict[Wanted, Found] = {}
        for wanted, count in zip(every, counts, strict=True):
            found[wanted] = search_once(search, wanted, family, count, rivals=())
        bar.set_description(MEASURING)
        direction = found[every[0]].direction
        merges: dict[str, Cells] = {}
        for wanted, one in found.items():
            merges[f"constant, strength {wanted.strength:g}"] = one.constant
            merges[f"fit, strength {wanted.strength:g}"] = one.cells
        fits = {name for name in merges if name.startswith("fit")}
        table, same = measured.rows(merges, direction, fits)
    sentences, terms = {}, {}
    for wanted, one in found.items():
        name = f"fit, strength {wanted.strength:g}"
        said = sentences[wanted.strength] = measured.sentence(same[name], direction)
        record = fitted_record(
            said, wanted, family, len(search.history.made), listed(target), listed(keep),
            table[table["gradient"].isin([BASE, FULL, name])],
        )  # fmt: skip
        terms[wanted.strength] = tuple(
            replace(term, fitted=record) for term in search.weights.terms(one.cells)
        )
    curve = measured.curve(direction)
    some = slice(None, None, max(1, len(curve.fine) // (CURVE_POINTS - 1)))
    return Front(
        {wanted.strength: search.weights.shown(one.cells) for wanted, one in found.items()},
        terms,
        sentences,
        table,
        pd.DataFrame({"constant": curve.fine, "nll": curve.nll, "kl": curve.kl})[some],
        search.history.table(),
        time.process_time() - began,
    )
