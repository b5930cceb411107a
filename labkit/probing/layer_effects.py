"""Which layers matter for a text: sensitivities, attributions, and layers turned one by one.

All give one row for each layer or module and set of texts, in nats for each token that counts: what
is below 0 makes the text more likely. Their rows can be drawn and compared alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float64

from labkit.errors import LabkitError, shown
from labkit.inference.live_model import LiveModel, Mix, Weights
from labkit.merging.recipe import as_gradient
from labkit.probing.intervals import LEVEL, Bootstrap
from labkit.probing.scores import Reader
from labkit.probing.texts import Texts
from labkit.probing.training_text import warn_of_training_text

if TYPE_CHECKING:
    import pandas as pd

By = Literal["layer", "module", "kind"]
NODES = 4


def sensitivity(
    model: LiveModel,
    texts: Texts | Sequence[Texts],
    at: Weights | None = None,
    *,
    by: By = "layer",
    seed: int = 0,
) -> pd.DataFrame:
    """Measure `∂NLL/∂w` of each layer weight: how the NLL begins to change as the weight is raised.

    From one backward pass (PEFT's scaling of every row is a leaf of the computation). It speaks of
    small changes of one weight at this gradient, and says nothing of weights far from it: see
    `attribution`.

    Args:
        model: the live model.
        texts: one set of texts, or several.
        at: the gradient to measure at; what is in force if left out.
        by: a row for each layer, for each module, or for each layer and kind of module.
        seed: of the intervals' draws.

    Returns:
        `adapter`, `layer`, `module`, `text`, `metric` (`dnll_dw`), `estimate`, `low` and `high`
        (95 %), `passages`, `tokens`, `method`. Intervals are bootstraps over passages by document;
        of 30 of them 1.5 leave out the truth.

    Raises:
        LabkitError: a gradient of the wrong length, or passages with nothing to predict.
    """
    model.require_sum("a sensitivity")
    mix = _mix(model, at)

    def measure(reader: Reader) -> Float64[np.ndarray, "passages modules"]:
        return reader.gradient(mix)[1]

    return _table(model, texts, measure, by, "dnll_dw", "sensitivity", seed)


def attribution(
    model: LiveModel,
    texts: Texts | Sequence[Texts],
    of: Weights | None = None,
    *,
    nodes: int = NODES,
    by: By = "layer",
    seed: int = 0,
) -> pd.DataFrame:
    """Share the whole change of the NLL out among the layers: integrated gradients from 0 to `of`.

    `w_l · ∫₀¹ ∂NLL/∂w_l (t·w) dt`, by Gauss and Legendre's rule (Sundararajan et al., "Axiomatic
    Attribution for Deep Networks", 2017, arXiv 1703.01365). The rows add up to `NLL(w) − NLL(0)`,
    but for the error of the rule, which `attrs["completeness"]` gives for each text as a share of
    that change. Taking layers out one by one (`ablation`) is blind where others stand in for them.

    Args:
        model: the live model.
        texts: one set of texts, or several.
        of: the gradient; the whole LoRA if left out.
        nodes: how many backward passes the rule takes.
        by: as in `sensitivity`.
        seed: of the intervals' draws.

    Returns:
        as `sensitivity`; the metric is `nll_change`.

    Raises:
        LabkitError: as `sensitivity`, or no nodes.
    """
    if nodes < 1:
        raise LabkitError(f"an attribution takes nodes ≥ 1, found {nodes}")
    model.require_sum("an attribution")
    mix = model.mix(1.0) if of is None else _mix(model, of)
    weights = np.array(mix.flat())
    places, shares = np.polynomial.legendre.leggauss(nodes)
    errors: dict[str, float] = {}

    def measure(reader: Reader) -> Float64[np.ndarray, "passages modules"]:
        total = np.zeros((len(reader.texts), len(weights)))
        for place, share in zip((places + 1) / 2, shares / 2, strict=True):
            total += share * weights * reader.gradient(_scaled(mix, float(place)))[1]
        change = float((reader.nll(mix) - reader.nll(model.mix(0.0))).sum())
        errors[reader.texts.name] = abs(float(total.sum()) - change) / max(abs(change), 1e-12)
        return total

    table = _table(model, texts, measure, by, "nll_change", f"attribution, {nodes} nodes", seed)
    table.attrs["completeness"] = errors
    return table


def ablation(
    model: LiveModel,
    texts: Texts | Sequence[Texts],
    mode: Literal["leave_one_out", "only_one"] = "leave_one_out",
    of: Weights | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Turn one layer at a time: exactly, by forward passes.

    Layers below the one that is turned are computed once for all (by the models' own modules; where
    a model's layers do not allow it, each pass is a whole one, with the same result). Layers stand
    in for each other, so that taking one out often shows nothing: see `attribution`.

    Args:
        model: the live model.
        texts: one set of texts, or several.
        mode: "leave_one_out": the NLL with the layer's weight at 0 less the NLL of the whole
            gradient, sign turned: what the layer adds to the rest. "only_one": the NLL with this
            layer's weight alone less the base's.
        of: the gradient; the whole LoRA if left out.
        seed: of the intervals' draws.

    Returns:
        as `sensitivity`, by layer; the metric is `nll_change`.

    Raises:
        LabkitError: as `sensitivity`, or another mode.
    """
    if mode not in ("leave_one_out", "only_one"):
        raise LabkitError(f"mode is {shown(mode)!r}; expected leave_one_out or only_one")
    model.require_sum("an ablation")
    whole = model.mix(1.0) if of is None else _mix(model, of)
    keys = _keys(model, "layer")

    def measure(reader: Reader) -> Float64[np.ndarray, "passages modules"]:
        rows = list(dict.fromkeys(keys))
        changed = []
        for row in rows:
            kept = [(key == row) != (mode == "leave_one_out") for key in keys]
            # What lies outside the layers may be the embedding, so that no layer is below it.
            changed.append((row[1] or 0, _masked(whole, kept)))
        reference = whole if mode == "leave_one_out" else model.mix(0.0)
        before, after = reader.nll_of_each(reference, changed)
        effects = np.zeros((len(reader.texts), len(keys)))
        for number, row in enumerate(rows):
            found = after[:, number] - before
            # Stands in the layer's first column; the columns of a layer are added up.
            effects[:, keys.index(row)] = -found if mode == "leave_one_out" else found
        return effects

    return _table(model, texts, measure, "layer", "nll_change", mode, seed)


def _mix(model: LiveModel, weights: Weights | None) -> Mix:
    if weights is None:
        return model.mix(model.terms)
    return model.mix(as_gradient(weights))


def _scaled(mix: Mix, share: float) -> Mix:
    return Mix(tuple({name: weight * share for name, weight in one.items()} for one in mix.weights))


def _masked(mix: Mix, kept: Sequence[bool]) -> Mix:
    flags = iter(kept)
    return Mix(
        tuple(
            {name: weight if next(flags) else 0.0 for name, weight in one.items()}
            for one in mix.weights
        )
    )


def _keys(model: LiveModel, by: By) -> list[tuple[str, int | None, str]]:
    """For each module the row that it belongs to: adapter, layer, and module or kind."""
    keys = []
    for index, name in model.module_names:
        last = {"layer": "", "module": name, "kind": name.rsplit(".", 1)[-1]}[by]
        keys.append((model.adapters[index].name, model.layer_of(index, name), last))
    return keys


def _table(
    model: LiveModel,
    texts: Texts | Sequence[Texts],
    measure: Callable[[Reader], Float64[np.ndarray, "passages modules"]],
    by: By,
    metric: str,
    method: str,
    seed: int,
) -> pd.DataFrame:
    import pandas as pd

    if by not in ("layer", "module", "kind"):
        raise LabkitError(f"by is {shown(by)!r}; expected layer, module or kind")
    keys = _keys(model, by)
    adapters = [adapter.name for adapter in model.adapters]
    # Files name layer 10 before layer 2. What lies outside the layers comes last.
    ordered = sorted(
        dict.fromkeys(keys), key=lambda key: (adapters.index(key[0]), key[1] is None, key[1] or 0)
    )
    rows: list[dict[str, Any]] = []
    for one in listed(texts):
        warn_of_training_text(model, one)
        reader = Reader(model, one)
        effects = measure(reader)
        draws = Bootstrap([passage.document for passage in one], reader.counts, seed)
        for adapter, layer, module in ordered:
            columns = [key == (adapter, layer, module) for key in keys]
            estimate = draws.estimate(effects[:, columns].sum(axis=1))
            rows.append(
                {
                    "adapter": adapter,
                    "layer": layer,
                    "module": module,
                    "text": one.name,
                    "metric": metric,
                    "estimate": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "passages": len(one),
                    "tokens": int(reader.counts.sum()),
                    "method": method,
                }
            )
    table = pd.DataFrame(rows)
    table["layer"] = table["layer"].astype("Int64")
    table.attrs["level"] = LEVEL
    return table


def listed(texts: Texts | Iterable[Texts]) -> list[Texts]:
    """One set of texts, or several, as a list; names are different.

    Raises:
        LabkitError: no set, or two of one name.
    """
    found = [texts] if isinstance(texts, Texts) else list(texts)
    names = [one.name for one in found]
    if not found or len(set(names)) < len(names):
        raise LabkitError(
            f"texts are sets of different names, at least one; found {shown(', '.join(names))}"
        )
    return found
