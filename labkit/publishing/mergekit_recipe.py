"""Reads mergekit's YAML where it describes LoRAs and models that are added to one base by layer.

By mergekit 0.1.4 and 0.1.5 (arcee-ai/mergekit, `mergekit/config.py`, `plan.py` and
`merge_methods`), layer `i` of a slice of `n` layers has the depth `i / (n - 1)`, a single one depth
1, and a list of numbers is interpolated over it. What lies before and behind the layers has depth 0
(until 0.0.6, what lies behind them had depth 1). A model written `base+lora` is the base with the
whole LoRA.

So these are merges that labkit makes, computed there from weights rounded once more on the way:

- `task_arithmetic` adds `Σ w·(W_model - W_base)`.
- `linear` is `Σ w·W_model / Σ w`: to a base it adds `w / Σ w` of each LoRA, and of what each other
  model has beyond the base. Without base_model the first model is the base.
- `passthrough` takes one model as it is, or other ones for other layers.
- `ties`, `dare_linear`, `della_linear` and `slerp` are labkit's methods `ties` (by mergekit's
  convention), `dare`, `della` and `slerp`. Of `dare` and `della` the random numbers are labkit's
  own: which elements stay differs from run to run there. `dare_ties` and `della` elect signs
  besides, which labkit's methods do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import shown
from labkit.files.paths import user_path
from labkit.files.small_files import read_text
from labkit.gradients.gradient import Gradient
from labkit.merging.formula import Method
from labkit.merging.methods.dare import Dare
from labkit.merging.methods.della import Della
from labkit.merging.methods.parameters import as_number
from labkit.merging.methods.slerp import Slerp
from labkit.merging.methods.ties import Ties
from labkit.merging.methods.weighted_sum import WeightedSum
from labkit.merging.recipe import Recipe, Term, pattern_matches
from labkit.merging.recipe_file import SOURCES, Entry, compose
from labkit.models.checkpoint import Checkpoint
from labkit.models.source import Source

KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
        "tokenizer_source", "tokenizer", "chat_template")  # fmt: skip
PARAMETERS = {
    "task_arithmetic": ("weight", "normalize", "lambda", "int8_mask", "rescale"),
    "linear": ("weight", "normalize", "int8_mask"),
    "passthrough": ("scale", "int8_mask"),
    "ties": ("weight", "density", "normalize", "lambda", "int8_mask", "rescale"),
    "dare_linear": ("weight", "density", "normalize", "lambda", "int8_mask", "rescale"),
    "della_linear": ("weight", "density", "epsilon", "normalize", "lambda", "int8_mask", "rescale"),
    "slerp": ("t", "int8_mask"),
}
"""Each method, and what it may be told for all models. `int8_mask` and `rescale` have no effect on
the first three, and `ties` does not rescale unless told to."""
OWN_PARAMETERS = {
    "task_arithmetic": ("weight",),
    "linear": ("weight",),
    "passthrough": ("scale",),
    "ties": ("weight", "density"),
    "dare_linear": ("weight", "density"),
    "della_linear": ("weight", "density", "epsilon"),
    "slerp": (),
}
"""What each model may be told."""
WITH_SIGNS = ("dare_ties", "della")
YES, NO, ONE = ("true", "True", "1", "1.0"), ("false", "False", "0", "0.0"), ("1", "1.0")
NEVER = 0.0


BEHIND = (
    "behind the layers (final norm, head) the first weight of a list counts, as in mergekit 0.1.4 "
    "and 0.1.5; in 0.0.6 it was the last one"
)
"""What is noted where the two differ."""


@dataclass(frozen=True)
class Values:
    """A number for each layer of a slice, and the one that counts outside the layers."""

    outside: float
    layers: tuple[float, ...]


@dataclass(frozen=True)
class Setting:
    """A weight as mergekit has it: `filters` are parts of names, the first that applies counts."""

    default: Values
    filters: Mapping[str, Values]

    def for_filter(self, part: str) -> Values:
        """What it says of tensors with a part of a name, if no other filter applies to them."""
        return self.filters.get(part, self.default)


@dataclass(frozen=True)
class Model:
    """A model of a slice: the base, the base with a LoRA, or another model.

    Attributes:
        entry: where it is named.
        added: what it has beyond the base: the LoRA's name, or its own; empty for the base itself.
        kind: what that is: "adapter" or "model".
        parameters: what it is told, and what all are told, the nearest first.
    """

    entry: Entry
    added: str
    kind: str
    parameters: tuple[Mapping[str, Entry], ...]


@dataclass(frozen=True)
class Slice:
    """Some layers in a row, and the models that they are merged from.

    Attributes:
        entry: where it stands.
        layers: how many layers it has.
        models: the models.
        normalize: whether the weights are divided by their sum.
    """

    entry: Entry
    layers: int
    models: tuple[Model, ...]
    normalize: bool


def from_mergekit(path: Path) -> tuple[Recipe, tuple[str, ...]]:
    """Read mergekit's YAML, where it adds LoRAs and models to one base by layer.

    Returns:
        the recipe; and notes where versions of mergekit differ.

    Raises:
        LabkitError: another merge; with the line and key.
    """
    root = compose(read_text(path, "merge configuration"), shown(path))
    entries = root.members("mergekit's configuration", KEYS)
    if "merge_method" not in entries or not {"models", "slices"} & entries.keys():
        raise root.error(
            "merge_method and models are needed, or slices; expected mergekit's configuration"
        )
    if {"models", "slices"} <= entries.keys():
        raise entries["slices"].error("stands beside models; expected one of the two, as there")
    method = entries["merge_method"].text("a merge method")
    if method in WITH_SIGNS:
        raise entries["merge_method"].error(
            f"{method} draws what stays and elects signs as well, and labkit's methods do one of "
            f"the two; expected ties, or {method.partition('_')[0]}_linear"
        )
    if method not in PARAMETERS:
        raise entries["merge_method"].error(
            f"{shown(method)!r} is a merge that labkit does not make; expected task_arithmetic, "
            "which adds what each model changes, ties, dare_linear, della_linear or slerp, or "
            "linear or passthrough of one base"
        )
    what = entries.get("models") or entries["slices"]
    named = _base_entry(entries, method, what, root)
    name = named.text("a model").partition("+")[0]
    base = named.attempt(Checkpoint, _place(name, path))
    slices = list(_slices(entries, method, name, base.layers))
    settings = [_settings(part, method) for part in slices]
    added = {model.added: model for part in slices for model in part.models if model.added}
    if not added:
        raise what.error("all models are the base itself; expected base+lora, or another model")
    terms, rests, moved = [], set[float](), False
    for name, model in added.items():
        source = model.entry.attempt(SOURCES[model.kind], _place(name, path))
        told = [each.get(name) for each in settings]
        term, rest, other = _term(model.entry, base, source, told, slices)
        terms.append(term)
        rests |= rest
        moved |= other
    if len(rests) > 1:
        raise root.error(
            "what is added outside the layers has different weights "
            f"({', '.join(map(str, sorted(rests)))}); labkit has one weight for all of it"
        )
    made = _method(method, slices, what)
    dtype = entries.get("out_dtype") or entries.get("dtype")
    recipe = (dtype or root).attempt(
        lambda: Recipe(
            base,
            terms,
            rests.pop() if rests else None,
            dtype.text("a dtype") if dtype else "auto",
            method=made,
        )
    )
    return recipe, (BEHIND,) if moved else ()


def _base_entry(entries: dict[str, Entry], method: str, what: Entry, root: Entry) -> Entry:
    """Where the base is named: by base_model, or as a part of the first model."""
    if "base_model" in entries:
        if "+" in entries["base_model"].text("a model"):
            raise entries["base_model"].error("is a model with a LoRA; expected a plain base")
        return entries["base_model"]
    if method not in ("linear", "passthrough"):
        raise root.error(f"base_model is missing; {method} counts from it")
    items = what.items("a list of models or slices")
    first = items[0].members("a model or slice") if items else {}
    if "sources" in first:
        sources = first["sources"].items("a list of models")
        first = sources[0].members("a model") if sources else {}
    if "model" not in first:
        raise what.error("names no model; expected a list of models")
    return first["model"]


def _place(name: str, path: Path) -> str:
    here = user_path(name, path.parent)
    return str(here.resolve()) if here.is_dir() else name


def _slices(entries: dict[str, Entry], method: str, base: str, layers: int) -> Iterator[Slice]:
    """Read the slices; `models` are one slice with all layers."""
    shared = _parameters(entries.get("parameters"), PARAMETERS[method])
    if "models" in entries:
        found = [
            _model(entry, entry.members("model and parameters", ("model", "parameters")),
                   method, base, (shared,))
            for entry in entries["models"].items("a list of models")
        ]  # fmt: skip
        yield _slice(entries["models"], layers, found, method, (shared,))
        return
    stop = 0
    for entry in entries["slices"].items("a list of slices"):
        members = entry.members("a slice", ("sources", "base_model", "parameters"))
        if "sources" not in members:
            raise entry.error("has no sources")
        if "base_model" in members and members["base_model"].text("a model") != base:
            raise members["base_model"].error(f"is another base than {shown(base)}")
        all_shared = (_parameters(members.get("parameters"), PARAMETERS[method]), shared)
        found, stops = [], set()
        for source in members["sources"].items("a list of models"):
            told = source.members("a source", ("model", "layer_range", "parameters"))
            if "layer_range" not in told:
                raise source.error("has no layer_range")
            stops.add(_stop(told["layer_range"], stop, layers))
            found.append(_model(source, told, method, base, all_shared))
        if len(stops) != 1:
            raise members["sources"].error("have different layers; expected the same of each")
        start, stop = stop, stops.pop()
        yield _slice(entry, stop - start, found, method, all_shared)
    if stop != layers:
        raise entries["slices"].error(
            f"the slices hold {stop} layers and the base has {layers}; labkit keeps all layers"
        )


def _stop(entry: Entry, start: int, layers: int) -> int:
    """Where a source's layers end, if they are the next ones of the base."""
    words = [item.text("a number") for item in entry.items("a list of two numbers")]
    if len(words) == 2 and words[0] == str(start) and words[1].isascii() and words[1].isdecimal():
        stop = int(words[1][:9])
        if start < stop <= layers:
            return stop
    raise entry.error(
        f"is [{shown(', '.join(words))}]; labkit keeps the base's {layers} layers as they stand, "
        f"none left out, moved or repeated: expected a range that begins with {start}"
    )


def _model(
    entry: Entry,
    members: dict[str, Entry],
    method: str,
    base: str,
    shared: tuple[Mapping[str, Entry], ...],
) -> Model:
    if "model" not in members:
        raise entry.error("has no model")
    name = members["model"].text("a model")
    reference, plus, lora = name.partition("+")
    if bool(plus) != bool(lora) or (plus and reference != base):
        raise members["model"].error(
            f"{shown(name)!r} is not {shown(base)}+LORA; labkit adds LoRAs to one base"
        )
    own = _parameters(members.get("parameters"), OWN_PARAMETERS[method])
    if not plus and name != base:
        return Model(members["model"], name, "model", (own, *shared))
    return Model(members["model"], lora, "adapter", (own, *shared))


def _slice(
    entry: Entry,
    layers: int,
    models: list[Model],
    method: str,
    shared: tuple[Mapping[str, Entry], ...],
) -> Slice:
    for index, model in enumerate(models):
        if model.added and model.added in {earlier.added for earlier in models[:index]}:
            raise model.entry.error("stands here for the second time; remove one of the two")
    if method == "passthrough" and len(models) != 1:
        raise entry.error(f"passthrough takes one model, found {len(models)}")
    if method == "slerp" and len([model for model in models if model.added]) != 1:
        raise entry.error("slerp goes from the base to one model; expected the base and one other")
    normalize = method in ("linear", "ties")
    for told in reversed(shared):
        if method in ("linear", "ties") and "normalize" in told:
            value = told["normalize"].text("true or false")
            if value not in YES + NO:
                raise told["normalize"].error(f"is {shown(value)}; expected true or false")
            normalize = value in YES
            if method == "ties" and not normalize:
                raise told["normalize"].error(
                    "is false, and labkit's ties by mergekit's convention divides by the weights; "
                    "expected true"
                )
        else:
            _require_neutral(told, "normalize", NO)
        if method == "ties":
            _require_neutral(told, "rescale", NO)
        else:
            _require_neutral(told, "lambda", ONE)
    return Slice(entry, layers, tuple(models), normalize)


def _parameters(entry: Entry | None, known: tuple[str, ...]) -> dict[str, Entry]:
    return {} if entry is None else entry.members("parameters", known)


def _require_neutral(told: Mapping[str, Entry], key: str, neutral: tuple[str, ...]) -> None:
    if key in told and told[key].text("a value") not in neutral:
        raise told[key].error(
            f"is {shown(told[key].node.value)}, which scales the weights again; expected "
            f"{neutral[0]}: write the weights as they are to count"
        )


def _settings(part: Slice, method: str) -> dict[str, Setting]:
    """How much of each LoRA and model a slice adds to the base."""
    if method == "passthrough":
        [model] = part.models
        for parameters in model.parameters:
            _require_neutral(parameters, "scale", ONE)
        return {model.added: Setting(Values(1.0, (1.0,) * part.layers), {})}
    if method != "linear":
        added = [model for model in part.models if model.added]  # the base itself adds nothing
        key = "t" if method == "slerp" else "weight"
        return {model.added: _setting(model, part.layers, key) for model in added}
    told = [_setting(model, part.layers) for model in part.models]
    lists = {tuple(setting.filters) for setting in told if setting.filters}
    if len(lists) > 1:
        raise part.entry.error("the models have different filters; give all of them the same ones")
    made = {}
    for index, model in enumerate(part.models):
        if model.added:
            default = _share(part, [setting.default for setting in told], index)
            filters = {
                name: _share(part, [setting.for_filter(name) for setting in told], index)
                for name in (next(iter(lists)) if lists else ())
            }
            made[model.added] = Setting(default, filters)
    return made


def _share(part: Slice, told: list[Values], index: int) -> Values:
    """The share of one of the models in all."""
    shares = []
    for weights in zip(*((values.outside, *values.layers) for values in told), strict=True):
        whole = math.fsum(weights)
        if part.normalize and abs(whole) < 1e-9:
            raise part.entry.error("the weights add up to 0, by which mergekit divides them")
        if not part.normalize and not math.isclose(whole, 1, rel_tol=1e-6):
            raise part.entry.error(
                f"the weights add up to {whole:.6g}, which scales the base itself; expected 1, or "
                "normalize: true"
            )
        shares.append(weights[index] / whole if part.normalize else weights[index])
    return Values(shares[0], tuple(shares[1:]))


def _setting(model: Model, layers: int, key: str = "weight") -> Setting:
    """Read a model's weight: a number, a list over depth, or lists with filters."""
    filters: dict[str, Values] = {}
    told = [parameters[key] for parameters in model.parameters if key in parameters]
    if not told:
        raise model.entry.error(f"has no {key}")
    for entry in told:
        for name, value in _conditions(entry):
            if name is None:
                return Setting(_values(value, layers), filters)
            filters.setdefault(name, _values(value, layers))  # the first that applies counts
    raise told[0].error("has no value without a filter, which is needed for all other modules")


def _method(method: str, slices: list[Slice], what: Entry) -> Method:
    """The method with its parameters, which labkit has once for all models."""
    if method not in ("ties", "dare_linear", "della_linear", "slerp"):
        return WeightedSum()
    if method == "slerp":
        return Slerp()
    given: dict[str, Any] = {"density": _one_for_all("density", 1.0, slices, what)}
    if method == "ties":
        scale = _told_once("lambda", slices)
        if scale is not None:
            given["scale"] = scale.attempt(as_number, "lambda", scale.text("a number"))
        return what.attempt(lambda: Ties(convention="mergekit", **given))
    rescale = _told_once("rescale", slices)
    if rescale is not None and rescale.text("true or false") not in YES:
        given["rescale"] = "none"
    if method == "dare_linear":
        return what.attempt(lambda: Dare(**given))
    epsilon = _one_for_all("epsilon", 0.15, slices, what)
    if isinstance(epsilon, Gradient):
        raise what.error("epsilon is a list over the layers; labkit has one number for all")
    return what.attempt(lambda: Della(epsilon=epsilon, **given))


def _told_once(key: str, slices: list[Slice]) -> Entry | None:
    """What all slices are told alike; None if they are told nothing."""
    told = [
        entry
        for part in slices
        for model in part.models[:1]
        for entry in [next((each[key] for each in model.parameters if key in each), None)]
    ]
    if len({None if one is None else one.text("a value") for one in told}) > 1:
        raise slices[0].entry.error(f"the slices have different values of {key}; expected one")
    return told[0] if told else None


def _one_for_all(key: str, default: float, slices: list[Slice], what: Entry) -> float | Gradient:
    """A parameter that each model may be told, and that must be the same of all.

    Raises:
        LabkitError: it differs between models, or between kinds of modules.
    """
    layers: list[float] = []
    for part in slices:
        found = set()
        for model in part.models:
            if model.added:
                has = any(key in parameters for parameters in model.parameters)
                one = _setting(model, part.layers, key) if has else None
                if one is not None and one.filters:
                    raise what.error(f"{key} has filters; labkit has one for all modules")
                found.add(one.default if one else Values(default, (default,) * part.layers))
        if len(found) > 1:
            raise what.error(f"the models have different values of {key}; labkit has one for all")
        if found:
            values = found.pop()
            if layers and values.outside != layers[0]:
                raise what.error(f"the slices have different values of {key} outside the layers")
            layers += values.layers
    if len(layers) < sum(part.layers for part in slices):
        raise what.error(f"a slice holds the base alone; {key} is not known there")
    return layers[0] if len(set(layers)) == 1 else Gradient(layers)


def _conditions(entry: Entry) -> Iterator[tuple[str | None, Entry]]:
    """The filters of a weight, None for one that always applies, and their values."""
    items = entry.items("weights") if isinstance(entry.node, yaml.SequenceNode) else [entry]
    if not any(isinstance(item.node, yaml.MappingNode) for item in items):
        yield None, entry
        return
    for item in items:
        members = item.members("filter and value", ("filter", "value"))
        if "value" not in members:
            raise item.error("has no value")
        named = members["filter"].text("a filter") if "filter" in members else "*"
        yield None if named == "*" else named, members["value"]


def _values(entry: Entry, layers: int) -> Values:
    if isinstance(entry.node, yaml.SequenceNode):
        words = [item.text("a number") for item in entry.items("numbers")]
    else:
        words = [entry.text("a number or a list of numbers")]
    anchors = list(entry.attempt(Gradient.parse, ",".join(words)))
    single = layers == 1  # mergekit takes depth 1 there
    read = anchors[-1:] if single else Gradient.from_anchors(layers, anchors)
    return Values(anchors[0], tuple(read))


def _term(
    entry: Entry,
    base: Checkpoint,
    source: Source,
    settings: list[Setting | None],
    slices: list[Slice],
) -> tuple[Term, set[float], bool]:
    """Join what the slices say of one LoRA or model.

    Returns:
        the term; the weights of what it changes outside the layers; and whether one of them was
        another in mergekit 0.0.6.
    """
    absent = [Setting(Values(NEVER, (NEVER,) * part.layers), {}) for part in slices]
    told = [setting or none for setting, none in zip(settings, absent, strict=True)]
    lists = {tuple(setting.filters) for setting in told if setting.filters}
    if len(lists) > 1:
        raise entry.error("has different filters in different slices; give it the same ones")
    filters = next(iter(lists)) if lists else ()
    parts = [part for part in source.parts if source.why_skipped(part, base) is None]
    names = {f"{part.name}.{part.parameter}": part.name for part in parts}
    patterns = {
        pattern: _joined([setting.for_filter(name) for setting in told])
        # The first filter that applies counts there, and the last pattern here.
        for name in reversed(filters)
        if (pattern := _pattern(entry, name, names))
    }
    rests, moved = set(), False
    for tensor, module in names.items():
        if base.layer_of(module) is None:
            chosen = told[0 if "embed" in module else -1]
            applied = next((name for name in filters if name in tensor), None)
            values = chosen.default if applied is None else chosen.for_filter(applied)
            rests.add(values.outside)
            # Depth 1, which these had once, is the last layer's.
            moved |= "embed" not in module and values.outside != values.layers[-1]
    return Term(source, _joined([setting.default for setting in told]), patterns), rests, moved


def _joined(values: list[Values]) -> Gradient:
    return Gradient(weight for each in values for weight in each.layers)


def _pattern(entry: Entry, part: str, names: Mapping[str, str]) -> str | None:
    """The module pattern for a filter; None if it names nothing of this LoRA, as may be."""
    wanted = {module for tensor, module in names.items() if part in tensor}
    if not wanted:
        return None
    for pattern in (f"*{part}*", f"*{part.removesuffix('.weight')}", "*"):
        if {name for name in names.values() if pattern_matches(pattern, name)} == wanted:
            return pattern
    raise entry.error(
        f"has the filter {shown(part)!r}, which no module pattern of labkit says; expected a part "
        "of a module's name"
    )
