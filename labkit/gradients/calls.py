"""The call that makes a gradient, as data: `{"ramp": {"layers": 40, "start": 18, "stop": 20}}`.

A call in a recipe says what a list of numbers does not: how the list was made. Only the calls below
exist, and only with numbers and names as arguments; nothing is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import MOST_LAYERS, Gradient
from labkit.gradients.presets import preset


def _whole(value: Any) -> int:
    text = str(value).strip()
    digits = text.removeprefix("-")
    if isinstance(value, bool) or not (digits.isascii() and digits.isdecimal() and len(text) < 9):
        raise LabkitError(f"is {shown(repr(value))}; expected a whole number")
    return int(text)


def _number(value: Any) -> float:
    try:
        return Gradient.parse(str(value), 1)[0]
    except LabkitError:
        raise LabkitError(f"is {shown(repr(value))}; expected a number") from None


def _anchors(value: Any) -> list[float] | dict[float, float]:
    if isinstance(value, Mapping):
        return {_number(depth): _number(weight) for depth, weight in value.items()}
    return list(as_gradient(value))


def _resampled(weights: Gradient, layers: int) -> Gradient:
    return weights.resample(layers)


def as_gradient(weights: Gradient | str | Sequence[float] | Mapping[str, Any]) -> Gradient:
    """Take a gradient as it is, a list as text, a list of numbers, or a call as data."""
    if isinstance(weights, Gradient):
        return weights
    if isinstance(weights, Mapping):
        return gradient_of_call(weights)
    return Gradient.parse(weights) if isinstance(weights, str) else Gradient(weights)


Reader = Callable[[Any], Any]
_LEVELS: dict[str, Reader] = {"first": _number, "last": _number}
_CURVE: dict[str, Reader] = {
    "center": _number, "width": _number, "low": _number, "high": _number
}  # fmt: skip
# Name -> the function, the arguments that it needs, and those it can do without.
CALLS: dict[str, tuple[Callable[..., Gradient], dict[str, Reader], dict[str, Reader]]] = {
    "constant": (Gradient.constant, {}, {"weight": _number}),
    "ramp": (Gradient.ramp, {"start": _whole, "stop": _whole}, _LEVELS),
    "step": (Gradient.step, {"at": _whole}, _LEVELS),
    "bell": (Gradient.bell, {}, _CURVE),
    "valley": (Gradient.valley, {}, _CURVE),
    "anchors": (Gradient.from_anchors, {"anchors": _anchors}, {}),
    "preset": (preset, {"name": str}, {}),
    "resample": (_resampled, {"weights": as_gradient}, {}),
}


def gradient_of_call(call: Mapping[str, Any]) -> Gradient:
    """Make the gradient that a call describes.

    Args:
        call: the name of one of `CALLS` and its arguments, `layers` always among them.

    Raises:
        LabkitError: an unknown name, a missing or unknown argument, one of the wrong kind, or one
            that the call itself refuses.
    """
    if len(call) != 1:
        raise LabkitError(
            f"weights are made by one call, found {shown(', '.join(map(str, call)) or 'none')}; "
            f"expected one of {', '.join(CALLS)}"
        )
    name, given = next(iter(call.items()))
    if name not in CALLS:
        raise LabkitError(
            f"no call {shown(name)!r} makes weights; expected one of {', '.join(CALLS)}"
        )
    if not isinstance(given, Mapping):
        raise LabkitError(f"{name} is {shown(repr(given))}; expected its arguments by name")
    function, needed, possible = CALLS[name]
    needed = {"layers": _whole, **needed}
    for argument in needed:
        if argument not in given:
            raise LabkitError(f"{name} has no {argument}; it needs {', '.join(needed)}")
    readers = needed | possible
    arguments = {}
    for argument, value in given.items():
        if argument not in readers:
            raise LabkitError(
                f"{name} has the unknown argument {shown(argument)!r}; known are "
                f"{', '.join(readers)}"
            )
        try:
            arguments[argument] = readers[argument](value)
        except LabkitError as error:
            raise LabkitError(f"{name}: {argument} {error}") from error
    if not 1 <= arguments["layers"] <= MOST_LAYERS:
        raise LabkitError(f"{name}: layers is {arguments['layers']}; expected 1 to {MOST_LAYERS}")
    return function(**arguments)
