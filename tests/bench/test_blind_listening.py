"""Blind listening: hidden order, votes that are counted right, nothing said before it is asked."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from labkit.bench import blind_listening
from labkit.bench.blind_listening import BlindListening, clopper_pearson, votes_frame
from labkit.bench.runs import Question, Run
from labkit.errors import LabkitError

TEXTS = (("verse", "ab"), ("prose", "cd"))
RUNS = [Run(name, name, ((gradient, ()),), TEXTS, kind=kind) for name, gradient, kind in (
    ("base", "0x4", "base"), ("full LoRA", "1x4", "full LoRA"), ("mine", "0x2,1x2", "run"),
    ("yours", "1x2,0x2", "run"),
)]  # fmt: skip


class Asked:
    """Runs that answer with their name."""

    def __init__(self, temperature=0.0):
        self.questions, self.temperature = [], temperature
        self.said = lambda run, question: f"{run.name} says <{question.prompt}>"

    def question(self):
        return Question("", "plain", 5, self.temperature, 0)

    def __call__(self, first, second, question, stopped):
        self.questions.append(question)
        return self.said(first, question), self.said(second, question)


@pytest.fixture
def asked():
    return Asked()


@pytest.fixture
def listening(asked):
    votes = []
    made = BlindListening(lambda: RUNS, asked.question, asked, votes, votes.append)
    made.votes = votes
    made.first.value, made.second.value = "mine", "yours"
    yield made
    made.worker.close()


def draw(listening):
    listening.next()
    assert listening.worker.wait(30)
    return listening.trial


def test_the_order_is_hidden_drawn_anew_and_a_vote_goes_to_the_right_run(listening, asked):
    asked.temperature = 1.0
    listening.prompts.value = "In the\n\nOut of"
    orders = set()
    for vote in ("A", "B", "") * 12:
        trial = draw(listening)
        orders.add(trial.swapped)
        boxes = re.findall(r'lab-name">(.)</div>.*?</span>\n(.*?)</div>', listening.pair.value)
        shown = [name for name, answer in sorted(boxes, key=lambda box: "mine" not in box[1])]
        assert [letter for letter, _ in boxes] == ["A", "B"]
        listening.vote(vote)
        kept = listening.votes[-1]
        # `shown[0]` is the letter of "mine", which is the first.
        assert kept["first_was"] == shown[0]
        expected = {shown[0]: "first", shown[1]: "second"}.get(vote, "no difference")
        assert kept["vote"] == expected
        assert kept["first_answer"].startswith("mine says")
        listening.worker.wait(30)
    assert orders == {True, False}
    assert {one.prompt for one in asked.questions} == {"In the", "Out of"}
    assert len({one.seed for one in asked.questions}) > 30
    assert "mine" not in listening.said.value + listening.count.value


def test_nothing_is_revealed_before_it_is_asked(listening):
    listening.prompts.value = "In the\nOut of"
    for letter in "AB":
        assert draw(listening) is not None
        first = "mine says" in listening.pair.value.split("lab-name")[1]
        listening.vote("A" if first else "B")  # always for "mine"
        assert listening.worker.wait(30)
        assert letter in "AB"
    listening.show_count()
    low, high = clopper_pearson(2, 2)
    assert (
        "mine 2, yours 0; no difference: 0; same answer: 0. Of the votes for either, 100% are for "
        f"mine, 95 % interval {low:.0%} to {high:.0%} (exact, Clopper and Pearson)."
    ) in listening.count.value
    # Whichever of the two is called the first.
    listening.first.value, listening.second.value = "yours", "mine"
    assert listening.count.value == ""
    listening.show_count()
    assert "yours 0, mine 2" in listening.count.value


def test_a_revealed_pair_is_not_voted_on(listening):
    listening.prompts.value = "In the"
    trial = draw(listening)
    listening.show_count()
    names = ["yours", "mine"] if trial.swapped else ["mine", "yours"]
    assert f"A was {names[0]}, B was {names[1]}" in listening.said.value
    assert "No vote for either yet; no difference: 0; same answer: 0." in listening.count.value
    assert all(button.disabled for button in listening.vote_buttons.values())
    listening.vote("A")
    assert listening.votes == []


def test_at_temperature_0_no_prompt_is_heard_twice(listening, asked):
    listening.prompts.value = "one\ntwo\none"
    for _ in range(2):
        draw(listening)
        listening.vote("")
        assert listening.worker.wait(30)
    assert sorted(one["prompt"] for one in listening.votes) == ["one", "two"]
    assert "with temperature 0 a prompt gives the same pair every time" in listening.said.value
    assert isinstance(listening.error, LabkitError)
    # Another pair, another length or another prompt is not the same.
    listening.prompts.value = "one\ntwo\nthree"
    assert draw(listening).question.prompt == "three"
    listening.second.value = "base"
    assert draw(listening) is not None


def test_equal_answers_are_counted_without_asking(listening, asked):
    asked.said = lambda run, question: question.prompt if question.prompt != "c" else run.name
    listening.prompts.value = "a\nb\nc"
    trial = draw(listening)
    assert trial.question.prompt == "c"
    assert {one["vote"] for one in listening.votes} <= {"same answer"}
    asked.said, asked.temperature = (lambda run, question: "so"), 1.0
    listening.votes.clear()
    assert draw(listening) is None
    assert len(listening.votes) == blind_listening.MOST_ALIKE
    assert "gave the same answer 5 times in a row" in listening.said.value


@pytest.mark.parametrize(
    ("prompts", "second", "said"),
    [
        (" \n", "yours", "write at least one prompt, one a line"),
        ("In", "mine", "choose two runs of different gradients to listen to"),
    ],
)
def test_what_is_wrong_is_said(listening, prompts, second, said):
    listening.prompts.value, listening.second.value = prompts, second
    assert draw(listening) is None
    assert f'role="alert">{said}</div>' in listening.said.value
    assert str(listening.error) == said


def test_everything_is_escaped(listening, asked):
    asked.said = lambda run, question: f"<script>{run.name}"
    listening.prompts.value = "<script>"
    draw(listening)
    assert "<script" not in listening.pair.value


def test_a_new_run_changes_nothing_on_the_screen(listening):
    listening.prompts.value = "In the"
    trial = draw(listening)
    RUNS.append(Run("new", "new", (("0.5x4", ()),), TEXTS))
    try:
        listening.refresh()
        assert listening.trial is trial
        assert (listening.first.value, listening.second.value) == ("mine", "yours")
        assert "new" in [key for _, key in listening.first.options]
    finally:
        RUNS.pop()


def test_the_votes_are_a_table(listening):
    listening.prompts.value = "In the"
    draw(listening)
    listening.vote("A")
    listening.worker.wait(30)
    frame = votes_frame(listening.votes)
    assert len(frame) == 1
    assert (frame["first"][0], frame["second_gradient"][0]) == ("mine", "1x2,0x2")
    assert frame["time"][0].tzinfo is not None
    assert list(votes_frame([]).columns) == list(frame.columns)


def at_least(count, votes, share):
    """The probability of so many votes or more: a sum over all orders of votes."""
    return sum(
        share ** sum(order) * (1 - share) ** (votes - sum(order))
        for order in itertools.product((0, 1), repeat=votes)
        if sum(order) >= count
    )


@pytest.mark.parametrize(("chosen", "votes"), [(0, 1), (1, 1), (3, 10), (10, 10), (0, 7), (5, 9)])
def test_the_interval_is_the_exact_one(chosen, votes):
    low, high = clopper_pearson(chosen, votes)
    # At its ends, so many votes or more (or fewer) have a probability of 2.5 %.
    if chosen:
        assert at_least(chosen, votes, low) == pytest.approx(0.025, rel=1e-9)
    else:
        assert low == 0
    if chosen < votes:
        assert 1 - at_least(chosen + 1, votes, high) == pytest.approx(0.025, rel=1e-9)
    else:
        assert high == 1


def test_the_interval_of_many_votes():
    # Of no vote in n the upper end is 1 − 0.025^(1/n).
    assert clopper_pearson(0, 2000)[1] == pytest.approx(1 - 0.025 ** (1 / 2000), rel=1e-9)
    low, high = clopper_pearson(1000, 2000)
    assert high - 0.5 == pytest.approx(0.5 - low, rel=1e-9)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 2000), rel=0.02)
