"""The model card of a merge, in the form that published gradient merges have."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LONGEST_SHOWN, shown
from labkit.figures.gradient_figure import (
    KINDS,
    MOST_BARS,
    described,
    layer_groups,
    layers_said,
)
from labkit.files.references import Opened
from labkit.gradients.gradient import plain
from labkit.merging.methods.weighted_sum import WeightedSum
from labkit.merging.module_rows import gradients_in_force, mean_weight
from labkit.models.prompt_formats import FORMATS
from labkit.writing.card_prompts import formats, snippet
from labkit.writing.front_matter import front_matter, licence, own_card

if TYPE_CHECKING:
    from labkit.merging.planning import Plan
    from labkit.merging.recipe import Recipe, Term
    from labkit.writing.receipt import Receipt

LONGEST_IN_WORDS = 3000
"""Letters that the picture in words has at most."""
MOST_FILES = 60
"""Files whose SHA-256 the card lists at most; the recipe has them all."""


def model_card(plan: Plan, receipt: Receipt) -> str:
    """Write the README.md of a merged model.

    Names come from folders and files of other people: each is shown as text and as nothing else.
    """
    from labkit import __version__
    from labkit.writing.side_files import side_files

    recipe = plan.recipe
    license_name, comment = licence(recipe)
    language = recipe.card.language or own_card(plan.base.folder).language
    card = replace(recipe.card, license=license_name, language=language)
    prompts = formats(recipe, side_files(plan).files)
    has_lora = any(term.source.kind == "adapter" for term in recipe.terms)
    tags = ("merge", "lora") if has_lora else ("merge",)
    lines = [
        *front_matter("transformers", recipe.sources, "merge", card, comment, tags),
        "",
        f"# {as_text(card.title or receipt.folder.name)}",
        "",
        "This is an experimental gradient merge: every decoder layer of the base model got its own "
        f"share of what {_added(recipe)} changes.",
        "",
        f"- Base model: {linked(plan.base)}",
        *(f"- {KINDS[term.source.kind]}: {linked(term.source)}" for term in recipe.terms),
        *([] if recipe.method == WeightedSum() else [f"- Method: {recipe.method_words}"]),
        f"- Made with: labkit {__version__}",
        "",
        *_weights(plan),
        *_picture(plan),
        *_fitted(plan),
        *_norms(plan, receipt),
        *_usage(receipt.folder.name, prompts),
        *_limitations(),
        *_reproduce(plan, receipt),
    ]
    return "\n".join(lines)


def _weights(plan: Plan) -> Iterator[str]:
    for term in plan.recipe.terms:
        yield f"## Layer weights of {as_text(term.source.name)}"
        yield ""
        yield (
            f"One weight for each of the {plan.base.layers} layers, the first layer first: 0 is "
            f"the base model, 1 is all of {_called(term)}. {_ratio(plan, term)}"
        )
        yield from ("", *fenced(str(term.weights)), "")
        for pattern, gradient in term.weights_for.items():
            yield f"Modules named `{as_code(pattern)}`, mean weight {gradient.mean:.2f}:"
            yield from ("", *fenced(str(gradient)), "")
    if plan.recipe.rest is not None:
        yield f"Outside the layers the weight is {plain(plan.recipe.rest)}."
        yield ""


def _called(term: Term) -> str:
    return f"the {KINDS[term.source.kind]}"


def _added(recipe: Recipe) -> str:
    """What the terms are, in a word: the LoRA, or the model."""
    return " and ".join(dict.fromkeys(_called(term) for term in recipe.terms))


def _ratio(plan: Plan, term: Term) -> str:
    mean = term.weights.mean
    if not term.weights_for:
        return f"The mean weight, the ratio of the merge, is {mean:.2f}."
    whole = mean_weight(plan.base, term)
    return (
        f"The mean weight over all modules, the ratio of the merge, is {whole:.2f}. This first "
        f"list is for the modules that no pattern below selects, and has the mean {mean:.2f}."
    )


def _picture(plan: Plan) -> Iterator[str]:
    recipe = plan.recipe
    base, several = as_text(plan.base.name), len(recipe.terms) > 1
    yield f"![{as_text(described(recipe), LONGEST_IN_WORDS)}](gradient.png)"
    yield ""
    adapter = as_text(recipe.terms[0].source.name)
    green = f"{adapter}: the higher the green, the more of {_called(recipe.terms[0])} the layer got"
    if several:
        kinds = " or ".join(dict.fromkeys(KINDS[term.source.kind] for term in recipe.terms))
        green = f"the {kinds} named above it: the higher the green, the more of it the layer got"
    yield (
        f"Each bar is a layer, the first at the left. The light blue is {base} and the light green "
        f"is {green}."
    )
    if any(term.weights_for for term in recipe.terms):
        yield "Modules that have a gradient of their own are drawn below all others."
    if any(len(gradients_in_force(term)) > MOST_BARS + 1 for term in recipe.terms):
        yield "Where they are many, each is a row whose colour goes from blue at 0 to green at 1."
    if several:
        names = ", ".join(as_text(term.source.name) for term in recipe.terms)
        yield f"From top to bottom: {names}."
    yield ""


def _fitted(plan: Plan) -> Iterator[str]:
    """What fitted weights came from; terms that were fitted together have one section."""
    for fitted in dict.fromkeys(term.fitted for term in plan.recipe.terms if term.fitted):
        yield "## Where the layer weights come from"
        yield ""
        sets = {
            role: " and ".join(
                f"{as_text(text.name)} ({text.passages} passages, SHA-256 `{text.sha256}`)"
                for text in fitted.texts
                if text.role == role
            )
            for role in ("target", "keep")
        }
        yield (
            f"They were fitted: the NLL of {sets['target']} plus {fitted.strength:g} times the KL "
            f"to the base on {sets['keep']}, in {fitted.evaluations} evaluations. On passages that "
            f"the fit did not read they are {as_text(fitted.said)}."
        )
        yield ""
        yield "| layer weights | text | measure | nats a token | 95 % interval |"
        yield "|---|---|---|---:|---:|"
        for row in fitted.held_out:
            yield (
                f"| {as_text(row.gradient)} | {as_text(row.text)} | {as_text(row.metric)} | "
                f"{row.estimate:.4f} | {row.low:.4f} to {row.high:.4f} |"
            )
        yield ""


def _norms(plan: Plan, receipt: Receipt) -> Iterator[str]:
    gradients = [
        gradient
        for term in plan.recipe.terms
        for gradient in (term.weights, *term.weights_for.values())
    ]
    yield "## What changed"
    yield ""
    yield (
        f"{len(receipt.tensors)} tensors were changed; {receipt.untouched} keep the base's own "
        "bytes. The norms are Frobenius norms of the change, over all tensors of the layers."
    )
    yield ""
    names = [as_text(term.source.name) for term in plan.recipe.terms]
    heads = ["weight"] if len(names) == 1 else [f"weight of {name}" for name in names]
    yield f"| layers | {' | '.join(heads)} | tensors | norm asked for | norm after rounding |"
    yield f"|---|{'---:|' * (len(heads) + 3)}"
    groups: list[tuple[int, int] | None] = [*layer_groups(gradients)]
    if any(tensor.layer is None for tensor in receipt.tensors):
        groups.append(None)
    for group in groups:
        chosen = [
            tensor
            for tensor in receipt.tensors
            if (tensor.layer is None and group is None)
            or (tensor.layer is not None and group and group[0] <= tensor.layer <= group[1])
        ]
        if group is None:
            label, weights = "outside", [plain(plan.recipe.rest or 0.0)] * len(heads)
        else:
            label = layers_said(*group)
            weights = [f"{mean_weight(plan.base, term, *group):.2f}" for term in plan.recipe.terms]
        asked = math.hypot(*(tensor.asked for tensor in chosen))
        achieved = math.hypot(*(tensor.achieved for tensor in chosen))
        yield (
            f"| {label} | {' | '.join(weights)} | {len(chosen)} | {asked:.4g} | {achieved:.4g} |"
        )
    yield ""


def _usage(name: str, prompts: tuple[str, ...]) -> Iterator[str]:
    yield from ("## Usage", "", *fenced(snippet(name, prompts), "python"), "")
    described = [FORMATS[prompt] for prompt in prompts if prompt in FORMATS]
    if described:
        yield "These instruction formats should work, since the merge has parts trained on them:"
        yield ""
    for each in described:
        yield from (f"{each.heading}:", "", *fenced(each.example.rstrip("\n")), "")
    if "chat" in prompts:
        yield "The tokenizer brings a chat template, which the lines above use."
        yield ""
    if not prompts:
        yield "Write prompts as the base model and the LoRA were trained on them."
        yield ""


def _limitations() -> Iterator[str]:
    yield "## Bias, risks and limitations"
    yield ""
    yield (
        "The merge shows the biases of the base model and of the data the LoRA was trained on. It "
        "is experimental: nobody trained this combination of weights, and a norm says nothing "
        "about quality. Try it before relying on it."
    )
    yield ""


def _reproduce(plan: Plan, receipt: Receipt) -> Iterator[str]:
    yield "## How to make it again"
    yield ""
    yield (
        "`recipe.yaml` says what was merged, and `receipt.json` what was done to each tensor. With "
        "the same inputs, labkit makes the same files to the byte, on any device:"
    )
    commands = "labkit merge --recipe recipe.yaml --out again\nlabkit verify ."
    yield from ("", *fenced(commands, "bash"), "")
    if not receipt.files_read:
        return
    yield "SHA-256 of the files that were read:"
    yield ""
    yield "| from | file | SHA-256 |"
    yield "|---|---|---|"
    names = {str(source.folder): source.name for source in plan.recipe.sources}
    rows = sorted((names.get(str(Path(path).parent), ""), Path(path).name, digest)
                  for path, digest in receipt.files_read.items())  # fmt: skip
    for folder, name, digest in rows[:MOST_FILES]:
        yield f"| {as_text(folder)} | {as_text(name)} | `{digest}` |"
    if len(rows) > MOST_FILES:
        yield f"| | {len(rows) - MOST_FILES} more, see `recipe.yaml` | |"
    yield ""


def linked(source: Opened) -> str:
    """A source's name; a link, if the hub has it."""
    name = as_text(source.name)
    if not source.repository:
        return name
    revision = f", revision `{as_code(source.revision)}`" if source.revision else ""
    return f"[{name}](https://huggingface.co/{source.repository}){revision}"


def as_text(name: str, longest: int = LONGEST_SHOWN) -> str:
    """A name from a file, as text in Markdown that is nothing else."""
    escaped = re.sub(r"([\\`*_{}\[\]<>()#+!|~$&])", r"\\\1", shown(name, longest))
    # What would make a list or a heading of a line that begins with it.
    return re.sub(r"^(\d*)([-=.])", r"\1\\\2", escaped)


def as_code(name: str) -> str:
    """A name as the inside of a code span."""
    return shown(name).replace("`", "'")


def fenced(text: str, language: str = "") -> list[str]:
    """A code block, behind a fence longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text, fence]
