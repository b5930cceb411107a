"""Shapes and presets of blocks: the exact numbers that each name stands for."""

from __future__ import annotations

import re

import pytest

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.gradients.presets import BLOCK_PRESETS, SHAPES, parse_presets, preset
from labkit.widgets.editor import GradientEditor

# The rising half of a normal curve over 30 and over 40 layers, computed apart from labkit:
# round(exp(-((l - (L - 1) / 2) / (L / 6)) ** 2 / 2), 2)
RISE_30 = "0.01,0.03,0.04,0.07,0.11,0.16,0.24,0.32,0.43,0.55,0.67,0.78,0.88,0.96,1"
RISE_40 = "0.01,0.02,0.03,0.05,0.07,0.09,0.13,0.17,0.23,0.29,0.36,0.44,0.53,0.62,0.71,0.8,0.87,\
0.93,0.98,1"
FALL_30 = "0.99,0.97,0.96,0.93,0.89,0.84,0.76,0.68,0.57,0.45,0.33,0.22,0.12,0.04,0"
FALL_40 = "0.99,0.98,0.97,0.95,0.93,0.91,0.87,0.83,0.77,0.71,0.64,0.56,0.47,0.38,0.29,0.2,0.13,\
0.07,0.02,0"
# round(l / (L - 1), 2)
RAMP_30 = "0,0.03,0.07,0.1,0.14,0.17,0.21,0.24,0.28,0.31,0.34,0.38,0.41,0.45,0.48,0.52,0.55,0.59,\
0.62,0.66,0.69,0.72,0.76,0.79,0.83,0.86,0.9,0.93,0.97,1"
RAMP_40 = "0,0.03,0.05,0.08,0.1,0.13,0.15,0.18,0.21,0.23,0.26,0.28,0.31,0.33,0.36,0.38,0.41,0.44,\
0.46,0.49,0.51,0.54,0.56,0.59,0.62,0.64,0.67,0.69,0.72,0.74,0.77,0.79,0.82,0.85,0.87,0.9,0.92,0.95,\
0.97,1"


def mirrored(half: str) -> str:
    return ",".join([*half.split(","), *half.split(",")[::-1]])


def backwards(listed: str) -> str:
    return ",".join(listed.split(",")[::-1])


EXACT = {
    "constant 0": ("0x30", "0x40"),
    "constant 0.5": ("0.5x30", "0.5x40"),
    "constant 1": ("1x30", "1x40"),
    "ramp up": (RAMP_30, RAMP_40),
    "ramp down": (backwards(RAMP_30), backwards(RAMP_40)),
    "step": ("0x15,1x15", "0x20,1x20"),
    "bell": (mirrored(RISE_30), mirrored(RISE_40)),
    "valley": (mirrored(FALL_30), mirrored(FALL_40)),
    "half and half (SuperCOT)": ("0x15,0.5,1x14", "0x19,0.5,1x20"),
    # 16 blocks over 32 layers: two layers a block. Over 40, block 3 begins at layer 7.
    "NONE": ("0x32",),
    "ALL": ("1x32",),
    "INS": ("1x6,0x26", "1x7,0x33"),
    "IND": ("0x6,1x6,0x20",),
    "INALL": ("1x12,0x20",),
    "MIDD": ("0x6,1x16,0x10",),
    "OUTD": ("0x14,1x8,0x10",),
    "OUTS": ("0x22,1x10",),
    "OUTALL": ("0x14,1x18",),
    "ALL0.5": ("0.5x32",),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_numbers_of_every_name(name: str) -> None:
    for listed in EXACT[name]:
        expected = Gradient.parse(listed)
        assert preset(name, len(expected)) == expected


def test_every_name_is_there_once_and_is_tested() -> None:
    names = [*SHAPES, *parse_presets(BLOCK_PRESETS)]
    assert sorted(names) == sorted(EXACT)


def test_the_editors_list() -> None:
    assert GradientEditor([0, 1]).presets == [
        "constant 0",
        "constant 0.5",
        "constant 1",
        "ramp up",
        "ramp down",
        "step",
        "bell",
        "valley",
        "half and half (SuperCOT)",
        "reversed",
    ]


def test_names_of_a_presets_text_go_first() -> None:
    own = "bell:" + ",".join(["9", *["0.25"] * 16])
    assert preset("bell", 3, own) == Gradient([0.25] * 3)
    assert preset("step", 4, own) == Gradient([0, 0, 1, 1])


def test_what_is_wrong_is_said() -> None:
    message = "the preset 'belll' is unknown; known are NONE, ALL, INS, IND, INALL, MIDD, OUTD, "
    message += "OUTS, OUTALL, ALL0.5, constant 0, constant 0.5, constant 1, ramp up, ramp down, "
    message += "step, bell, valley, half and half (SuperCOT)"
    with pytest.raises(LabkitError, match=f"^{re.escape(message)}$"):
        preset("belll", 4)
    with pytest.raises(LabkitError, match="known are MINE, constant 0, "):
        preset("ALL", 4, "MINE:" + ",".join(["1"] * 17))
    for name in ("bell", "ALL"):
        with pytest.raises(LabkitError, match="the number of layers lies from 1 to 10000, found 0"):
            preset(name, 0)
        with pytest.raises(LabkitError, match="lies from 1 to 10000, found 10001"):
            preset(name, 10_001)
