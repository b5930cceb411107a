"""Recipes from and for other tools: the 2023 script's command line, and mergekit's YAML.

mergekit (arcee-ai/mergekit, `mergekit/config.py` and `mergekit/plan.py`) gives layer `i` of `L` the
depth `i / (L - 1)` and interpolates a list of numbers over it; what comes before the layers has
depth 0, and what comes after them depth 1. Its `task_arithmetic` adds `Σ w·(W_model - W_base)`; a
model written `base+lora` is the base with the whole LoRA. So that is the same merge, computed from
weights that were rounded once more on the way.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.files.small_files import read_text
from labkit.gradients.gradient import Gradient
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe, Term, pattern_matches
from labkit.merging.recipe_file import Entry, compose
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint

SCRIPT = "apply-lora-weight-ltl.py"
MERGEKIT_KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype",
                 "tokenizer_source", "tokenizer", "chat_template")  # fmt: skip


def import_recipe(text_or_file: str | Path) -> Recipe:
    """Read a recipe of another tool: a file with mergekit's YAML, or the script's command line.

    Raises:
        LabkitError: neither of the two, or a merge that labkit does not make.
    """
    text = str(text_or_file)
    if "--peft_model_weights" in text:
        return from_command_line(text)
    return from_mergekit(Path(text_or_file))


def from_command_line(command: str) -> Recipe:
    """Read a command line of zaraki-tools' apply-lora-weight-ltl.py (2023).

    The script writes float16, whatever the base has.

    Raises:
        LabkitError: an option that the script does not have, or one that is missing.
    """
    parser = _Arguments(prog=SCRIPT, add_help=False, allow_abbrev=False)
    for option in ("base_model_name_or_path", "peft_model_path", "peft_model_weights"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--output_dir")
    parser.add_argument("--cpu_mode", action="store_true")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise LabkitError(f"the command line of {SCRIPT} is not whole: {shown(error)}") from error
    start = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    given = parser.parse_args(words[start:])
    base = Checkpoint(given.base_model_name_or_path)
    weights = Gradient.parse(given.peft_model_weights, base.layers)
    return Recipe(base, [Term(given.peft_model_path, weights)], dtype="float16")


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LabkitError(f"the command line of {SCRIPT}: {shown(message)}")


def from_mergekit(path: Path) -> Recipe:
    """Read mergekit's YAML, where it describes LoRAs that are added to one base by layer.

    That is `merge_method: task_arithmetic` of models written as `base+lora`.

    Raises:
        LabkitError: another merge; with the line and key.
    """
    root = compose(read_text(path, "merge configuration"), shown(path))
    entries = root.members("mergekit's configuration", MERGEKIT_KEYS)
    if "merge_method" not in entries or "models" not in entries:
        raise root.error("merge_method and models are needed; expected mergekit's configuration")
    method = entries["merge_method"].text("a merge method")
    if method != "task_arithmetic":
        raise entries["merge_method"].error(
            f"{shown(method)!r} is a merge that labkit does not make; expected task_arithmetic, "
            "which adds what each model changes"
        )
    if "base_model" not in entries:
        raise root.error("base_model is missing; task_arithmetic counts from it")
    name = entries["base_model"].text("a model")
    base = entries["base_model"].attempt(Checkpoint, _place(name, path))
    shared = _parameters(entries.get("parameters"), ("weight", "normalize", "lambda"))
    _refuse_scaling(shared)
    terms, rests = [], set[float]()
    for entry in entries["models"].items("a list of models"):
        members = entry.members("model and parameters", ("model", "parameters"))
        if "model" not in members:
            raise entry.error("has no model")
        model = members["model"].text("a model")
        if model == name:
            continue  # the base itself adds nothing
        reference, plus, lora = model.partition("+")
        if reference != name or not (plus and lora):
            raise members["model"].error(
                f"{shown(model)!r} is not {shown(name)}+LORA; labkit adds LoRAs to one base"
            )
        weight = _parameters(members.get("parameters"), ("weight",)).get("weight")
        weight = weight or shared.get("weight")
        if weight is None:
            raise entry.error("has no weight")
        gradient, patterns = _gradients(weight, base.layers)
        adapter = members["model"].attempt(Adapter, _place(lora, path))
        # A filter that names no module of this LoRA is nothing unusual there.
        chosen = {
            pattern: each
            for pattern, each in patterns.items()
            if any(pattern_matches(pattern, module) for module in adapter.modules)
        }
        term = Term(adapter, gradient, chosen)
        terms.append(term)
        for module in term.adapter.modules:
            if base.layer_of(module) is None:
                # mergekit gives what lies before the layers depth 0, and what lies after depth 1.
                rests.add(term.gradient_for(module)[0 if "embed" in module else -1])
    if not terms:
        raise entries["models"].error("no model has a LoRA; expected base+lora")
    dtype = entries.get("out_dtype") or entries.get("dtype")
    if len(rests) > 1:
        raise root.error(
            "what the LoRAs change outside the layers has different weights "
            f"({', '.join(map(str, sorted(rests)))}); labkit has one weight for all of it"
        )
    return (dtype or root).attempt(
        lambda: Recipe(
            base,
            terms,
            rests.pop() if rests else None,
            dtype.text("a dtype") if dtype else "auto",
        )
    )


def _place(name: str, path: Path) -> str:
    here = user_path(name, path.parent)
    return str(here.resolve()) if here.is_dir() else name


def _parameters(entry: Entry | None, known: tuple[str, ...]) -> dict[str, Entry]:
    return {} if entry is None else entry.members("parameters", known)


def _refuse_scaling(shared: dict[str, Entry]) -> None:
    for key, neutral in (("normalize", ("false", "False")), ("lambda", ("1", "1.0"))):
        if key in shared and shared[key].text("a value") not in neutral:
            raise shared[key].error(
                f"is {shown(shared[key].node.value)}, which scales the weights again; expected "
                f"{neutral[0]}: write the weights as they are to count"
            )


def _gradients(entry: Entry, layers: int) -> tuple[Gradient, dict[str, Gradient]]:
    """Read a weight: a number, a list over depth, or lists with filters.

    Returns:
        the gradient, and those of module patterns.
    """
    patterns: dict[str, Gradient] = {}
    conditions: list[tuple[str | None, Entry]] = [(None, entry)]
    if isinstance(entry.node, yaml.SequenceNode):
        items = entry.items("weights")
        if any(isinstance(item.node, yaml.MappingNode) for item in items):
            conditions = []
            for item in items:
                members = item.members("filter and value", ("filter", "value"))
                if "value" not in members:
                    raise item.error("has no value")
                named = members["filter"].text("a filter") if "filter" in members else "*"
                conditions.append((None if named == "*" else named, members["value"]))
                if named == "*":
                    break  # mergekit takes the first that applies
    gradient = None
    for part, value in conditions:
        read = _depth_gradient(value, layers)
        if part is None:
            gradient = read
        else:
            # A filter is any part of a tensor's name; the first counts, as the last does here.
            patterns = {f"*{part}*": read} | patterns
    if gradient is None:
        raise entry.error("has no value without a filter, which is needed for all other modules")
    return gradient, patterns


def _depth_gradient(entry: Entry, layers: int) -> Gradient:
    if isinstance(entry.node, yaml.SequenceNode):
        words = [item.text("a number") for item in entry.items("numbers")]
    else:
        words = [entry.text("a number or a list of numbers")]
    anchors = entry.attempt(Gradient.parse, ",".join(words))
    return Gradient.from_anchors(layers, list(anchors))


def export_recipe(recipe: Recipe) -> str:
    """Write a recipe as mergekit's YAML, for the same merge there.

    The result differs in the last bits: mergekit adds the difference of two models that were
    rounded to the dtype. A weight is written for each layer, so nothing is interpolated.

    Raises:
        LabkitError: what mergekit's filters cannot say.
    """
    resolved = plan(recipe)  # checks that weights and layers fit
    base = _mergekit_name(recipe.base)
    models = []
    for term in recipe.terms:
        weight: Any = list(map(_short, term.weights))
        conditions = _conditions(term, recipe)
        if conditions:
            weight = [*conditions, {"value": weight}]
        models.append(
            {"model": f"{base}+{_mergekit_name(term.adapter)}", "parameters": {"weight": weight}}
        )
    content: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": base}
    content["models"] = models
    content["dtype"] = "float32"
    content["out_dtype"] = recipe.dtype if recipe.dtype != "auto" else _base_dtype(recipe)
    head = [
        "# mergekit-yaml THIS_FILE merged",
        *(f"# {shown(term.adapter.name)}: mean weight {term.weights.mean:.4g}, "
          f"{term.weights.runs()}" for term in recipe.terms),
        f"# {len(resolved.changes)} of {len(recipe.base.tensors)} tensors change",
    ]  # fmt: skip
    text = yaml.dump(content, Dumper=_Flow, sort_keys=False, allow_unicode=True, width=100)
    return "\n".join([*head, text])


def _conditions(term: Term, recipe: Recipe) -> list[dict[str, Any]]:
    """Filters for module patterns and for what lies outside the layers."""
    base, modules = recipe.base, list(term.adapter.modules)
    conditions: list[dict[str, Any]] = []
    # What lies outside the layers comes first: mergekit takes the first filter that applies.
    for module in modules:
        if base.layer_of(module) is None and recipe.rest is not None:
            conditions.append({"filter": module, "value": _short(recipe.rest)})
    for pattern, gradient in reversed(list(term.weights_for.items())):
        text = pattern.strip("*")
        chosen = {module for module in modules if pattern_matches(pattern, module)}
        if any(mark in text for mark in "*?[") or chosen != {
            module for module in modules if text in f"{module}.weight"
        }:
            raise LabkitError(
                f"the module pattern {shown(pattern)!r} selects other modules than the part of a "
                f"name {shown(text)!r}, which is all that mergekit's filters know; write patterns "
                "that are parts of names"
            )
        conditions.append({"filter": text, "value": list(map(_short, gradient))})
    return conditions


def _mergekit_name(source: Any) -> str:
    name = source.repository or str(source.folder.resolve())
    if source.repository and source.revision:
        name = f"{name}@{source.revision}"
    if "+" in name or ":" in source.reference:
        raise LabkitError(
            f"mergekit cannot name {shown(source.reference)!r}, which has a + or a subfolder; "
            "give it a plain folder"
        )
    return str(name)


def _base_dtype(recipe: Recipe) -> str:
    from collections import Counter

    from labkit.files.tensor_file import FLOATS

    sizes: Counter[str] = Counter()
    for tensor in recipe.base.tensors.values():
        sizes[FLOATS.get(tensor.dtype, "")] += tensor.elements
    return sizes.most_common(1)[0][0]


def _short(weight: float) -> int | float:
    return int(weight) if weight.is_integer() else weight


class _Flow(yaml.SafeDumper):
    """Writes lists of numbers on one line, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        data = list(data)
        flow = all(isinstance(entry, (int, float)) for entry in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Flow.add_representer(list, _Flow.represent_list)
