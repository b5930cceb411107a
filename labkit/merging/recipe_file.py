"""Reads `recipe.yaml`: checks everything, and names line and key of what is wrong.

The file is read as a tree of texts with their lines (`yaml.compose`), never as Python objects, so
that YAML's guesses do no harm: `0x4` is four layers of weight 0 here, not the number 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.files.references import Opened
from labkit.files.small_files import read_text
from labkit.gradients.calls import CALLS, as_gradient
from labkit.gradients.gradient import Gradient
from labkit.merging.fitted import fitted_from
from labkit.merging.formula import Method
from labkit.merging.methods import METHODS, as_method, parameters_of
from labkit.merging.methods.weighted_sum import WeightedSum
from labkit.merging.recipe import CardOptions, Recipe, Term
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import FullModel
from labkit.models.source import Source

LONGEST = 300_000
"""Characters of a recipe. PyYAML reads as many in a second."""
MOST_EVENTS = 20_000
"""Texts, lists and mappings in a recipe, likewise."""
DEEPEST = 40
"""Lists and mappings in each other: PyYAML takes ever longer with each."""
MOST_TERMS = 100

EMPTY = ("", "~", "null", "Null", "NULL")
"""What YAML reads as nothing."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry:
    """A place in a recipe.

    Attributes:
        node: the YAML node.
        file: the file's name, for errors.
        key: its key: `terms[0].weights`.
        hint: what else to say of an unknown key.
    """

    node: yaml.Node
    file: str
    key: str = ""
    hint: str = ""

    def error(self, message: str) -> LabkitError:
        """An error that names line and key."""
        line = self.node.start_mark.line + 1
        return LabkitError(f"{self.file}, line {line}{self.key and f', {self.key}'}: {message}")

    def attempt(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Call a function; to its errors add line and key."""
        try:
            return function(*arguments)
        except LabkitError as error:
            raise self.error(str(error)) from error

    @property
    def empty(self) -> bool:
        """Whether it holds nothing."""
        return (
            isinstance(self.node, yaml.ScalarNode)
            and not self.node.style
            and self.node.value in EMPTY
        )

    def text(self, expected: str) -> str:
        """Its text, as it is written."""
        if not isinstance(self.node, yaml.ScalarNode) or self.empty:
            raise self.error(f"is {self._kind()}; expected {expected}")
        return str(self.node.value)

    def items(self, expected: str) -> list[Entry]:
        """Its members, if it is a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error(f"is {self._kind()}; expected {expected}")
        return [
            Entry(node, self.file, f"{self.key}[{index}]", self.hint)
            for index, node in enumerate(self.node.value)
        ]

    def members(self, expected: str, known: Sequence[str] | None = None) -> dict[str, Entry]:
        """Its members, if it is a mapping; each key known, none twice."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"is {self._kind()}; expected {expected}")
        found: dict[str, Entry] = {}
        for key_node, node in self.node.value:
            name = Entry(key_node, self.file, self.key).text("a key of plain text")
            key = f"{self.key}.{shown(name)}" if self.key else shown(name)
            entry = Entry(node, self.file, key, self.hint)
            here = Entry(key_node, self.file, key)
            if name in found:
                raise here.error("stands here for the second time; remove one of the two")
            if known is not None and name not in known:
                raise here.error(f"is an unknown key; known are {', '.join(known)}{self.hint}")
            found[name] = entry
        return found

    def data(self) -> Any:
        """Itself as lists, mappings and texts."""
        if isinstance(self.node, yaml.SequenceNode):
            return [entry.data() for entry in self.items("a list")]
        if isinstance(self.node, yaml.MappingNode):
            return {name: entry.data() for name, entry in self.members("a mapping").items()}
        return _number_or_text(self.text("a number or text"))

    def _kind(self) -> str:
        if isinstance(self.node, yaml.SequenceNode):
            return "a list"
        if isinstance(self.node, yaml.MappingNode):
            return "a mapping"
        return "empty" if self.empty else shown(repr(self.node.value))


class _Loader(yaml.SafeLoader):
    """Makes the tree of a YAML text, and refuses what a recipe has no use for as it comes."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self.file = file
        self.events = self.depth = 0

    def get_event(self) -> Any:
        """The next event, checked."""
        event = super().get_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1 if event.start_mark else 1
        where = f"{self.file}, line {line}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise LabkitError(
                f"{where}: anchors (&) and aliases (*) are not read, since a few of them can stand "
                "for endless text; write the value out"
            )
        if tag := getattr(event, "tag", None):
            raise LabkitError(
                f"{where}: the tag {shown(tag)!r} is not read, since tags make objects of a "
                "program; write plain text, numbers, lists and mappings"
            )
        self.events += 1
        self.depth += isinstance(event, yaml.CollectionStartEvent)
        self.depth -= isinstance(event, yaml.CollectionEndEvent)
        if self.events > MOST_EVENTS or self.depth > DEEPEST:
            raise LabkitError(
                f"{self.file} is not YAML: up to line {line} it holds more than {MOST_EVENTS} "
                f"values, or {DEEPEST} lists and mappings in each other, which no recipe needs"
            )
        return event


def compose(text: str, file: str) -> Entry:
    """Parse YAML into a tree that knows its lines.

    Raises:
        LabkitError: not YAML, empty, or with anchors, aliases or tags, which a recipe has no use
            for: an alias can make a small file mean a huge one, and a tag can name a program's
            object.
    """
    if len(text) > LONGEST:
        raise LabkitError(f"{file} has {len(text)} characters; expected {LONGEST} at most")
    try:
        node = _Loader(text, file).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise LabkitError(f"{file}, line {line}: not YAML: {shown(error.problem)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LabkitError(f"{file} is not YAML: {shown(error)}") from error
    if node is None:
        raise LabkitError(f"{file} is empty; expected a recipe")
    return Entry(node, file)


def load(
    path: Path,
    base: Checkpoint | str | Path | None = None,
    adapters: Sequence[Adapter | str | Path] | None = None,
) -> Recipe:
    """Read a recipe and open what it names; see `Recipe.load`."""
    root = compose(read_text(path, "recipe"), shown(path))
    known = ("labkit", "base", "terms", "rest", "dtype", "method", "untie", "card")
    keys = f"{', '.join(known[:-1])} and {known[-1]}"
    root = replace(root, hint=_hint(root.members(keys).get("labkit")))
    entries = root.members(keys, known)
    for needed in ("base", "terms"):
        if needed not in entries:
            raise root.error(f"the recipe has no {needed}")
    sha256: dict[str, dict[str, str]] = {}
    opened = _open(entries["base"], Checkpoint, path.parent, base, sha256)
    terms = entries["terms"].items("a list of terms, each with adapter and weights")
    if len(terms) > MOST_TERMS:
        raise entries["terms"].error(f"has {len(terms)} terms; expected {MOST_TERMS} at most")
    if adapters is not None and len(adapters) != len(terms):
        raise entries["terms"].error(
            f"the recipe has {len(terms)} terms, and {len(adapters)} adapters were named to take "
            "their places; name one for each"
        )
    places: Sequence[Any] = adapters or [None] * len(terms)
    made = [
        _term(term, path.parent, opened.layers, place, sha256)
        for term, place in zip(terms, places, strict=True)
    ]
    rest = _rest(entries.get("rest"))
    dtype = entries.get("dtype")
    recipe = (dtype or root).attempt(
        lambda: Recipe(opened, made, rest, dtype.text("a dtype") if dtype else "auto")
    )
    return replace(
        recipe,
        method=_method(entries.get("method")),
        untie=_truth(entries.get("untie")),
        sha256=sha256,
        card=_card(entries.get("card")),
    )


def _hint(version: Entry | None) -> str:
    """What to say of an unknown key in a recipe of a later version."""
    from labkit import __version__

    if version is None:
        return ""
    text = version.text("the version of labkit that wrote it")
    parts = re.match(r"(\d{1,6})\.(\d{1,6})", text)
    if not parts:
        raise version.error(f"{shown(text)!r} is no version of labkit; expected one as 0.1.0")
    # A recipe of a later labkit is read where this one knows all that it says.
    later = tuple(map(int, parts.groups())) > tuple(map(int, __version__.split(".")[:2]))
    hint = f"; it was written by labkit {shown(text)}, and this is {__version__}: update labkit"
    return hint if later else ""


Kind = TypeVar("Kind", bound=Opened)
SOURCES: dict[str, type[Source]] = {"adapter": Adapter, "model": FullModel}
"""What a term can add, by its key in a recipe."""


def _open(
    entry: Entry,
    kind: type[Kind],
    folder: Path,
    place: Any,
    sha256: dict[str, dict[str, str]],
) -> Kind:
    """Open what an entry names, or what takes its place; note its files' SHA-256."""
    reference, hashes = entry, {}
    if not isinstance(entry.node, yaml.ScalarNode):
        members = entry.members(
            "a folder or hub id, or reference, revision and sha256",
            ("reference", "revision", "sha256"),
        )
        if "reference" not in members:
            raise entry.error("has no reference; expected a folder or a hub id")
        reference = members["reference"]
        hashes = _hashes(members.get("sha256"))
    text = reference.text("a folder or a hub id")
    if place is not None:
        source = place if isinstance(place, kind) else kind(place)
    else:
        here = reference.attempt(user_path, text, folder)
        if here.is_dir():
            text = str(here.resolve())
        elif reference is not entry and "revision" in members and "@" not in text:
            revision = members["revision"].text("a revision")
            repository, colon, subfolder = text.partition(":")
            text = f"{repository}@{revision}{colon}{subfolder}"
        source = reference.attempt(kind, text)
    if hashes:
        sha256[source.reference] = hashes
    return source


def _hashes(entry: Entry | None) -> dict[str, str]:
    hashes = {}
    if entry is not None and not entry.empty:
        for name, digest in entry.members("a mapping of file name to SHA-256").items():
            text = digest.text("a SHA-256").lower()
            if not re.fullmatch(r"[0-9a-f]{64}", text):
                raise digest.error(f"is {shown(repr(text))}; expected a SHA-256 of 64 digits")
            if Path(name).name != name:
                raise digest.error("is not the name of a file in the source's own folder")
            hashes[name] = text
    return hashes


def _term(
    entry: Entry, folder: Path, layers: int, place: Any, sha256: dict[str, dict[str, str]]
) -> Term:
    known = ("adapter", "source", "weights", "weights_for", "fitted")
    members = entry.members("adapter (or source) and weights", known)
    if "weights" not in members:
        raise entry.error("has no weights")
    kind, named = named_source(entry, members)
    source = _open(named, SOURCES[kind], folder, place, sha256)
    entries = {"": members["weights"]}
    if "weights_for" in members and not members["weights_for"].empty:
        entries |= members["weights_for"].members("a mapping of module pattern to weights")
    gradients: dict[str, Gradient] = {}
    calls: dict[str, Any] = {}
    for pattern, weights in entries.items():
        gradients[pattern], call = _weights(weights)
        weights.attempt(gradients[pattern].require, layers)
        if call is not None:
            calls[pattern] = call
    said = members.get("fitted")
    fitted = said.attempt(fitted_from, said.data()) if said and not said.empty else None
    return Term(source, gradients.pop(""), gradients, calls, fitted)


def named_source(term: Entry, members: dict[str, Entry]) -> tuple[str, Entry]:
    """What a term adds, `adapter: …` or `source: {model: …}`: its kind, and where it is named.

    Args:
        term: the term.
        members: its members.
    """
    if ("adapter" in members) == ("source" in members):
        both = "adapter" in members
        raise term.error(
            f"has {'both adapter and source' if both else 'no adapter'}; expected adapter: …, or "
            "source: {model: …} for a full model"
        )
    if "adapter" in members:
        return "adapter", members["adapter"]
    of_source = members["source"].members("one of adapter and model", tuple(SOURCES))
    if len(of_source) != 1:
        raise members["source"].error("expected one of adapter and model")
    return of_source.popitem()


def _weights(entry: Entry) -> tuple[Gradient, dict[str, Any] | None]:
    """Read weights: a list, runs, or the call that made them, with the expanded numbers beside."""
    expected = "a list of weights, runs such as 0x19,0.5,1x20, or the call that makes them"
    if isinstance(entry.node, yaml.SequenceNode):
        words = [item.text("a weight or a run") for item in entry.items(expected)]
        return entry.attempt(Gradient.parse, ",".join(words)), None
    if not isinstance(entry.node, yaml.MappingNode):
        return entry.attempt(Gradient.parse, entry.text(expected)), None
    members = entry.members(expected, ("runs", *CALLS, "expanded"))
    expanded = members.pop("expanded", None)
    if len(members) != 1:
        raise entry.error(f"holds {' and '.join(members) or 'nothing'}; expected {expected}")
    name, said = members.popitem()
    call = None if name == "runs" else {name: said.data()}
    gradient = _weights(said)[0] if call is None else said.attempt(as_gradient, call)
    if expanded is not None:
        numbers, _ = _weights(expanded)
        if numbers != gradient:
            raise expanded.error(
                f"differs from what {name} makes, {shown(gradient.runs())}; correct one of the two"
            )
    return gradient, call


def _rest(entry: Entry | None) -> float | None:
    if entry is None or entry.empty:
        return None
    try:
        return Gradient.parse(entry.text("a number or nothing"), 1)[0]
    except LabkitError:
        raise entry.error("is not a finite number; expected a number or nothing") from None


def _method(entry: Entry | None) -> Method:
    """Read `method: NAME`, or `method: {NAME: {PARAMETER: VALUE}}`."""
    if entry is None or entry.empty:
        return WeightedSum()
    parameters: dict[str, Any] = {}
    if isinstance(entry.node, yaml.MappingNode):
        members = entry.members("one method and its parameters", tuple(METHODS))
        if len(members) != 1:
            raise entry.error(f"names {len(members)} methods; expected one, with its parameters")
        name, given = members.popitem()
        if not given.empty:
            members = given.members(f"the parameters of {name}", parameters_of(name))
            parameters = {key: value.data() for key, value in members.items()}
    else:
        name = entry.text("the name of a method")
    return entry.attempt(as_method, {name: parameters})


def _truth(entry: Entry | None) -> bool:
    text = "false" if entry is None or entry.empty else entry.text("true or false").lower()
    if entry is not None and text not in ("true", "false"):
        raise entry.error(f"is {shown(repr(text))}; expected true or false")
    return text == "true"


def _card(entry: Entry | None) -> CardOptions:
    if entry is None or entry.empty:
        return CardOptions()
    members = entry.members(
        "title, license, language and prompts", ("title", "license", "language", "prompts")
    )
    given: dict[str, Any] = {
        name: members[name].text("text") for name in ("title", "license") if name in members
    }
    for name in ("language", "prompts"):
        if name in members:
            given[name] = tuple(item.text("text") for item in members[name].items("a list"))
    return entry.attempt(lambda: CardOptions(**given))


def _number_or_text(text: str) -> int | float | str:
    # Only so that a recipe which is written again looks as it did.
    for kind in (int, float):
        try:
            number: int | float = kind(text)
        except ValueError:
            continue
        if str(number) == text:
            return number
    return text
