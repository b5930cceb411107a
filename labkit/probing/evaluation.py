"""Gradients and recipes side by side on texts, beside base, full LoRA and the best constant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float64

from labkit.errors import LabkitError, shown
from labkit.gradients.calls import as_gradient
from labkit.inference.live_model import LiveModel, Mix, Weights
from labkit.merging.planning import Plan
from labkit.merging.recipe import Recipe, Term
from labkit.probing.greedy_answers import exact_matches
from labkit.probing.intervals import LEVEL, Bootstrap, Estimate, beside_base
from labkit.probing.layer_effects import listed
from labkit.probing.scores import Reader
from labkit.probing.texts import Texts
from labkit.probing.training_text import warn_of_training_text

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("nll", "kl")
ALL_METRICS = (*METRICS, "exact_match")
CONSTANTS = (0.25, 0.5, 0.75)
"""The constants that are tried, between base and full LoRA."""
BASE, FULL, BEST = "base", "full LoRA", "best constant"

Row = Weights | Sequence[Term] | Recipe | Plan
"""What can stand beside base and full LoRA; see `mix_of`."""


def evaluate(
    model: LiveModel,
    gradients: Mapping[str, Row],
    texts: Texts | Sequence[Texts],
    metrics: Sequence[str] = METRICS,
    *,
    against: str = BASE,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure gradients or recipes on texts: the NLL of each, and how far it is from the base (KL).

    Base, full LoRA and the best constant are always among the rows: a gradient that is no better
    than a constant says little about layers. The constant is the one of 0.25, 0.5 and 0.75 with
    the lowest NLL on the first set of texts, and the same for all sets. All of these are plain
    sums, whatever the method of the model or of a row.

    Args:
        model: the live model.
        gradients: name -> gradient, for every adapter of the model; or the terms of a recipe, one
            for each adapter, which can have other weights for some modules; or a recipe of the
            model's base, or its plan. A recipe with a method, or with other adapters than the
            model's, is merged in memory while it is measured, as it would be written.
        texts: one set of texts, or several; the first is what the merge is for.
        metrics: "nll" (the mean for each token that counts, in nats), "kl" (the mean of
            KL(base ‖ merge) of the next token, in nats), and "exact_match" (the share of prompts
            whose greedy answer ends with the line that the expected one ends with; case, spaces
            and a full stop at the end do not count). Exact match takes hundreds of questions: with
            100 of them its interval is about 0.2 wide. Choose by NLL, and report it beside.
        against: the row that all others are compared with, passage by passage: one of the
            gradients, "base", "full LoRA" or "best constant".
        seed: of the intervals' draws.

    Returns:
        `gradient`, `text`, `metric`, `estimate`, `low`, `high` (95 %, bootstrap over passages by
        document), `from_base`, `from_base_low`, `from_base_high` (the difference to the base,
        paired), `difference`, `difference_low`, `difference_high` (likewise to `against`),
        `verdict` ("lower" or "higher" than `against` where the interval leaves out 0, otherwise
        "not told apart"; empty in the row of `against`), `mean_weight`, `passages`, `tokens`,
        `method`.

    Raises:
        LabkitError: an unknown metric, a name that stands for one of the rows that are always
            there, a row to compare with that is not there, a gradient of the wrong length, or
            exact match of passages without prompts; or as `LiveModel.mix`.
    """
    import pandas as pd

    for metric in metrics:
        if metric not in ALL_METRICS:
            raise LabkitError(
                f"the metric {shown(metric)!r} is unknown; known are {', '.join(ALL_METRICS)}"
            )
    sets = listed(texts)
    mixes: dict[str, Mix] = {BASE: model.mix(0.0), FULL: model.mix(1.0)}
    for name, weights in gradients.items():
        if name in (BASE, FULL, BEST) or name.startswith("constant "):
            raise name_taken(name)
        mixes[name] = mix_of(model, weights)
    if against not in (*mixes, BEST):
        raise LabkitError(
            f"there is no row {shown(against)!r} to compare with; there are "
            f"{', '.join(map(shown, (*mixes, BEST)))}"
        )
    for one in sets:
        warn_of_training_text(model, one)
    readers = [Reader(model, one) for one in sets]
    constants = {f"constant {value:g}": model.mix(value) for value in CONSTANTS}
    tried = {name: readers[0].nll(mix) for name, mix in constants.items()}
    best = min(tried, key=lambda name: float(tried[name].sum()))
    mixes[best] = constants[best]
    other = best if against == BEST else against
    sums = _measure(readers, mixes, metrics)
    rows: list[dict[str, Any]] = []
    for reader in readers:
        for metric in metrics:
            found = sums[reader.texts.name, metric]
            draws = draws_of(reader, metric, seed)
            for name, mix in mixes.items():
                estimate = draws.estimate(found[name])
                change = draws.estimate(found[name] - found[BASE])
                difference = draws.estimate(found[name] - found[other])
                rows.append(
                    {
                        "gradient": name,
                        "text": reader.texts.name,
                        "metric": metric,
                        **beside_base(estimate, change),
                        "difference": difference.value,
                        "difference_low": difference.low,
                        "difference_high": difference.high,
                        "verdict": "" if name == other else verdict(difference),
                        "mean_weight": mix.mean,
                        "passages": len(reader.texts),
                        "tokens": int(reader.counts.sum()),
                        "method": "greedy answers" if metric == "exact_match" else "forward",
                    }
                )
    table = pd.DataFrame(rows)
    table.attrs["level"] = LEVEL
    table.attrs["best_constant"] = best
    table.attrs["against"] = other
    return table


def mix_of(model: LiveModel, given: Row) -> Mix:
    """The mixture of a row, whatever it is given as; see `LiveModel.mix`."""
    if isinstance(given, (Recipe, Plan)):
        return model.mix(given)
    terms = [one for one in given if isinstance(one, Term)]
    return model.mix(terms or as_gradient(cast("Weights", given)))


def _measure(
    readers: Sequence[Reader], mixes: Mapping[str, Mix], metrics: Sequence[str]
) -> dict[tuple[str, str], dict[str, Float64[np.ndarray, " passages"]]]:
    """What each passage has: by the set of texts and the metric, then by the mixture's name."""
    found: dict[tuple[str, str], dict[str, Float64[np.ndarray, " passages"]]] = defaultdict(dict)
    for reader in readers:
        if "exact_match" in metrics:  # all answer side by side
            answers = sums_of(reader, [*mixes.values()], "exact_match")
            found[reader.texts.name, "exact_match"] = dict(zip(mixes, answers, strict=True))
    # One mixture after the other, so that each is merged once for all texts. The KL's pass tells
    # the NLL, too.
    for name, mix in mixes.items():
        for reader in readers:
            for metric in ("kl", "nll"):
                if metric in metrics:
                    (sums,) = sums_of(reader, [mix], metric)
                    found[reader.texts.name, metric][name] = sums
    return found


def verdict(difference: Estimate) -> str:
    """What an interval says of a difference, in words."""
    if difference.high < 0:
        return "lower"
    return "higher" if difference.low > 0 else "not told apart"


def sums_of(
    reader: Reader, mixes: Sequence[Mix], metric: str
) -> Iterable[Float64[np.ndarray, " passages"]]:
    """What each passage has of a metric, at each mixture."""
    if metric == "exact_match":
        return exact_matches(reader.model, reader.texts, mixes).T
    return map(reader.nll if metric == "nll" else reader.kl_from_base, mixes)


def draws_of(reader: Reader, metric: str, seed: int) -> Bootstrap:
    """The draws for a metric's intervals: a mean over tokens, or over answers."""
    counts = np.ones(len(reader.texts)) if metric == "exact_match" else reader.counts
    return Bootstrap([one.document for one in reader.texts], counts, seed)


def name_taken(name: str) -> LabkitError:
    """The error for a gradient that is called as base, full LoRA or another row of every table."""
    return LabkitError(
        f"the name {shown(name)!r} is that of a row which is always there; choose another"
    )
