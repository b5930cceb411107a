"""The picture of dots: what a press does, and what it says where nothing can be done."""

import pytest

from labkit.errors import LabkitError
from labkit.widgets.front_picker import FrontPicker


def dot(name):
    return {"name": name, "x": 0.1, "y": 2.0, "low": None, "high": None, "label": name,
            "said": f"{name}: here", "color": "#ffffff"}  # fmt: skip


@pytest.fixture
def picked():
    return []


@pytest.fixture
def picker(picked):
    def pick(name):
        if name == "bad":
            raise LabkitError("bad cannot be loaded")
        picked.append(name)

    return FrontPicker([dot("base"), dot("bad")], [(0, 3), (1, 2)], ("KL", "NLL"), pick)


def press(picker, content):
    picker._handle_custom_msg(content, [])


def test_a_press_picks_the_dot(picker, picked):
    press(picker, {"kind": "pick", "name": "base"})
    press(picker, {"kind": "pick", "name": "base"})
    assert picked == ["base", "base"]
    assert picker.problem == ""
    assert picker.curve == [[0.0, 3.0], [1.0, 2.0]]


def test_what_goes_wrong_is_shown_until_the_next_press(picker, picked):
    press(picker, {"name": "bad"})
    assert picker.problem == "bad cannot be loaded"
    press(picker, {"name": "nowhere"})
    assert picker.problem == "there is no dot 'nowhere'"
    press(picker, "nothing")
    assert picker.problem == "there is no dot ''"
    press(picker, {"name": "base"})
    assert (picker.problem, picked) == ("", ["base"])
