"""What a fitted gradient came from: the texts, what was minimised, and the held-out table.

`lk.fit` puts it into its terms, `recipe.yaml` holds it under `fitted`, and the model card shows it.
What is merged does not depend on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from labkit.errors import LabkitError, shown

MOST_ROWS = 200
ROLES = ("target", "keep")
DIGITS = 6
"""Significant digits of the numbers in a recipe: what is measured has fewer."""


@dataclass(frozen=True)
class FittedText:
    """A set of texts that a fit read.

    Attributes:
        role: "target" or "keep".
        name: its name.
        sha256: of all its passages.
        passages: how many there are.
    """

    role: str
    name: str
    sha256: str
    passages: int


@dataclass(frozen=True)
class HeldOutRow:
    """A row of the held-out table: a mean for each token, in nats, with its 95 % interval."""

    gradient: str
    text: str
    metric: str
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """What a fitted gradient came from.

    Attributes:
        said: how it compares with the constant of the same KL, in one sentence.
        strength: the weight of the KL to the base on the texts to keep.
        smooth: the weight of the differences between neighbouring layers.
        family: what the lists were chosen among.
        evaluations: how many were made.
        texts: what was read.
        held_out: what was measured.
    """

    said: str
    strength: float
    smooth: float
    family: str
    evaluations: int
    texts: tuple[FittedText, ...]
    held_out: tuple[HeldOutRow, ...]

    def data(self) -> dict[str, Any]:
        """As lists, mappings, texts and numbers, for a recipe."""
        found = {key: _short(value) for key, value in asdict(self).items()}
        for name in ("texts", "held_out"):
            found[name] = [
                {key: _short(value) for key, value in row.items()} for row in found[name]
            ]
        return found


def fitted_from(data: Any) -> Fitted:
    """Read what `Fitted.data` made.

    Raises:
        LabkitError: a key that is missing or unknown, or a value of another kind.
    """
    members = _members(data, Fitted, "fitted")
    texts = [_made(one, FittedText, "a text") for one in _rows(members.pop("texts"), "texts")]
    rows = [_made(one, HeldOutRow, "a row") for one in _rows(members.pop("held_out"), "held_out")]
    for text in texts:
        if text.role not in ROLES:
            raise LabkitError(f"the role {shown(repr(text.role))} is neither target nor keep")
        if not re.fullmatch("[0-9a-f]{64}", text.sha256):
            raise LabkitError(
                f"the sha256 of the text {shown(repr(text.name))} is no SHA-256: expected 64 "
                "hexadecimal digits"
            )
    checked = {name: _value(name, kind, members[name]) for name, kind in _kinds(Fitted).items()
               if name in members}  # fmt: skip
    return Fitted(**checked, texts=tuple(texts), held_out=tuple(rows))


def _rows(data: Any, name: str) -> Sequence[Any]:
    if not isinstance(data, list) or len(data) > MOST_ROWS:
        raise LabkitError(f"{name} is no list of at most {MOST_ROWS} entries")
    return data


def _made(data: Any, kind: type[Any], where: str) -> Any:
    members = _members(data, kind, where)
    return kind(**{name: _value(name, of, members[name]) for name, of in _kinds(kind).items()})


def _members(data: Any, kind: type[Any], where: str) -> dict[str, Any]:
    names = [one.name for one in fields(kind)]
    if not isinstance(data, Mapping) or set(data) != set(names):
        found = ", ".join(map(str, data)) if isinstance(data, Mapping) else repr(data)
        raise LabkitError(f"{where} has {shown(found)}; expected {', '.join(names)}")
    return dict(data)


def _kinds(kind: type[Any]) -> dict[str, str]:
    return {one.name: str(one.type) for one in fields(kind)}


def _value(name: str, kind: str, value: Any) -> Any:
    if kind == "str" and isinstance(value, (str, int, float)):
        return str(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and (kind == "float" or value == int(value)):
        return float(value) if kind == "float" else int(value)
    expected = {"str": "text", "float": "a finite number", "int": "a whole number"}[kind]
    raise LabkitError(f"{name} is {shown(repr(value))}; expected {expected}")


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
