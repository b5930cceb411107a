"""`lk.check`: the question, a hint, a stronger one, the solution."""

from __future__ import annotations

import shutil

import pytest

import labkit as lk
from labkit.demonstration.base import adapter_folders
from labkit.errors import LabkitError
from labkit.teaching import checking
from labkit.teaching.question import question


@pytest.fixture(autouse=True)
def _no_wrong_answers_yet():
    checking._wrong.clear()


def labels(reply):
    return [label for label, _ in reply.lines]


@pytest.mark.parametrize("nothing", [..., None])
def test_without_an_answer_it_asks(nothing):
    reply = lk.check("01.2", nothing)
    assert reply.right is None
    assert labels(reply) == ["01.2", "a", "b", "c", "answer", "then"]
    assert dict(reply.lines)["01.2"] == question("01.2").asks
    assert 'lk.check("01.2", my_answer)' in repr(reply)
    assert repr(lk.check("01.2")) == repr(reply)


def test_hints_grow_with_wrong_answers():
    first, second = question("01.2").hints
    replies = [lk.check("01.2", answer) for answer in ("a", "c", "a")]
    assert [reply.right for reply in replies] == [False] * 3
    assert replies[0].lines == (("not yet", first),)
    assert replies[1].lines == (("not yet", second),)
    assert replies[2].lines == (
        ("not yet", second), ("answer", 'lk.check("01.2", solution=True)')
    )  # fmt: skip
    assert lk.check("02.2", "a").lines == (("not yet", question("02.2").hints[0]),)


def test_a_right_answer_gets_its_reason_and_a_fresh_start():
    lk.check("01.2", "a")
    reply = lk.check("01.2", "b")
    assert reply.right is True
    assert reply.lines[0] == ("right", question("01.2").solution)
    assert reply.lines[1] == ("holds for", "the demo's LoRA kjv, as measured here")
    assert lk.check("01.2", "a").lines == (("not yet", question("01.2").hints[0]),)


def test_asking_and_looking_it_up_are_no_wrong_answers():
    lk.check("01.2")
    reply = lk.check("01.2", solution=True)
    assert reply.right is None
    assert labels(reply) == ["01.2", "a", "b", "c", "solution", "holds for"]
    assert lk.check("01.2", "a").lines == (("not yet", question("01.2").hints[0]),)
    # What holds for every adapter does not say for which.
    assert labels(lk.check("02.1", solution=True)) == ["02.1", "solution"]


def test_the_demos_adapter_is_known_wherever_it_lies(tmp_path):
    copied = lk.Adapter(shutil.copytree(adapter_folders()["kjv"], tmp_path / "mine"))
    assert lk.check("01.2", "b", copied).right is True
    both = [lk.Adapter(folder) for folder in adapter_folders().values()]
    assert lk.check("02b.2", "b", *both).right is True


def test_with_another_adapter_nothing_is_right_or_wrong(tiny_adapter):
    mine = lk.Adapter(tiny_adapter)
    for answer in ("a", "b"):
        reply = lk.check("01.2", answer, mine)
        assert reply.right is None
        ((label, text),) = reply.lines
        assert label == "noted"
        assert text == (
            f"You said {answer}. The right answer is known for the demo's LoRA kjv, and this is "
            "tiny-lora. Run on: the next cells measure yours."
        )
    assert lk.check("02.1", 234, mine).right is True  # holds for every adapter
    assert lk.check("01.2", "b", lk.Adapter(adapter_folders()["stepwise"])).right is None


def test_what_is_no_answer_is_refused_without_counting():
    with pytest.raises(LabkitError, match="question 01.2: 'x' is no answer; expected"):
        lk.check("01.2", "x")
    with pytest.raises(LabkitError, match="there is no question '1.2'; there are 00.1, "):
        lk.check("1.2", "a")
    assert lk.check("01.2", "a").lines[0][1] == question("01.2").hints[0]
