"""`Evaluation`: texts measured at a point of a sweep, in whatever process the point is sent to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.models.checkpoint import Checkpoint
from labkit.models.source import Source
from labkit.probing.evaluation import ALL_METRICS, draws_of, sums_of
from labkit.probing.grid_points import GRADIENT, WEIGHTS, Point
from labkit.probing.intervals import beside_base
from labkit.probing.texts import Texts

if TYPE_CHECKING:
    from labkit.inference.live_model import LiveModel, Mix
    from labkit.merging.formula import Method
    from labkit.probing.scores import Reader


@dataclass(frozen=True, init=False, repr=False)
class Evaluation:
    """Measures texts at a point, with the base and adapters that a worker keeps in memory.

    A point may have `gradient` and `weights` (for every adapter; 1 everywhere if left out),
    `strength` (multiplies the gradient), `adapter` (the name of the only one in force), `method`
    (as a recipe has it: a name, or with parameters as text such as `{ties: {density: 0.5}}`; the
    sum if left out), and `seed` (of the intervals' draws). The rows are those of `lk.evaluate`:
    `text`, `metric`, `estimate`, `low`, `high`, `from_base` with its interval, `mean_weight`,
    `passages`, `tokens`. Strength 0 is the base, strength 1 without a gradient the full LoRA.

    Attributes:
        base: the base model: a folder or hub id that every worker can read.
        adapters: one LoRA, or several; or full models.
        texts: one set of texts, or several. They go along with every task.
        metrics: as in `lk.evaluate`.
        rest: as in `lk.live`; likewise `device` and `dtype`.
    """

    base: str
    adapters: tuple[str, ...]
    texts: tuple[Texts, ...]
    metrics: tuple[str, ...]
    rest: float | None
    device: str
    dtype: str

    def __init__(
        self,
        base: Checkpoint | str | Path,
        adapters: Source | Checkpoint | str | Path | Sequence[Source | Checkpoint | str | Path],
        texts: Texts | Sequence[Texts],
        metrics: Sequence[str] = ("nll", "kl"),
        *,
        rest: float | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        one = isinstance(adapters, (Source, Checkpoint, str, Path))
        listed: Any = [adapters] if one else adapters
        known = {
            "base": _reference(base),
            "adapters": tuple(map(_reference, listed)),
            "texts": (texts,) if isinstance(texts, Texts) else tuple(texts),
            "metrics": tuple(metrics),
            "rest": rest,
            "device": device,
            "dtype": dtype,
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)
        unknown = [metric for metric in self.metrics if metric not in ALL_METRICS]
        if unknown:
            raise LabkitError(
                f"the metric {shown(unknown[0])!r} is unknown; known are {', '.join(ALL_METRICS)}"
            )
        if not self.texts:
            raise LabkitError("an evaluation needs at least one set of texts")

    def __repr__(self) -> str:
        texts = ", ".join(f"{one.name} {one.sha256[:16]}" for one in self.texts)
        return (
            f"Evaluation({self.base!r}, {list(self.adapters)}, texts=[{texts}], "
            f"metrics={list(self.metrics)}, rest={self.rest}, dtype={self.dtype!r})"
        )

    def __call__(self, point: Point) -> list[dict[str, Any]]:
        """Measure the texts at a point.

        Raises:
            LabkitError: names in the point that mean nothing here, an adapter or a method that is
                not there, or a gradient of the wrong length.
        """
        kept = _kept(self)
        mix = self._mix(kept.model, point)
        rows = []
        seed = int(point.get("seed", 0))
        for reader, of_base in zip(kept.readers, kept.of_base, strict=True):
            for metric in self.metrics:
                draws = draws_of(reader, metric, seed)
                (sums,) = sums_of(reader, [mix], metric)
                estimate = draws.estimate(sums)
                change = draws.estimate(sums - of_base[metric])
                rows.append(
                    {
                        "text": reader.texts.name,
                        "metric": metric,
                        **beside_base(estimate, change),
                        "mean_weight": mix.mean,
                        "passages": len(reader.texts),
                        "tokens": int(reader.counts.sum()),
                    }
                )
        return rows

    def _mix(self, model: LiveModel, point: Point) -> Mix:
        from labkit.merging.recipe import Recipe, Term

        known = (GRADIENT, WEIGHTS, "strength", "adapter", "method", "seed")
        for name in point:
            if name not in known:
                raise LabkitError(
                    f"an Evaluation does not know {shown(name)!r}; a point for it has "
                    f"{', '.join(known)}"
                )
        names = [adapter.name for adapter in model.adapters]
        chosen = point.get("adapter")
        if chosen is not None and chosen not in names:
            raise LabkitError(
                f"no adapter {shown(chosen)!r}; the evaluation has {', '.join(map(shown, names))}"
            )
        layers = model.base.layers
        strength = float(point.get("strength", 1.0))
        whole = Gradient.parse(str(point.get(WEIGHTS, f"1x{layers}"))) * strength
        none = Gradient.constant(layers, 0.0)
        terms = [
            Term(adapter, whole if chosen in (None, adapter.name) else none)
            for adapter in model.adapters
        ]
        method = _method_of(point)
        if not method.linear and chosen is not None:  # a method may count terms without a weight
            terms = [term for term in terms if term.source.name == chosen]
        return model.mix(Recipe(model.base, terms, self.rest, method=method))


@dataclass(frozen=True)
class _Kept:
    """What a process keeps between its tasks.

    Attributes:
        model: the model.
        readers: the texts as tokens.
        of_base: for each text what the base has of each metric.
    """

    model: LiveModel
    readers: list[Reader]
    of_base: list[dict[str, Any]]


_one_at_a_time = threading.Lock()


def _kept(evaluation: Evaluation) -> _Kept:
    with _one_at_a_time:
        found = _prepared(evaluation)
        if found.model.freed:
            _prepared.cache_clear()
            found = _prepared(evaluation)
        return found


@lru_cache(maxsize=1)
def _prepared(evaluation: Evaluation) -> _Kept:
    # torch is imported here: a worker with a measure of its own may do without.
    from labkit.inference.live_model import live
    from labkit.probing.scores import Reader

    model = live(
        evaluation.base,
        *evaluation.adapters,
        rest=evaluation.rest,
        device=evaluation.device,
        dtype=evaluation.dtype,
    )
    readers = [Reader(model, texts) for texts in evaluation.texts]
    base = [model.mix(0.0)]
    return _Kept(
        model,
        readers,
        [
            {metric: next(iter(sums_of(reader, base, metric))) for metric in evaluation.metrics}
            for reader in readers
        ],
    )


def _method_of(point: Point) -> Method:
    """The method that a point names.

    Raises:
        LabkitError: no such method, or text that is no mapping of one to its parameters.
    """
    import yaml

    from labkit.merging.methods import as_method

    text = str(point.get("method", "sum"))
    try:
        return as_method(yaml.safe_load(text))
    except (LabkitError, yaml.YAMLError) as error:
        why = "it is no YAML" if isinstance(error, yaml.YAMLError) else error
        raise LabkitError(f"the method {shown(text)!r} of a point: {why}") from error


def _reference(source: Checkpoint | Source | str | Path) -> str:
    return str(source.folder if isinstance(source, (Checkpoint, Source)) else source)
