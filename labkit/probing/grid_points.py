"""The points of a sweep: flat mappings of names to numbers and texts, small enough to be sent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.gradients.calls import as_gradient
from labkit.gradients.gradient import Gradient

Value = float | str
Point = dict[str, Value]
Key = tuple[Value, ...]

GRADIENT, WEIGHTS, ERROR = "gradient", "weights", "error"


def grid(**axes: Any) -> list[Point]:
    """Every combination of some values: the points of a sweep, the last axis changing fastest.

        lk.grid(gradient={"early": "1x15,0x15", "late": "0x15,1x15"}, strength=(0.5, 1.0))

    Args:
        axes: name -> its values, numbers or texts; one value alone stands for itself. `gradient`
            takes gradients in a list, or by name.

    Returns:
        one mapping for each point. A gradient stands in it twice: its name as `gradient`, and its
        list as `weights` (text that `Gradient.parse` reads).

    Raises:
        LabkitError: an axis without values, or with values of another kind.
    """
    columns: list[list[Point]] = []
    for name, given in axes.items():
        if name == GRADIENT:
            columns.append(_gradients(given))
            continue
        single = isinstance(given, str) or not isinstance(given, Iterable)
        columns.append([{name: _value(name, one)} for one in ([given] if single else given)])
        if not columns[-1]:
            raise LabkitError(f"the axis {shown(name)!r} of the grid has no values")
    return [
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*columns)
    ]


def _gradients(given: Any) -> list[Point]:
    if isinstance(given, (str, Gradient)):
        given = [given]
    named = isinstance(given, Mapping)
    points: list[Point] = []
    for number, one in enumerate(given):
        weights = given[one] if named else one
        if not isinstance(weights, (str, Gradient, Sequence, Mapping)):
            raise LabkitError(
                f"gradient {number} of the grid is {shown(repr(weights))}; expected gradients, in "
                'a list or by name, such as {"late": "0x15,1x15"}'
            )
        runs = as_gradient(weights).runs()
        points.append({GRADIENT: str(one) if named else runs, WEIGHTS: runs})
    if not points:
        raise LabkitError("the axis 'gradient' of the grid has no values")
    return points


def _value(name: str, value: Any) -> Value:
    plain = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
    if isinstance(plain, str) or (
        isinstance(plain, (int, float)) and math.isfinite(plain) and abs(plain) < 2**63
    ):
        return plain
    raise LabkitError(
        f"{shown(name)!r} of a point is {shown(repr(value))}; expected a number or a text"
    )


def checked_points(given: Iterable[Mapping[str, Any]]) -> dict[Key, Point]:
    """Points by what makes each the one that it is, checked to share names and kinds of values.

    Raises:
        LabkitError: as `sweep`.
    """
    points: dict[Key, Point] = {}
    names: set[str] = set()
    kinds: dict[str, bool] = {}
    for number, one in enumerate(given):
        if not isinstance(one, Mapping):
            raise LabkitError(
                f"point {number} is {shown(repr(one))}; expected a mapping, as lk.grid makes them"
            )
        point: Point = {}
        for name, value in one.items():
            if name == GRADIENT and WEIGHTS not in one:
                point |= _gradients([value])[0]
            else:
                point[str(name)] = _value(str(name), value)
        names = names or set(point)
        if set(point) != names:
            odd = min(set(point) ^ names)
            raise LabkitError(f"point {number} and those before it do not share {shown(odd)!r}")
        for name, plain in point.items():
            if kinds.setdefault(name, isinstance(plain, str)) != isinstance(plain, str):
                raise LabkitError(
                    f"{shown(name)!r} is a text in some points and a number in others"
                )
        if key_of(point) in points:
            raise LabkitError(f"point {number}, {said(point)}, is there twice")
        points[key_of(point)] = point
    if not points or not names:
        raise LabkitError("the sweep has no points; make them with lk.grid(gradient=[…], …)")
    if ERROR in names:
        raise LabkitError(f"a point cannot have {ERROR!r}, which is a column of the table")
    return points


def key_of(point: Mapping[str, Any]) -> Key:
    """What makes a point the one that it is: a gradient's list, and not its name."""
    return tuple(point[name] for name in sorted(point) if name != GRADIENT or WEIGHTS not in point)


def said(point: Point) -> str:
    """A point as an error names it."""
    return ", ".join(f"{name} {shown(value, 60)}" for name, value in point.items())
