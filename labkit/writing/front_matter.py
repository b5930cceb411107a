"""The YAML at the head of a model card: what the hub reads of it.

Nothing is guessed: licence and languages come from the recipe or from the inputs' own cards, and
where those do not say, or say different things, the place is left open with a comment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from labkit.errors import LabkitError, shown
from labkit.merging.recipe import CardOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from labkit.files.references import Opened
    from labkit.merging.recipe import Recipe

CARD = "README.md"


def own_card(folder: Path) -> CardOptions:
    """What the card in a model's folder says of licence and languages; empty where it is silent.

    A card that cannot be read is a silent one: it is only asked, never needed.
    """
    from labkit.files.small_files import read_text
    from labkit.merging.recipe_file import compose

    try:
        text = read_text(folder / CARD, "model card")
        found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        entries = compose(found[1], CARD).members("front matter") if found else {}
        given: dict[str, Any] = {}
        if "license" in entries:
            given["license"] = entries["license"].text("a licence").lower()
        if "language" in entries:
            language = entries["language"].data()
            given["language"] = tuple(
                map(str, [language] if isinstance(language, str) else language)
            )
        return CardOptions(**given)
    except LabkitError:
        return CardOptions()


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
) -> list[str]:
    """The lines of the head, with the marks around it.

    Args:
        library: the library that loads the model: "transformers" or "peft".
        sources: what the model was made from; only hub ids are named.
        relation: how it was made from them: "merge" or "adapter".
        card: licence and languages.
        license_comment: what to say where the licence is not known.
    """
    names = [source if isinstance(source, str) else source.repository for source in sources]
    repositories = list(dict.fromkeys(name for name in names if name))
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    head["tags"] = ["merge", "lora", "gradient-merge", "labkit"]
    if card.language:
        head["language"] = list(card.language)
    if card.license:
        head["license"] = card.license
    if repositories:
        head |= {"base_model": repositories, "base_model_relation": relation}
    lines = ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()]
    if not card.license:
        lines.append(f"# license: {license_comment}")
    return [*lines, "---"]
