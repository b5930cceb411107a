"""The methods of merging, one file each. `METHODS` is the registry: a line makes a method known.

`labkit.merging.formula` says what a method is.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.merging.formula import Method
from labkit.merging.methods.dare import Dare
from labkit.merging.methods.della import Della
from labkit.merging.methods.linear import Linear
from labkit.merging.methods.slerp import Slerp
from labkit.merging.methods.ties import Ties
from labkit.merging.methods.weighted_sum import WeightedSum

METHODS: dict[str, type[Method]] = {
    WeightedSum.name: WeightedSum,
    Linear.name: Linear,
    Slerp.name: Slerp,
    Ties.name: Ties,
    Dare.name: Dare,
    Della.name: Della,
}
"""What a recipe calls a method -> the method."""


def as_method(given: Any) -> Method:
    """A method as it is given: itself, its name, or its name with parameters.

    Args:
        given: a method, `"ties"`, or `{"ties": {"density": 0.2}}`.

    Raises:
        LabkitError: no such method or parameter, or a parameter that makes no sense.
    """
    name = given
    parameters: Mapping[str, Any] = {}
    if isinstance(given, Mapping):
        if len(given) != 1:
            raise LabkitError(f"names {len(given)} methods; expected one, with its parameters")
        name, parameters = next(iter(given.items()))
    elif hasattr(given, "combine"):
        return given  # type: ignore[no-any-return]
    if not isinstance(name, str) or name not in METHODS:
        raise LabkitError(
            f"{shown(str(name))!r} is no method of merging; known are {', '.join(METHODS)}"
        )
    known = parameters_of(name)
    for parameter in parameters:
        if parameter not in known:
            raise LabkitError(
                f"{shown(parameter)!r} is no parameter of the method {name}; known are "
                f"{', '.join(known) or 'none'}"
            )
    return METHODS[name](**parameters)


def parameters_of(name: str) -> tuple[str, ...]:
    """The names of a method's parameters."""
    known: Any = METHODS[name]
    return tuple(field.name for field in fields(known))
