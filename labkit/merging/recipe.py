"""A recipe: what to merge, as a value and as text.

Base, adapters with their gradients, and the output's dtype. `recipe.yaml` holds the same as text;
`labkit.merging.recipe_file` reads it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import LabkitError, shown, spelled
from labkit.files.paths import user_path
from labkit.gradients.calls import as_gradient as as_gradient
from labkit.gradients.gradient import Gradient
from labkit.merging.fitted import Fitted
from labkit.merging.formula import Method
from labkit.merging.methods import as_method
from labkit.merging.methods.weighted_sum import WeightedSum
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import open_source
from labkit.models.prompt_formats import CHAT, FORMATS
from labkit.models.source import Source

DTYPES = ("auto", "float16", "bfloat16", "float32")
FILE_NAME = "recipe.yaml"
PROMPTS = (*FORMATS, CHAT)
"""Prompt formats that a model card can describe."""


def pattern_matches(pattern: str, module: str) -> bool:
    """Tell whether a module pattern selects a module.

    A pattern is one or more parts of the module's dotted name, with `*` for anything: `mlp`,
    `q_proj`, `self_attn.*_proj` and `model.layers.0.mlp.up_proj` all are.
    """
    return fnmatchcase(f".{module}.", f"*.{pattern}.*")


@dataclass(frozen=True)
class CardOptions:
    """What a recipe says for the model card; the merged bytes do not depend on it.

    Attributes:
        title: the card's heading; the folder's name if left out.
        license: the licence's identifier on the hub, such as "llama2"; taken from the base's own
            card if left out.
        language: codes such as "en"; taken from the base's own card if left out.
        prompts: the prompt formats to describe, of `PROMPTS`; None lets names and tokenizer decide.

    Raises:
        LabkitError: an identifier, a code or a prompt format of another form.
    """

    title: str | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    prompts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise LabkitError(
                f"the license {shown(self.license)!r} is no identifier of a licence; expected one "
                "such as apache-2.0 or llama2"
            )
        for code in self.language:
            if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)?", code):
                raise LabkitError(
                    f"the language {shown(code)!r} is no language code; expected one such as en"
                )
        for prompt in self.prompts or ():
            if prompt not in PROMPTS:
                raise LabkitError(
                    f"the prompt format {shown(prompt)!r} is unknown; known are "
                    f"{', '.join(PROMPTS)}"
                )


@dataclass(frozen=True)
class Term:
    """One adapter or full model of a merge, and how much of it each layer gets.

    Attributes:
        source: what has parts to add; the folder or hub id of an adapter or a model is opened, and
            so is a `Checkpoint`.
        weights: the gradient; a list as text is parsed, and a call as data is carried out:
            `{"ramp": {"layers": 40, "start": 18, "stop": 20}}`.
        weights_for: module pattern -> the gradient of the modules it selects, in place of
            `weights`. Of several patterns that select one module the last one counts.
        calls: module pattern ("" for `weights`) -> the call that made the gradient, where one did.
        fitted: what the gradients were fitted on, where `lk.fit` made them; the merged bytes do
            not depend on it.
    """

    source: Source
    weights: Gradient
    weights_for: Mapping[str, Gradient] = field(default_factory=dict)
    calls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    fitted: Fitted | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", open_source(self.source))
        given: dict[str, Any] = {"": self.weights, **self.weights_for}
        calls = {name: value for name, value in given.items() if isinstance(value, Mapping)}
        made = {name: as_gradient(value) for name, value in given.items()}
        object.__setattr__(self, "weights", made.pop(""))
        object.__setattr__(self, "weights_for", made)
        object.__setattr__(self, "calls", {**self.calls, **calls})

    @property
    def adapter(self) -> Adapter:
        """The source, for what only an adapter can do.

        Raises:
            LabkitError: it is something else.
        """
        if not isinstance(self.source, Adapter):
            raise LabkitError(
                f"{shown(self.source.name)} is no adapter, which is needed here; merge it instead "
                f"({spelled('lk.plan', 'labkit merge')})"
            )
        return self.source

    def gradient_for(self, module: str) -> Gradient:
        """The gradient that counts for a module."""
        return {"": self.weights, **self.weights_for}[self.pattern_for(module)]

    def pattern_for(self, module: str) -> str:
        """The pattern whose gradient counts for a module; "" where it is that of all modules."""
        chosen = ""
        for pattern in self.weights_for:
            if pattern_matches(pattern, module):
                chosen = pattern
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
        method: how the terms become one change of a tensor: "sum", "linear", "slerp", "ties",
            "dare", "della", or one with its parameters: `{"ties": {"density": 0.2}}`. See
            `labkit.merging.methods`.
        untie: write a head of its own for a base whose embedding serves as head (tied).
        sha256: reference -> file name -> SHA-256 of the files that a loaded recipe was made from;
            what is merged does not depend on it.
        card: what the recipe says for the model card; likewise.

    Raises:
        LabkitError: no terms, an unknown dtype or method, or a `rest` that is no finite number.
    """

    base: Checkpoint
    terms: Sequence[Term]
    rest: float | None = None
    dtype: str = "auto"
    method: Method = field(default=WeightedSum(), kw_only=True)
    untie: bool = field(default=False, kw_only=True)
    sha256: Mapping[str, Mapping[str, str]] = field(default_factory=dict, compare=False)
    card: CardOptions = field(default=CardOptions(), compare=False)

    def __post_init__(self) -> None:
        base: Any = self.base
        if not isinstance(base, Checkpoint):
            object.__setattr__(self, "base", Checkpoint(base))
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "method", as_method(self.method))
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
    def sources(self) -> tuple[Checkpoint | Source, ...]:
        """The base and what is added to it, in order."""
        return self.base, *(term.source for term in self.terms)

    @property
    def method_words(self) -> str:
        """The method and its parameters in a few words: `ties (density 0.2, …)`."""
        given = ", ".join(
            f"{name} {value.runs() if isinstance(value, Gradient) else value}"
            for name, value in vars(self.method).items()
        )
        return f"{self.method.name} ({given})" if given else self.method.name

    @classmethod
    def load(
        cls,
        path: str | Path,
        base: Checkpoint | str | Path | None = None,
        adapters: Sequence[Adapter | str | Path] | None = None,
    ) -> Recipe:
        """Read a recipe from a YAML file and open what it names.

        Relative folders count from the recipe's own folder.

        Args:
            path: the file.
            base: where the base is on this machine, if not where the recipe says.
            adapters: likewise the adapters, one for each term, in order.

        Raises:
            LabkitError: whatever is wrong, with its line and key.
        """
        from labkit.merging.recipe_file import load

        return load(user_path(path), base, adapters)

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, to be read from where it is written.

        A local folder is written relative to the recipe's own folder: the two can move together,
        and the names of folders above both stay out of a file that is published.
        """
        text = self.to_yaml(Path(path).parent)
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise LabkitError(
                f"cannot write the recipe {shown(path)}: {error.strerror}; choose a folder that "
                "exists and can be written"
            ) from error

    def to_yaml(self, folder: Path | None = None) -> str:
        """The recipe as YAML text.

        Args:
            folder: where the text will lie, to name local folders from there; else they are named
                absolutely.
        """
        from labkit import __version__

        content: dict[str, Any] = {
            "labkit": __version__,
            "base": self._named(self.base, folder),
            "terms": [self._written(term, folder) for term in self.terms],
            "rest": self.rest,
            "dtype": self.dtype,
        }
        if self.method != WeightedSum():
            parameters = {
                name: str(value) if isinstance(value, Gradient) else value
                for name, value in vars(self.method).items()
            }
            content["method"] = {self.method.name: parameters}
        if self.untie:
            content["untie"] = True
        card = {
            "title": self.card.title,
            "license": self.card.license,
            "language": list(self.card.language),
            "prompts": None if self.card.prompts is None else list(self.card.prompts),
        }
        if card := {key: value for key, value in card.items() if value not in (None, [])}:
            content["card"] = card
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)

    def _named(self, source: Checkpoint | Source, folder: Path | None) -> dict[str, Any]:
        reference = source.reference
        if source.repository:
            # The revision stands in a key of its own, as the commit that was read.
            _, colon, subfolder = reference.partition(":")
            reference = f"{source.repository}{colon}{subfolder}"
        elif folder is not None:
            relative = os.path.relpath(source.folder.resolve(), folder.resolve())
            # ./models/base could not be mistaken for a hub id, as models/base could.
            reference = relative if relative.startswith("..") else f"./{relative}"
        entry: dict[str, Any] = {"reference": reference}
        if source.revision:
            entry["revision"] = source.revision
        if self.sha256.get(source.reference):
            entry["sha256"] = dict(sorted(self.sha256[source.reference].items()))
        return entry

    def _written(self, term: Term, folder: Path | None) -> dict[str, Any]:
        named = self._named(term.source, folder)
        kind = term.source.kind
        entry: dict[str, Any] = {
            **({"adapter": named} if kind == "adapter" else {"source": {kind: named}}),
            "weights": _written_weights(term.weights, term.calls.get("")),
        }
        if term.weights_for:
            entry["weights_for"] = {
                pattern: _written_weights(gradient, term.calls.get(pattern))
                for pattern, gradient in term.weights_for.items()
            }
        if term.fitted is not None:
            entry["fitted"] = term.fitted.data()
        return entry

    def changed_files(self, read: Mapping[str, str]) -> list[str]:
        """Name the files that are not those whose SHA-256 the recipe holds.

        Args:
            read: path -> SHA-256 of files that were read.
        """
        return [
            f"{shown(source.name)}: {shown(name)} is not the file that the recipe was made from"
            for source in self.sources
            for name, digest in self.sha256.get(source.reference, {}).items()
            if read.get(str(source.folder / name), digest) != digest
        ]


def _written_weights(gradient: Gradient, call: Mapping[str, Any] | None) -> str | dict[str, Any]:
    """A gradient as the recipe shows it: short, and the expanded numbers beside."""
    numbers, runs = str(gradient), gradient.runs()
    # A term whose weights were replaced has a call that made other weights.
    if call is not None and as_gradient(call) == gradient:
        name, arguments = next(iter(call.items()))
        return {name: {key: _plain_data(value) for key, value in arguments.items()},
                "expanded": numbers}  # fmt: skip
    return numbers if runs == numbers else {"runs": runs, "expanded": numbers}


def _plain_data(value: Any) -> Any:
    """An argument as YAML can write it; a float without a fraction as a whole number."""
    if isinstance(value, Gradient):
        return value.runs()
    if isinstance(value, Mapping):
        return {_plain_data(key): _plain_data(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_data(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
