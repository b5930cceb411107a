"""Checks a method's parameters as a recipe or a caller gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.gradients.calls import as_gradient
from labkit.gradients.gradient import Gradient

SEEDS = 1 << 63
"""A seed is below this."""


def as_number(name: str, given: Any) -> float:
    """A parameter as a number.

    Raises:
        LabkitError: it is no finite number.
    """
    try:
        # A recipe gives text where it has a spelling of its own, such as 0.20.
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise LabkitError(f"{name} is {shown(repr(given))}; expected a finite number")
    return number


def as_share(name: str, given: Any) -> float:
    """A parameter as a share.

    Raises:
        LabkitError: it is no number above 0 and at most 1.
    """
    number = as_number(name, given)
    if not 0 < number <= 1:
        raise LabkitError(f"{name} is {shown(repr(given))}; expected a share above 0 and at most 1")
    return number


def as_shares(name: str, given: Any) -> float | Gradient:
    """A parameter as a share for all layers, or a gradient with a share for each.

    Args:
        name: the parameter's name.
        given: a number, or what makes a gradient: a list, a list as text, a call as data.

    Raises:
        LabkitError: it is neither, or one is not above 0 and at most 1.
    """
    is_list = isinstance(given, (Gradient, list, tuple, Mapping))
    if not is_list and not (isinstance(given, str) and set(",x(") & set(given)):
        return as_share(name, given)
    try:
        shares = as_gradient(given)
    except LabkitError as error:
        raise LabkitError(f"{name}: {error}") from error
    for layer, share in enumerate(shares):
        as_share(f"{name} in layer {layer}", share)
    return shares


def share_at(shares: float | Gradient, layer: int | None) -> float:
    """The share that counts in a layer; outside the layers the first one does, as in mergekit."""
    return shares[layer or 0] if isinstance(shares, Gradient) else shares


def as_seed(given: Any) -> int:
    """A parameter as a seed.

    Raises:
        LabkitError: it is no whole number from 0 on.
    """
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < SEEDS:
        raise LabkitError(f"seed is {shown(repr(given))}; expected a whole number from 0 on")
    return given
