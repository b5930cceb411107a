"""Layer weights as a person writes them where the number of layers is known: in one text."""

from __future__ import annotations

import re

from labkit.errors import LabkitError, shown
from labkit.gradients.calls import CALLS, gradient_of_call
from labkit.gradients.gradient import Gradient
from labkit.gradients.presets import BLOCK_PRESETS, SHAPES, parse_presets, preset

SHORT_CALLS = ("constant", "ramp", "step", "bell", "valley")


def gradient_of_text(text: str, layers: int) -> Gradient:
    """Read a list, one number for all layers, a call such as `ramp(18,20)`, or a preset's name.

    A list keeps its own length, whatever `layers` is. The arguments of a call are those of the
    functions of `Gradient` but the number of layers, in their order or by name: `bell(low=0.2)`.

    Args:
        text: what to read.
        layers: the model's number of layers.

    Raises:
        LabkitError: a text that is none of these, or arguments that the call refuses.
    """
    text = text.strip()
    if text in SHAPES or text in parse_presets(BLOCK_PRESETS):
        return preset(text, layers)
    call = re.fullmatch(r"(\w+)\s*\(([^()]*)\)", text)
    if call:
        return _called(call[1], call[2], layers)
    if re.match(r"[A-Za-z]", text) and text.lower() not in ("nan", "inf", "infinity"):
        raise LabkitError(
            f"the weights {shown(text)!r} are no list, no number and no call, and no preset has "
            f"that name; there are {', '.join((*parse_presets(BLOCK_PRESETS), *SHAPES))}"
        )
    gradient = Gradient.parse(text)
    return Gradient.constant(layers, gradient[0]) if len(gradient) == 1 else gradient


def _called(name: str, inside: str, layers: int) -> Gradient:
    if name not in SHORT_CALLS:
        raise LabkitError(
            f"no call {shown(name)!r} makes weights; expected one of {', '.join(SHORT_CALLS)}"
        )
    _, needed, possible = CALLS[name]
    names = [*needed, *possible]
    given: dict[str, str | int] = {"layers": layers}
    for number, part in enumerate(part.strip() for part in inside.split(",") if part.strip()):
        argument, equals, value = part.partition("=")
        if not equals:
            if number >= len(names):
                raise LabkitError(f"{name} takes at most {', '.join(names)}; found {shown(inside)}")
            argument, value = names[number], part
        given[argument.strip()] = value.strip()
    return gradient_of_call({name: given})
