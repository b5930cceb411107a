"""What the lab draws: every number in its own place, and every text escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from labkit.bench import view
from labkit.bench.runs import Question, Run
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR
from labkit.probing.text_plane import Reading

TEXTS = (("one", "ab"), ("two", "cd"))


def run(name, answer, nll=(3.0, 5.0, 7.0), texts=TEXTS, prompt="In", gradient="0x4"):
    reading = Reading(("a", "b", "c"), (2.0, 2.0, 2.0), nll, (4.0, 4.0, 9.0), (0.5, 0.5, 1.5))
    question = Question(prompt, "plain", 5, 0.0, 0)
    weights = ((gradient, ()),)
    return Run(name, name, weights, texts, question, answer, 1.0, (reading, reading), 1.0)


def test_html_is_escaped():
    nasty = "<script>alert(1)</script>"
    made = view.columns([[nasty], [nasty], ["other"]], (nasty, "", ""), nasty)
    made += view.next_tokens([(nasty, (0.5, 0.5, 0.5))], (0.0, 0.0))
    odd = [run(nasty, nasty, texts=((nasty, nasty),) * 2, prompt=nasty, gradient=nasty)] * 2
    made += view.compared(*odd)
    made += view.problem(nasty) + view.status(nasty) + view.remark(nasty)
    assert "<script" not in made


def test_differing_tokens_are_marked():
    assert view.marked([" a", " b", " c"], [" a", " x", " c"]) == " a<mark> b</mark> c"
    assert view.marked([], [" a"]) == ""


def test_each_answer_is_in_its_column():
    made = ElementTree.fromstring(
        view.columns([["a", "b"], ["a", "x"], ["c"]], ("one", "two", "three"), "mean weight 0.5")
    )
    columns = {column.get("class"): column for column in made}
    read = {kind: " ".join("".join(column.itertext()).split()) for kind, column in columns.items()}
    assert read == {
        "lab-column base": "base oneab",
        "lab-column merged": "merged · mean weight 0.5 twoax",
        "lab-column full": "full LoRA threec",
    }
    assert [mark.text for mark in columns["lab-column merged"].iter("mark")] == ["x"]
    assert list(columns["lab-column base"].iter("mark")) == []


def test_each_probability_is_in_its_column():
    rows = [("yes", (0.125, 0.5, 0.25)), ("\n", (0.5, 0.25, 0.0))]
    made = ElementTree.fromstring(f"<all>{view.next_tokens(rows, (1.5, 0.25))}</all>")
    heads = [head.text for head in made.iter("th")]
    assert heads == ["next token", "base", "merged", "full LoRA"]
    lines = [list(row) for row in made.iter("tr")][1:]
    assert [["".join(cell.itertext()) for cell in line[0::1]][::1] for line in lines] == [
        ["yes", "0.125", "", "0.500", "", "0.250", ""],
        [r"\n", "0.500", "", "0.250", "", "0.000", ""],
    ]
    bars = [(bar.get("class"), bar.get("style")) for bar in made.iter("span")]
    # The largest probability is 44 pixels wide.
    assert bars[:3] == [
        ("lab-bar base", "width:11px"),
        ("lab-bar merged", "width:44px"),
        ("lab-bar full", "width:22px"),
    ]
    said = "KL(merged‖base) 1.5000 · KL(merged‖full LoRA) 0.2500 nats"
    assert made.find("div").text == said


def test_two_runs_are_compared():
    one, other = run("mine", "so it was"), run("yours", "so he was", nll=(2.0, 5.0, 6.5))
    made = ElementTree.fromstring(f"<all>{view.compared(one, other)}</all>")
    assert ["".join(mark.itertext()) for mark in made.iter("mark")] == ["he"]
    lines = [["".join(cell.itertext()) for cell in row] for row in made.iter("tr")]
    assert lines[0] == ["nats per token", "mine", "yours", "yours less mine, 95 %"]
    # (2 + 5 + 6.5 - 3 - 5 - 7) / 6, and its interval is that of the differences by passage.
    name, first, second, difference = lines[1]
    assert (name, first, second) == ("NLL on one", "2.500", "2.250")
    change = other.readings[0].less(one.readings[0])
    assert change.value == pytest.approx(-0.25)
    low, high = (f"{end:+.3f}".replace("-", "\u2212") for end in (change.low, change.high))
    assert difference == f"\u22120.250 [{low}, {high}]"
    assert change.low < -0.25 < change.high
    assert "asked differently" not in view.compared(one, other)


def test_what_cannot_be_compared_is_said():
    one, other = run("mine", "so"), run("yours", "so", prompt="Out", texts=(("x", "y"), TEXTS[1]))
    made = view.compared(one, other)
    assert "The two were asked differently. They were not both measured on one." in made
    assert "NLL on two" in made
    assert "NLL on one" not in made
    unasked = replace(one, question=None, answer="", readings=None)
    made = view.compared(unasked, other)
    assert "no answer" in made
    assert "<table" not in made


def test_colours_are_those_of_the_pictures():
    assert f"--lab-base: {BASE_COLOR};" in view.STYLE
    assert f"--lab-adapter: {ADAPTER_COLOR};" in view.STYLE
    # Every colour that the style uses is said in it.
    used = set(re.findall(r"var\((--lab-[a-z-]+)", view.STYLE))
    assert used == set(re.findall(r"(--lab-[a-z-]+):", view.STYLE))


def test_an_error_without_words_is_named():
    assert ">KeyboardInterrupt</div>" in view.problem(KeyboardInterrupt())
    assert 'role="alert">no room</div>' in view.problem("no room")
