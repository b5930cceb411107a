"""What a lab remembers in the cache: where it is, what was drawn last and what was chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from labkit.files.cache import cache_folder
from labkit.merging.recipe import Recipe, Term


def state_file(recipe: Recipe) -> Path:
    """Where is kept what was drawn last for a base and its adapters."""
    return _folder() / f"{_name(recipe)}.json"


def runs_file(recipe: Recipe, quantize: str | None = None) -> Path:
    """Where the runs of a base and its adapters are kept.

    Args:
        recipe: base, adapters, and the weight outside the layers, which the answers depend on.
        quantize: to what the model that is heard is quantised; likewise.
    """
    rest = "" if recipe.rest is None else f"-rest-{recipe.rest:g}"
    heard = f"-{quantize}" if quantize else ""
    return _folder() / f"{_name(recipe)}{rest}{heard}-runs.jsonl"


def remember(recipe: Recipe, chosen: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Keep gradients and settings.

    Args:
        recipe: what is drawn.
        chosen: the settings on the screen.
        said: the settings that the cell said.
    """
    terms = [
        {
            "weights": term.weights.runs(),
            "weights_for": {name: each.runs() for name, each in term.weights_for.items()},
        }
        for term in recipe.terms
    ]
    state = {"terms": terms, "chosen": dict(chosen), "said": dict(said)}
    with suppress(OSError):  # a cache that cannot be written costs a comfort, not the work
        file = state_file(recipe)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(state), encoding="utf-8")


def remembered(recipe: Recipe) -> Any:
    """What was kept.

    Raises:
        OSError, ValueError, RecursionError: nothing that can be read.
    """
    return json.loads(state_file(recipe).read_text(encoding="utf-8"))


def terms_in(state: Any, recipe: Recipe) -> list[Term]:
    """The terms of what was kept, for the sources of a recipe.

    Raises:
        LabkitError, ValueError, KeyError, TypeError, AttributeError: a state of another form.
    """
    return [
        Term(old.source, saved["weights"], saved["weights_for"])
        for old, saved in zip(recipe.terms, state["terms"], strict=True)
    ]


def _folder() -> Path:
    return cache_folder() / "lab"


def _name(recipe: Recipe) -> str:
    sources = [str(source.folder.resolve()) for source in recipe.sources]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:20]
