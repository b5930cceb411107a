"""Weights in one text: lists, numbers, calls and presets."""

import pytest

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.gradients.presets import preset
from labkit.gradients.worded import gradient_of_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", Gradient([0.5] * 40)),
        ("1x", None),
        ("0x19,0.5,1x20", Gradient.ramp(40, 18, 20)),
        ("ramp(18,20)", Gradient.ramp(40, 18, 20)),
        (" ramp( 18, 20, last=0.8 ) ", Gradient.ramp(40, 18, 20, last=0.8)),
        ("step(20, 1, 0)", Gradient.step(40, 20, 1, 0)),
        ("constant(0.25)", Gradient.constant(40, 0.25)),
        ("bell()", Gradient.bell(40)),
        ("valley(low=0.2)", Gradient.valley(40, low=0.2)),
        ("OUTALL", preset("OUTALL", 40)),
        ("half and half (SuperCOT)", Gradient.ramp(40, 18, 20)),
        ("0,0.5,1", Gradient([0, 0.5, 1])),
    ],
)
def test_what_can_be_written(text, expected):
    if expected is None:
        with pytest.raises(LabkitError, match="is not a run"):
            gradient_of_text(text, 40)
    else:
        assert gradient_of_text(text, 40) == expected


def test_what_cannot():
    for text, said in (
        ("romp(1,2)", "no call 'romp' makes weights; expected one of constant, ramp, step, bell,"),
        ("OUTFALL", "'OUTFALL' are no list, no number and no call, and no preset has that name;"),
        ("ramp(18)", "ramp has no stop; it needs layers, start, stop"),
        ("ramp(18,x)", "ramp: stop is 'x'; expected a whole number"),
        ("ramp(18,20,0,1,2)", "ramp takes at most start, stop, first, last; found 18,20,0,1,2"),
        ("ramp(18,20,middle=1)", "ramp has the unknown argument 'middle'"),
        ("ramp(18,60)", "60"),
        ("nan", "is not a finite number"),
    ):
        with pytest.raises(LabkitError, match=said.replace("(", r"\(").replace(")", r"\)")):
            gradient_of_text(text, 40)
