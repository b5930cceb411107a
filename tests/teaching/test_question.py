"""The questions of the notebooks, as data: each can be answered, and its solution is right."""

from __future__ import annotations

import re

import pytest

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.teaching.question import question, questions

NAMES = list(questions())


def one_of_each():
    """A question with letters, one with a number, and one with a list."""
    return question("01.2"), question("02.1"), question("03.1")


def test_their_names_are_counted_within_each_notebook():
    of_notebook = {}
    for name in NAMES:
        notebook, number = name.split(".")
        assert re.fullmatch(r"\d\d[a-z]?", notebook)
        of_notebook.setdefault(notebook, []).append(int(number))
    assert all(found == list(range(1, len(found) + 1)) for found in of_notebook.values())


@pytest.mark.parametrize("name", NAMES)
def test_its_solution_says_the_answer_that_it_accepts(name):
    asked = question(name)
    said = asked.solution.partition(". ")[0].rstrip(".")
    assert asked.accepts(said), said
    assert len(asked.solution) > len(said) + 20  # with its reason
    assert asked.asks.endswith("?")
    assert asked.hints[0] != asked.hints[1]
    for hint in asked.hints:
        assert len(hint) > 20
        assert said not in re.findall(r"[\w.,]+", hint.replace(", ", " "))
    wrong = [letter for letter in asked.options if not asked.accepts(letter)]
    assert len(wrong) == max(0, len(asked.options) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_shown_is_cut(name):
    asked = question(name)
    for text in (asked.asks, *asked.options.values(), *asked.hints, asked.solution, asked.form):
        assert len(text) <= 400, text
        assert text.isprintable()


def test_what_an_answer_looks_like():
    letter, number, weights = one_of_each()
    assert letter.form == '"a", "b" or "c"'
    assert number.form.startswith("a number: times fewer")
    assert weights.form == 'a list of layer weights, such as "0,0.5,1"'


def test_answers_as_people_write_them():
    letter, number, weights = one_of_each()
    assert letter.accepts(" B ")
    assert not letter.accepts("a")
    assert [number.accepts(value) for value in (114.9, 115, "200", 470, 471)] == [
        False, True, True, True, False
    ]  # fmt: skip
    assert weights.accepts("0, 0.33, 0.67, 1x2")
    assert weights.accepts([0, 0.33, 0.67, 1, 1])
    assert weights.accepts(Gradient.ramp(5, 0, 3))
    assert not weights.accepts("0,0.5,1")


def test_what_is_no_answer():
    letter, number, weights = one_of_each()
    for asked, answers in (
        (letter, ["d", "", 1, "ab"]),
        (number, ["many", float("nan"), True, None, [1]]),
        (weights, ["0,,1", 5, object()]),
    ):
        for answer in answers:
            expected = re.escape(f"is no answer; expected {asked.form}")
            with pytest.raises(LabkitError, match=f"question {asked.name}: .*{expected}"):
                asked.accepts(answer)


def test_an_unknown_question_names_those_there_are():
    with pytest.raises(LabkitError, match=r"there is no question '9\.9'; there are 00\.1, 00\.2, "):
        question("9.9")
