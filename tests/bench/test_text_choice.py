"""The fold "Texts": which two texts are read, and what is wrong beside its field."""

from __future__ import annotations

import html

import pytest

from labkit.bench.text_choice import FILE, OWN, TextChoice
from labkit.errors import LabkitError

KNOWN = {"verse": "In the beginning", "prose": ["The train", "leaves"], "more": "Some more"}


@pytest.fixture
def used():
    return []


@pytest.fixture
def choice(used):
    return TextChoice(KNOWN, ["verse", "prose"], used.append)


def problems(choice):
    return [html.unescape(axis.problem.value) for axis in choice._axes]


def test_a_known_text(choice, used):
    choice._axes[1].choice.value = "more"
    assert used == [{"verse": KNOWN["verse"], "more": KNOWN["more"]}]
    choice._axes[0].choice.value = "more"
    assert "both texts are 'more'; choose two, or give a file another name" in problems(choice)[0]
    assert len(used) == 1
    choice._axes[1].choice.value = "prose"  # the first one is still the verse
    assert list(used[-1]) == ["verse", "prose"]


def test_a_file(choice, used, tmp_path):
    axis = choice._axes[0]
    axis.choice.value = FILE
    assert (axis.path.layout.display, axis.own.layout.display) == (None, "none")
    assert used == []
    axis.path.value = str(tmp_path / "mine.txt")
    assert "cannot read the file of texts" in problems(choice)[0]
    assert problems(choice)[1] == ""
    (tmp_path / "mine.txt").write_text("One.\n\nTwo.\n")
    axis.path.value = f" {tmp_path / 'mine.txt'}"
    assert problems(choice) == ["", ""]
    assert [one.text for one in used[-1]["mine"]] == ["One.", "Two."]
    (tmp_path / "prose.jsonl").write_text('{"text": "a"}\n{"txt": "b"}')
    axis.path.value = str(tmp_path / "prose.jsonl")
    assert "line 2: expected an object with text" in problems(choice)[0]
    (tmp_path / "prose.jsonl").write_text('{"text": "a"}')
    axis.path.value = f"{tmp_path / 'prose.jsonl'} "
    assert "both texts are 'prose'" in problems(choice)[0]


def test_own_text(choice, used):
    axis = choice._axes[1]
    axis.choice.value = OWN
    axis.own.value = "  \n "
    assert used == []
    axis.own.value = "A first\npassage.\n \n\nAnother <b>one</b>."
    texts = used[-1]["own second text"]
    assert [one.text for one in texts] == ["A first passage.", "Another <b>one</b>."]


def test_what_cannot_be_measured_is_said_there_too(choice):
    choice.complain(LabkitError("passage 0 has nothing to <predict>"))
    assert "passage 0 has nothing to &lt;predict&gt;" in choice._problem.value
    choice._axes[1].choice.value = "more"
    assert choice._problem.value == ""
