"""A recipe: what to merge, as text. Base, adapters with their gradients, and the output's dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from labkit.adapter import Adapter
from labkit.checkpoint import Checkpoint
from labkit.errors import LabkitError, shown
from labkit.gradient import Gradient

DTYPES = ("auto", "float16", "bfloat16", "float32")
FILE_NAME = "recipe.yaml"
LONGEST_FILE = 1_000_000


def pattern_matches(pattern: str, module: str) -> bool:
    """Tell whether a module pattern selects a module.

    A pattern is one or more parts of the module's dotted name, with `*` for anything: `mlp`,
    `q_proj`, `self_attn.*_proj` and `model.layers.0.mlp.up_proj` all are.
    """
    return fnmatchcase(f".{module}.", f"*.{pattern}.*")


@dataclass(frozen=True)
class Term:
    """One adapter of a merge, and how much of it each layer gets.

    Attributes:
        adapter: the adapter; a folder or hub id is opened.
        weights: the gradient; a list as text is parsed.
        weights_for: module pattern -> the gradient of the modules it selects, in place of
            `weights`. Of several patterns that select one module the last one counts.
    """

    adapter: Adapter
    weights: Gradient
    weights_for: Mapping[str, Gradient] = field(default_factory=dict)

    def __post_init__(self) -> None:
        adapter: Any = self.adapter
        if not isinstance(adapter, Adapter):
            object.__setattr__(self, "adapter", Adapter(adapter))
        object.__setattr__(self, "weights", as_gradient(self.weights))
        patterns = {name: as_gradient(value) for name, value in self.weights_for.items()}
        object.__setattr__(self, "weights_for", patterns)

    def gradient_for(self, module: str) -> Gradient:
        """The gradient that counts for a module."""
        chosen = self.weights
        for pattern, gradient in self.weights_for.items():
            if pattern_matches(pattern, module):
                chosen = gradient
        return chosen


@dataclass(frozen=True)
class Recipe:
    """What to merge: everything that decides the merged bytes, and nothing else.

    Attributes:
        base: the base model; a folder or hub id is opened.
        terms: the adapters, added in this order.
        rest: the weight of what adapters change outside the layers (embeddings, final norm, head);
            None refuses adapters that change anything there.
        dtype: the output's dtype, or "auto" to keep each tensor's own.
        untie: write a head of its own for a base whose embedding serves as head (tied).
        sha256: reference -> file name -> SHA-256 of the files that a loaded recipe was made from;
            what is merged does not depend on it.

    Raises:
        LabkitError: no terms, an unknown dtype, or a `rest` that is not a finite number.
    """

    base: Checkpoint
    terms: Sequence[Term]
    rest: float | None = None
    dtype: str = "auto"
    untie: bool = field(default=False, kw_only=True)
    sha256: Mapping[str, Mapping[str, str]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        base: Any = self.base
        if not isinstance(base, Checkpoint):
            object.__setattr__(self, "base", Checkpoint(base))
        object.__setattr__(self, "terms", tuple(self.terms))
        if not self.terms:
            raise LabkitError("a recipe needs at least one term (an adapter and its weights)")
        if self.dtype not in DTYPES:
            raise LabkitError(
                f"the dtype {shown(self.dtype)!r} is unknown; expected one of {', '.join(DTYPES)}"
            )
        if not isinstance(self.untie, bool):
            raise LabkitError(f"untie is {shown(repr(self.untie))}; expected true or false")
        rest: Any = self.rest
        if rest is not None:
            if isinstance(rest, bool) or not isinstance(rest, (int, float)):
                raise LabkitError(f"rest is {shown(repr(rest))}; expected a number or nothing")
            if not math.isfinite(rest):
                raise LabkitError(f"rest is {rest}; expected a finite number")

    @property
    def sources(self) -> tuple[Checkpoint | Adapter, ...]:
        """The base and the adapters, in order."""
        return self.base, *(term.adapter for term in self.terms)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file and open what it names.

        Relative folders count from the recipe's own folder.

        Raises:
            LabkitError: not YAML, an unknown or missing key, or a value of the wrong kind.
        """
        file = Path(path)
        try:
            if file.stat().st_size > LONGEST_FILE:
                raise LabkitError(f"{shown(file)} is too large for a recipe (over 1 MB)")
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise LabkitError(f"cannot read the recipe {shown(file)}: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise LabkitError(f"{shown(file)} is not YAML: {shown(error)}") from error
        entries = _keys(
            content, f"{shown(file)}", {"labkit", "base", "terms", "rest", "dtype", "untie"}
        )
        terms = entries.get("terms")
        if not isinstance(terms, list):
            raise LabkitError(f"{shown(file)}: terms is {shown(repr(terms))}; expected a list")
        sha256: dict[str, Mapping[str, str]] = {}
        where = shown(file)
        return cls(
            Checkpoint(_reference(entries.get("base"), f"{where}: base", file.parent, sha256)),
            [
                _term(term, f"{where}: terms[{i}]", file.parent, sha256)
                for i, term in enumerate(terms)
            ],
            entries.get("rest"),
            str(entries.get("dtype", "auto")),
            sha256,
            untie=entries.get("untie", False),
        )

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def to_yaml(self) -> str:
        """The recipe as YAML text."""
        from labkit import __version__

        def named(source: Checkpoint | Adapter) -> dict[str, Any]:
            entry: dict[str, Any] = {"reference": source.reference}
            if source.revision:
                entry["revision"] = source.revision
            if source.reference in self.sha256:
                entry["sha256"] = dict(self.sha256[source.reference])
            return entry

        terms = []
        for term in self.terms:
            entry: dict[str, Any] = {"adapter": named(term.adapter), "weights": term.weights.runs()}
            if term.weights_for:
                entry["weights_for"] = {
                    pattern: gradient.runs() for pattern, gradient in term.weights_for.items()
                }
            terms.append(entry)
        content = {
            "labkit": __version__,
            "base": named(self.base),
            "terms": terms,
            "rest": self.rest,
            "dtype": self.dtype,
        }
        if self.untie:
            content["untie"] = True
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def as_gradient(weights: Gradient | str | Sequence[float]) -> Gradient:
    """Take a gradient as it is, a list as text, or a list of numbers."""
    if isinstance(weights, Gradient):
        return weights
    return Gradient.parse(weights) if isinstance(weights, str) else Gradient(weights)


def _keys(value: Any, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LabkitError(f"{where} is {shown(repr(value))}; expected {', '.join(sorted(known))}")
    for key in value:
        if key not in known:
            raise LabkitError(
                f"{where} has the unknown key {shown(key)!r}; known are {', '.join(sorted(known))}"
            )
    return value


def _reference(value: Any, where: str, folder: Path, sha256: dict[str, Mapping[str, str]]) -> str:
    entry = {"reference": value} if isinstance(value, str) else value
    entry = _keys(entry, where, {"reference", "revision", "sha256"})
    reference = entry.get("reference")
    if not isinstance(reference, str) or not reference:
        raise LabkitError(f"{where} has no reference; expected a folder or a hub id")
    revision = entry.get("revision")
    if (folder / reference).is_dir():
        reference = str((folder / reference).resolve())
    elif revision and "@" not in reference:
        repository, colon, subfolder = reference.partition(":")
        reference = f"{repository}@{revision}{colon}{subfolder}"
    hashes = entry.get("sha256") or {}
    if not isinstance(hashes, dict):
        raise LabkitError(f"{where}.sha256 is not a mapping of file name to SHA-256")
    sha256[reference] = {str(name): str(digest) for name, digest in hashes.items()}
    return reference


def _term(value: Any, where: str, folder: Path, sha256: dict[str, Mapping[str, str]]) -> Term:
    entry = _keys(value, where, {"adapter", "weights", "weights_for"})
    adapter = Adapter(_reference(entry.get("adapter"), f"{where}.adapter", folder, sha256))
    if "weights" not in entry:
        raise LabkitError(f"{where} has no weights; write one weight for each layer")
    patterns = entry.get("weights_for") or {}
    if not isinstance(patterns, dict):
        raise LabkitError(f"{where}.weights_for is not a mapping of module pattern to weights")
    return Term(
        adapter,
        _weights(entry["weights"], f"{where}.weights"),
        {
            str(pattern): _weights(weights, f"{where}.weights_for[{shown(pattern)}]")
            for pattern, weights in patterns.items()
        },
    )


def _weights(value: Any, where: str) -> Gradient:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (str, list)):
        raise LabkitError(f"{where} is {shown(repr(value))}; expected a list of weights")
    try:
        return as_gradient(value)
    except LabkitError as error:
        raise LabkitError(f"{where}: {error}") from error
