"""The layer weights of a term as a matrix: a row for each kind of module, a column for each layer.

The matrix and the patterns of `Term.weights_for` say the same: `weights_by_kind` reads the matrix
of a term, and `patterns_of` writes a matrix as few, short patterns.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.merging.recipe import Term, pattern_matches
from labkit.models.checkpoint import Checkpoint
from labkit.models.names import NUMBER, split_layer

ONE_MODULE = re.compile(r"(^|\.)\d+(\.|$)|[*?\[]")
"""What a pattern has that can select some modules of a kind and not others: a number, or a star."""


@dataclass(frozen=True)
class ModuleKind:
    """The modules that have one name in every layer.

    Attributes:
        name: the shortest pattern that selects these modules and no others: `q_proj`.
        path: their name in a layer, a number of an expert as `*`: `self_attn.q_proj`.
        modules: their whole names, and the layer of each.
    """

    name: str
    path: str
    modules: tuple[tuple[str, int], ...]

    @property
    def layers(self) -> set[int]:
        """The layers that have such a module."""
        return {layer for _, layer in self.modules}


def module_kinds(base: Checkpoint, term: Term) -> tuple[ModuleKind, ...]:
    """The kinds of modules that a term changes in the layers, in the order of its source.

    The experts of a layer are one kind, unless the term gives them different weights.
    """
    paths: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, layer in _modules(base, term):
        paths[NUMBER.sub("*", split_layer(name)[2])].append((name, layer))
    groups: dict[str, list[tuple[str, int]]] = {}
    for path, modules in paths.items():
        if _is_one_row(term, modules):
            groups[path] = modules
            continue
        for name, layer in modules:
            groups.setdefault(split_layer(name)[2], []).append((name, layer))
    return tuple(
        ModuleKind(_shortest_name(path, groups), path, tuple(modules))
        for path, modules in groups.items()
    )


def weights_by_kind(term: Term, kinds: Sequence[ModuleKind]) -> dict[str, Gradient]:
    """What each kind of module gets in each layer, by the kind's name."""
    rows = {}
    for kind in kinds:
        weights = list(term.gradient_for(kind.modules[0][0]))
        if any(map(ONE_MODULE.search, term.weights_for)):
            for name, layer in kind.modules:
                weights[layer] = term.gradient_for(name)[layer]
        rows[kind.name] = Gradient(weights)
    return rows


def patterns_of(
    kinds: Sequence[ModuleKind], rows: Mapping[str, Gradient], general: Gradient
) -> tuple[Gradient, dict[str, Gradient]]:
    """Write a matrix as the weights of all modules, and patterns for those that differ.

    Args:
        kinds: as `module_kinds` gave them.
        rows: a gradient for each kind, by its name.
        general: the weights of all modules so far. They stay while a row is equal to them; else
            those that most kinds have take their place.

    Returns:
        `weights` and `weights_for` of a term with these rows. Kinds of equal rows are written
        together where a part of their names, such as `self_attn`, selects them.

    Raises:
        LabkitError: rows for other kinds than `kinds`.
    """
    if set(rows) != {kind.name for kind in kinds}:
        raise LabkitError(
            f"the matrix has rows for {', '.join(map(shown, rows))}; expected one for each of "
            f"{', '.join(shown(kind.name) for kind in kinds)}"
        )
    groups: dict[Gradient, list[ModuleKind]] = defaultdict(list)
    for kind in kinds:
        groups[rows[kind.name]].append(kind)
    # The largest first: a later pattern can take some modules out of what an earlier one selects.
    ordered = sorted(groups, key=lambda gradient: -len(groups[gradient]))
    if general not in groups:
        general = ordered[0]
    ordered.remove(general)
    weights_for: dict[str, Gradient] = {}
    written = list(groups[general])
    for gradient in ordered:
        for pattern in _covering(groups[gradient], written, kinds):
            weights_for[pattern] = gradient
        written += groups[gradient]
    # Where a kind's whole name is also the end of a longer one (`norm`, `mixer.norm`), the longer
    # one is written behind it, so that it counts.
    for kind in sorted(kinds, key=lambda one: one.path.count(".")):
        chosen = {"": general, **weights_for}[_last_selecting(weights_for, kind)]
        if chosen != rows[kind.name]:
            weights_for.pop(kind.name, None)
            weights_for[kind.name] = rows[kind.name]
    return general, weights_for


def gradients_in_force(term: Term) -> dict[str, Gradient]:
    """The gradients of a term that count for some module, by their patterns; "" is for all others.

    Where each module has a gradient of its own, the weights of all others count nowhere.
    """
    patterns = {term.pattern_for(part.name) for part in term.source.parts}
    return {
        pattern: gradient
        for pattern, gradient in {"": term.weights, **term.weights_for}.items()
        if pattern in patterns
    }


def mean_weight(base: Checkpoint, term: Term, first: int = 0, last: int | None = None) -> float:
    """The mean of what the modules of some layers get, those with gradients of their own too.

    Args:
        base: the base model.
        term: a term of a recipe.
        first: the first layer.
        last: the last layer; that of the model if left out.
    """
    last = len(term.weights) - 1 if last is None else last
    weights = [
        term.gradient_for(name)[layer]
        for name, layer in (_modules(base, term) if term.weights_for else ())
        if first <= layer <= last
    ]
    if not weights:
        return Gradient(term.weights[first : last + 1]).mean
    return math.fsum(weights) / len(weights)


def _modules(base: Checkpoint, term: Term) -> list[tuple[str, int]]:
    """The modules in the layers that a merge changes, and their layers."""
    found = {
        part.name: base.layer_of(part.name)
        for part in term.source.parts
        if term.source.why_skipped(part, base) is None
    }
    return [(name, layer) for name, layer in found.items() if layer is not None]


def _is_one_row(term: Term, modules: Sequence[tuple[str, int]]) -> bool:
    """Whether all modules of a layer get the same weight."""
    if not any(map(ONE_MODULE.search, term.weights_for)):
        return True
    weights: dict[int, float] = {}
    return all(
        weights.setdefault(layer, term.gradient_for(name)[layer]) == term.gradient_for(name)[layer]
        for name, layer in modules
    )


def _shortest_name(path: str, groups: Mapping[str, Sequence[tuple[str, int]]]) -> str:
    """The shortest end of a path that selects none of the other modules."""
    parts = path.split(".")
    others = [modules[0][0] for other, modules in groups.items() if other != path]
    for count in range(1, len(parts)):
        name = ".".join(parts[-count:])
        begins_with_word = not parts[-count].isdigit() and parts[-count] != "*"
        if begins_with_word and not any(pattern_matches(name, other) for other in others):
            return name
    return path


def _covering(
    group: Sequence[ModuleKind], written: Sequence[ModuleKind], kinds: Sequence[ModuleKind]
) -> list[str]:
    """Few, short patterns that select a group of kinds, and none of those written already."""
    left = list(group)
    parts = {part for kind in kinds for part in kind.path.split(".")}
    # A number would select the layer of that number, too.
    words = sorted(part for part in parts if part != "*" and not part.isdigit())
    patterns: list[str] = []
    while left:
        names = [kind.name for kind in left]
        allowed = [
            pattern
            for pattern in (*names, *words)
            if any(_selects(pattern, kind) for kind in left)
            and not any(_selects(pattern, kind) for kind in written)
        ] or names[:1]
        # Of one kind alone its name says more than that of its block.
        best = max(
            allowed,
            key=lambda one: (sum(_selects(one, kind) for kind in left), one in names, -len(one)),
        )
        patterns.append(best)
        left = [kind for kind in left if kind.name != best and not _selects(best, kind)]
    return patterns


def _selects(pattern: str, kind: ModuleKind) -> bool:
    """Whether a pattern selects a kind; one of parts of paths selects all of it or nothing."""
    return pattern_matches(pattern, kind.modules[0][0])


def _last_selecting(patterns: Iterable[str], kind: ModuleKind) -> str:
    """The last pattern that selects a kind; "" where none does."""
    return next((one for one in reversed([*patterns]) if _selects(one, kind)), "")
