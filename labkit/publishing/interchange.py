"""Recipes from and for other tools: the 2023 script's command line, and mergekit's YAML."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.merging.methods.weighted_sum import WeightedSum
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe, Term, pattern_matches
from labkit.models.checkpoint import Checkpoint
from labkit.publishing.mergekit_recipe import from_mergekit

SCRIPT = "apply-lora-weight-ltl.py"


def import_recipe(text_or_file: str | Path) -> Recipe:
    """Read a recipe of another tool: a file with mergekit's YAML, or the script's command line.

    What lies behind the layers has the first weight of a list, as in mergekit 0.1.4 and 0.1.5; in
    0.0.6 it had the last one.

    Raises:
        LabkitError: neither of the two, or a merge that labkit does not make.
    """
    return imported(text_or_file)[0]


def imported(text_or_file: str | Path) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe of `import_recipe`, and what is worth knowing of how it was read."""
    text = str(text_or_file)
    if "--peft_model_weights" in text:
        return from_command_line(text), ()
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


def export_recipe(recipe: Recipe) -> str:
    """Write a recipe as mergekit's YAML, for the same merge there.

    The result differs in the last bits: mergekit adds the difference of two models that were
    rounded to the dtype. A weight is written for each layer, so nothing is interpolated.

    Raises:
        LabkitError: what mergekit's filters cannot say, or a method other than `sum`.
    """
    if recipe.method != WeightedSum():
        raise LabkitError(
            f"the method {recipe.method.name} is not written as mergekit's, whose deltas of LoRAs "
            "are rounded first and come out otherwise; recipes of the method sum are"
        )
    resolved = plan(recipe)  # checks that weights and layers fit
    base = _mergekit_name(recipe.base)
    models = []
    for term in recipe.terms:
        weight: Any = list(map(_short, term.weights))
        conditions = _conditions(term, recipe)
        if conditions:
            weight = [*conditions, {"value": weight}]
        name = _mergekit_name(term.source)
        if term.source.kind == "adapter":
            name = f"{base}+{name}"
        models.append({"model": name, "parameters": {"weight": weight}})
    content: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": base}
    content["models"] = models
    content["dtype"] = "float32"
    content["out_dtype"] = recipe.dtype if recipe.dtype != "auto" else _base_dtype(recipe)
    head = [
        # The LoRAs are merged into models of their own first, and those need a place.
        "# mergekit-yaml THIS_FILE merged --lora-merge-cache merged-loras",
        *(f"# {shown(term.source.name)}: mean weight {term.weights.mean:.4g}, "
          f"{term.weights.runs()}" for term in recipe.terms),
        f"# {len(resolved.changes)} of {len(recipe.base.tensors)} tensors change",
    ]  # fmt: skip
    text = yaml.dump(content, Dumper=_Flow, sort_keys=False, allow_unicode=True, width=100)
    return "\n".join([*head, text])


def _conditions(term: Term, recipe: Recipe) -> list[dict[str, Any]]:
    """Filters for module patterns and for what lies outside the layers."""
    base, modules = recipe.base, list(dict.fromkeys(part.name for part in term.source.parts))
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
