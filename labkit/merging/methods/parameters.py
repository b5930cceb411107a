"""Checks a method's parameters as a recipe or a caller gives them."""

from __future__ import annotations

import math
from typing import Any

from labkit.errors import LabkitError, shown


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
