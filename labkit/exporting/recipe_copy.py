"""The recipe of a merge that is exported from its folder, to lie beside the export."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.files.small_files import read_text
from labkit.merging.recipe import FILE_NAME as RECIPE_NAME
from labkit.merging.recipe_file import Entry, compose, named_source


def recipe_for(out: Path, merged: Path) -> str | None:
    """The text of a merge's recipe, whose local folders are named from another folder.

    Nothing that the recipe names is opened: it need not be on this machine any more.

    Args:
        out: the folder in which the text will lie.
        merged: the merge's folder.

    Returns:
        None if there is no recipe, or one that is not labkit's.
    """
    path = merged / RECIPE_NAME
    if not path.is_file():
        return None
    try:
        text = read_text(path, "recipe")
        found = [
            (one.node.start_mark.index, one.node.end_mark.index, one.text("a folder or hub id"))
            for one in _references(compose(text, shown(path)))
        ]
        for start, end, reference in sorted(found, reverse=True):
            named = _named_from(out, merged, reference)
            if named is not None:
                text = f"{text[:start]}{json.dumps(named, ensure_ascii=False)}{text[end:]}"
    except LabkitError:
        return None
    return text


def _named_from(out: Path, merged: Path, reference: str) -> str | None:
    """How a local folder is named from another folder; None for a hub id."""
    folder = user_path(reference, merged)
    if not folder.is_dir() and not reference.startswith(("./", "../")):
        return None
    relative = os.path.relpath(folder.resolve(), out.resolve())
    return relative if relative.startswith("..") else f"./{relative}"


def _references(root: Entry) -> Iterator[Entry]:
    """Where the recipe names base and sources.

    Raises:
        LabkitError: it is no recipe of labkit's.
    """
    members = root.members("a recipe")
    if not {"base", "terms"} <= set(members):
        raise root.error("has no base or no terms")
    terms = members["terms"].items("a list of terms")
    named = [named_source(one, one.members("a term"))[1] for one in terms]
    for entry in (members["base"], *named):
        if isinstance(entry.node, yaml.ScalarNode):
            yield entry
        elif "reference" in (inside := entry.members("a source")):
            yield inside["reference"]
