"""Tells what a recipe will read, before anything that it names is opened or downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.files.references import HUB_ID, hub_id
from labkit.files.small_files import read_text
from labkit.merging.recipe_file import Entry, compose, named_source
from labkit.models.model_files import ADAPTER_CONFIG, CONFIG


@dataclass(frozen=True)
class NamedSource:
    """A base or an adapter as a recipe names it.

    Attributes:
        reference: what the recipe says: a folder, or a hub id.
        config: the file that says what it is.
        folder: where it is, if it is a folder on this machine.
        revision: the revision of the hub's repository, where the recipe says one.
    """

    reference: str
    config: str
    folder: Path | None
    revision: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether it is read from the hub or its cache."""
        return self.folder is None and HUB_ID.fullmatch(hub_id(self.reference)) is not None

    @property
    def is_cached(self) -> bool:
        """Whether the hub's cache has its config."""
        from huggingface_hub import try_to_load_from_cache

        match = HUB_ID.fullmatch(hub_id(self.reference))
        if match is None:
            return False
        inside = (match["subfolder"] or "").strip("/")
        name = f"{inside}/{self.config}" if inside else self.config
        revision = match["revision"] or self.revision
        found = try_to_load_from_cache(match["repository"], name, revision=revision)
        return isinstance(found, str)

    def __str__(self) -> str:
        if self.folder is not None:
            return shown(self.folder)
        return f"{shown(self.reference)} from the hub" if self.on_hub else shown(self.reference)


def named_sources(
    path: Path,
    base: object | None = None,
    adapters: Sequence[object] | None = None,
) -> list[NamedSource]:
    """List what a recipe names, but for what is named in its place.

    Args:
        path: the recipe.
        base: what takes the place of the base, if something does.
        adapters: likewise of the adapters.

    Returns:
        the base and the adapters, each once. What is wrong with the recipe is not said here.
    """
    try:
        root = compose(read_text(path, "recipe"), shown(path)).members("a recipe")
        found = [*_sources(root, path.parent, base is None, not adapters)]
    except LabkitError:
        return []
    return [*dict.fromkeys(found)]


def _sources(
    root: dict[str, Entry], folder: Path, base: bool, adapters: bool
) -> Iterator[NamedSource]:
    if base and "base" in root:
        yield _source(root["base"], folder, CONFIG)
    for term in root["terms"].items("terms") if adapters and "terms" in root else []:
        kind, entry = named_source(term, term.members("a term"))
        yield _source(entry, folder, ADAPTER_CONFIG if kind == "adapter" else CONFIG)


def _source(entry: Entry, folder: Path, config: str) -> NamedSource:
    members = {} if isinstance(entry.node, yaml.ScalarNode) else entry.members("a source")
    text = members.get("reference", entry).text("a reference")
    revision = members["revision"].text("a revision") if "revision" in members else None
    for here in (user_path(text, folder), user_path(text)):
        if here.is_dir():
            return NamedSource(text, config, here.resolve())
    return NamedSource(text, config, None, revision)
