"""The YAML at the head of a model card: what the hub reads of it.

Nothing is guessed: licence and languages come from the recipe or from the inputs' own cards, and
where those do not say, or say different things, the place is left open with a comment.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown
from labkit.merging.recipe import CardOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from labkit.files.references import Opened
    from labkit.merging.recipe import Recipe

CARD = "README.md"
ORDER = ["library_name", "pipeline_tag", "tags", "language", "license", "base_model",
         "base_model_relation"]  # fmt: skip
LONGEST_ENTRIES = 2_000
"""Characters of another card's licence and languages that are parsed."""


def own_card(folder: Path) -> CardOptions:
    """What the card in a model's folder says of licence and languages; empty where it is silent.

    A card that cannot be read is a silent one: it is only asked, never needed. It is a stranger's,
    so it is read without huggingface_hub's ModelCard, whose search for the head takes minutes on a
    megabyte of empty lines, and whose YAML takes endless aliases.
    """
    from labkit.files.small_files import read_text
    from labkit.merging.recipe_file import compose

    try:
        text = read_text(folder / CARD, "model card")
        head = _said(text, ("license:", "language:"))
        entries = compose(head, CARD).members("front matter") if head else {}
    except LabkitError:
        return CardOptions()
    said = CardOptions()
    # What one of the two says is worth having, whatever the other one is.
    with suppress(LabkitError):
        if "license" in entries:
            said = CardOptions(license=entries["license"].text("a licence").lower())
    with suppress(LabkitError):
        if "language" in entries:
            language = entries["language"].data()
            codes = language if isinstance(language, list) else [language]
            said = replace(said, language=tuple(map(str, codes)))
    return said


def _said(text: str, keys: tuple[str, ...]) -> str:
    """The entries of a card's head, between the two lines of `---` at its start, with these keys.

    Only they are parsed: a head may hold a megabyte of results, or what is no YAML at all.
    """
    first, *lines = text.removeprefix("\ufeff").split("\n")
    end = next((n for n, line in enumerate(lines) if line.rstrip() == "---"), 0)
    kept, wanted = [], False
    for line in lines[:end] if first.rstrip() == "---" else []:
        if line[:1] not in ("", " ", "-", "#"):  # an entry begins
            wanted = line.startswith(keys)
        if wanted:
            kept.append(line)
    said = "\n".join(kept)[:LONGEST_ENTRIES]
    # A text and a list, or two lists; PyYAML takes seconds for a thousand lists in each other.
    return said if said.count("[") + said.count("{") <= 2 else ""


def licence(recipe: Recipe) -> tuple[str | None, str]:
    """The merge's licence, and what to say where it is not known.

    Returns:
        the identifier, or None with a comment for whoever publishes the merge.
    """
    if recipe.card.license:
        return recipe.card.license, ""
    said = {source.name: own_card(source.folder).license for source in recipe.sources}
    base = said[recipe.base.name] or recipe.base.config.get("license")
    if not isinstance(base, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", base):
        return None, "fill in the license that the base model and the adapters allow"
    others = {name: text for name, text in said.items() if text not in (None, base)}
    if others:
        names = ", ".join(f"{shown(name)}: {text}" for name, text in others.items())
        return None, f"fill in; the inputs differ ({shown(recipe.base.name)}: {base}, {names})"
    return base, ""


def front_matter(
    library: str,
    sources: Sequence[Opened | str],
    relation: str,
    card: CardOptions,
    license_comment: str,
    tags: Sequence[str] = ("merge", "lora"),
) -> list[str]:
    """The lines of the head, with the marks around it.

    Args:
        library: the library that loads the model: "transformers" or "peft".
        sources: what the model was made from; only hub ids are named.
        relation: how it was made from them: "merge" or "adapter".
        card: licence and languages.
        license_comment: what to say where the licence is not known.
        tags: what it is found by on the hub, beside labkit's own.
    """
    from huggingface_hub import ModelCardData

    names = [source if isinstance(source, str) else source.repository for source in sources]
    repositories = list(dict.fromkeys(name for name in names if name))
    head = ModelCardData(
        library_name=library,
        pipeline_tag="text-generation",
        tags=[*tags, "gradient-merge", "labkit"],
        language=list(card.language) or None,
        license=card.license,
        base_model=repositories or None,
        base_model_relation=relation if repositories else None,
    )
    lines = ["---", head.to_yaml(original_order=ORDER)]
    if not card.license:
        lines.append(f"# license: {license_comment}")
    return [*lines, "---"]
