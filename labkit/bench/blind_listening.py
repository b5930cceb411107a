"""Blind listening: which of two runs is better, heard without knowing which is which.

Both answer the same prompt with the same dice; which of them is A is drawn anew each time. Votes
are counted with the exact interval of Clopper and Pearson ("The Use of Confidence or Fiducial
Limits Illustrated in the Case of the Binomial", Biometrika 26, 1934, pages 404 to 413).
"""

from __future__ import annotations

import html
import math
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import ipywidgets

from labkit.bench import view
from labkit.bench.background import Latest
from labkit.bench.journal import Entry
from labkit.bench.panel import row
from labkit.bench.runs import VOTE_COLUMNS, Question, Run
from labkit.errors import LabkitError, shown, with_kind

if TYPE_CHECKING:
    import pandas as pd

FIRST, SECOND, NEITHER, ALIKE = "first", "second", "no difference", "same answer"
"""What a vote can be; the last one is counted without asking, where both say the same."""
MOST_ALIKE = 5
"""Pairs of equal answers in a row after which nothing more is drawn."""
Ask = Callable[[Run, Run, Question, threading.Event], "tuple[str, str] | None"]


@dataclass(frozen=True)
class Trial:
    """Two answers to one question, in hidden order."""

    first: Run
    second: Run
    question: Question
    answers: tuple[str, str]
    swapped: bool

    @property
    def shown(self) -> tuple[str, str]:
        """The answers of A and B."""
        one, other = self.answers
        return (other, one) if self.swapped else (one, other)

    def vote(self, letter: str) -> Entry:
        """What is kept of a vote: for "A", "B", or neither of them."""
        votes = {"A": SECOND if self.swapped else FIRST, "B": FIRST if self.swapped else SECOND}
        one, other = self.answers
        return {
            "time": datetime.now(UTC).timestamp(),
            "first": self.first.name, "first_gradient": self.first.gradient,
            "second": self.second.name, "second_gradient": self.second.gradient,
            "prompt": self.question.prompt, "format": self.question.format,
            "tokens": self.question.tokens, "temperature": self.question.temperature,
            "seed": self.question.seed,
            "first_was": "B" if self.swapped else "A",
            "vote": ALIKE if one == other else votes.get(letter, NEITHER),
            "first_answer": one, "second_answer": other,
        }  # fmt: skip


def votes_frame(votes: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The votes as a table, in the order in which they were cast.

    Returns:
        `time` (UTC); `first` and `second`, the names of the two, and their `_gradient`; `prompt`,
        `format`, `tokens`, `temperature`, `seed`; `first_was` ("A" or "B"); `vote` ("first",
        "second", "no difference", or "same answer" where there was nothing to vote on);
        `first_answer`, `second_answer`.
    """
    import pandas as pd

    frame = pd.DataFrame([dict(vote) for vote in votes], columns=list(VOTE_COLUMNS))
    frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
    return frame


def clopper_pearson(chosen: int, votes: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: all shares that `chosen` of `votes` do not speak against.

    Args:
        chosen: how often it was chosen.
        votes: of how many votes.
        level: how often such an interval holds the true share, at least.
    """
    tail = (1 - level) / 2
    low = 0.0 if chosen == 0 else _root(lambda p: 1 - _at_most(chosen - 1, votes, p) - tail)
    high = 1.0 if chosen == votes else _root(lambda p: tail - _at_most(chosen, votes, p))
    return low, high


def _at_most(count: int, votes: int, share: float) -> float:
    """The probability of at most `count` of so many votes."""
    log, rest = math.log(share), math.log1p(-share)
    return math.fsum(
        math.exp(
            math.lgamma(votes + 1) - math.lgamma(one + 1) - math.lgamma(votes - one + 1)
            + one * log + (votes - one) * rest
        )
        for one in range(count + 1)
    )  # fmt: skip


def _root(rises: Callable[[float], float]) -> float:
    """Where a function that rises from below 0 to above 0 between 0 and 1 is 0, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) < 0 else (low, middle)
    return (low + high) / 2


class BlindListening:
    """The fold "Listen blind".

    Args:
        choices: the runs that can be listened to, when it is asked.
        question: how the models are asked at the moment; the prompt is not used.
        ask: lets two runs answer; None if it was stopped.
        votes: the votes that are kept.
        keep: keeps another one.

    Attributes:
        widget: what is shown.
        worker: where the models are asked.
        error: what went wrong last.
        trial: the pair on the screen; None when there is none to vote on.
    """

    def __init__(
        self,
        choices: Callable[[], Sequence[Run]],
        question: Callable[[], Question],
        ask: Ask,
        votes: Sequence[Entry],
        keep: Callable[[Entry], None],
    ) -> None:
        self._choices, self._question, self._ask = choices, question, ask
        self._votes, self._keep = votes, keep
        self.worker = Latest(self._failed)
        self.error: BaseException | None = None
        self.trial: Trial | None = None
        self._refreshing = False
        self._make()
        self.refresh()

    def _make(self) -> None:
        plain = {"description_width": "initial"}
        side = {"width": "auto", "max_width": "300px", "flex": "1 1 200px"}
        self.first = ipywidgets.Dropdown(description="first", style=plain, layout=side)
        self.second = ipywidgets.Dropdown(description="second", style=plain, layout=side)
        self.prompts = ipywidgets.Textarea(
            description="prompts, one a line", rows=3, style=plain, layout={"width": "auto"},
            placeholder="Once upon a time\nThe king said",
        )  # fmt: skip
        self.draw = ipywidgets.Button(
            description="Draw a pair", icon="headphones", layout={"width": "120px"}
        )
        self.vote_buttons = {
            letter: ipywidgets.Button(description=said, disabled=True, layout={"width": "120px"})
            for letter, said in (("A", "A is better"), ("B", "B is better"), ("", NEITHER))
        }
        self.reveal = ipywidgets.Button(
            description="Reveal", icon="eye", layout={"width": "92px"},
            tooltip="say which was which, and count the votes",
        )  # fmt: skip
        self.pair, self.said, self.count = (ipywidgets.HTML() for _ in range(3))
        self.draw.on_click(lambda _: self.next())
        self.reveal.on_click(lambda _: self.show_count())
        for letter, button in self.vote_buttons.items():
            button.on_click(lambda _, letter=letter: self.vote(letter))
        for chooser in (self.first, self.second):
            chooser.observe(lambda _: self._chosen(), "value")
        self.widget = ipywidgets.VBox(
            [
                row(self.first, self.second),
                self.prompts,
                self.pair,
                row(self.draw, *self.vote_buttons.values(), self.reveal),
                self.said,
                self.count,
            ]
        )

    def refresh(self) -> None:
        """Offer the runs that there are now, and keep what is chosen."""
        options = [(shown(run.name, 60), run.key) for run in self._choices()]
        keys = [key for _, key in options]
        for chooser, usual in ((self.first, keys[:1]), (self.second, keys[3:4] or keys[1:2])):
            if tuple(options) != tuple(chooser.options):
                chosen = chooser.value if chooser.value in keys else next(iter(usual), None)
                self._refreshing = True
                try:
                    chooser.options = options
                    chooser.value = chosen
                finally:
                    self._refreshing = False

    def next(self) -> None:
        """Draw a pair, and let both answer."""
        self._forget()
        self.error = None
        self.said.value = view.status("both answer …")
        self.worker.submit(self._draw)

    def _draw(self, stopped: threading.Event) -> None:
        for _ in range(MOST_ALIKE):
            trial = self._trial(stopped)
            if trial is None:
                return
            one, other = trial.answers
            if one != other:
                self.trial = trial
                self.pair.value = _columns(trial)
                self.said.value = view.status("Which is better?")
                self._can_vote(True)
                return
            self._keep(trial.vote(""))
        self.said.value = view.status(
            f"The two gave the same answer {MOST_ALIKE} times in a row; choose others, or prompts "
            "that bring them apart"
        )

    def _trial(self, stopped: threading.Event) -> Trial | None:
        runs = {run.key: run for run in self._choices()}
        first, second = runs.get(self.first.value), runs.get(self.second.value)
        if first is None or second is None or first.weights == second.weights:
            raise LabkitError("choose two runs of different gradients to listen to")
        question = self._drawn(first, second)
        answers = self._ask(first, second, question, stopped)
        if answers is None or stopped.is_set():
            return None
        return Trial(first, second, question, answers, bool(secrets.randbelow(2)))

    def _drawn(self, first: Run, second: Run) -> Question:
        """A question that this pair was not asked yet.

        Raises:
            LabkitError: no prompts, or none that is left.
        """
        prompts = list(dict.fromkeys(filter(str.strip, self.prompts.value.splitlines())))
        if not prompts:
            raise LabkitError("write at least one prompt, one a line")
        usual = self._question()
        if usual.temperature > 0:
            prompt = secrets.choice(prompts)
            return replace(usual, prompt=prompt, seed=secrets.randbelow(2**31), turns=())
        asked = {
            vote["prompt"]
            for vote in self._votes
            if {vote["first_gradient"], vote["second_gradient"]}
            == {first.gradient, second.gradient}
            and (vote["format"], vote["tokens"], vote["temperature"])
            == (usual.format, usual.tokens, 0)
        }
        left = [prompt for prompt in prompts if prompt not in asked]
        if not left:
            raise LabkitError(
                "with temperature 0 a prompt gives the same pair every time, and you have heard "
                "this pair on every prompt; write other prompts, or set a temperature above 0"
            )
        return replace(usual, prompt=secrets.choice(left), turns=())

    def vote(self, letter: str) -> None:
        """Count a vote for "A", "B" or neither, and draw the next pair."""
        trial = self.trial
        if trial is None:
            return
        self._keep(trial.vote(letter))
        self.next()

    def show_count(self) -> None:
        """Say what the votes on the two were, and which of the pair on the screen is which."""
        runs = {run.key: run for run in self._choices()}
        first, second = runs.get(self.first.value), runs.get(self.second.value)
        if first is not None and second is not None:
            self.count.value = _counted(first, second, self._votes)
        if self.trial is not None:
            names = [self.trial.first.name, self.trial.second.name]
            if self.trial.swapped:
                names.reverse()
            said = f"A was {names[0]}, B was {names[1]}; this pair is not voted on any more."
            self.trial = None
            self._can_vote(False)
            self.said.value = view.status(said)

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self.said.value = view.problem(with_kind(error))

    def _chosen(self) -> None:
        if not self._refreshing:
            self.worker.stop()
            self._forget()

    def _forget(self) -> None:
        self.trial = None
        self.pair.value = self.count.value = self.said.value = ""
        self._can_vote(False)

    def _can_vote(self, now: bool) -> None:
        for button in self.vote_buttons.values():
            button.disabled = not now


def _columns(trial: Trial) -> str:
    prompt = html.escape(trial.question.prompt)
    cells = "".join(
        f'<div class="lab-column plain"><div class="lab-name">{letter}</div>'
        f'<div class="lab-text"><span class="lab-status">{prompt}</span>\n{html.escape(answer)}'
        "</div></div>"
        for letter, answer in zip("AB", trial.shown, strict=True)
    )
    return f'<div class="lab-columns">{cells}</div>'


def _counted(first: Run, second: Run, votes: Sequence[Entry]) -> str:
    """The votes on two runs, whichever of them was called the first."""
    wins: dict[str, int] = {first.gradient: 0, second.gradient: 0, NEITHER: 0, ALIKE: 0}
    for vote in votes:
        gradients = {FIRST: vote["first_gradient"], SECOND: vote["second_gradient"]}
        if set(gradients.values()) == {first.gradient, second.gradient}:
            wins[str(gradients.get(vote["vote"], vote["vote"]))] += 1
    one, other = wins[first.gradient], wins[second.gradient]
    rest = f"no difference: {wins[NEITHER]}; same answer: {wins[ALIKE]}"
    if not one + other:
        return view.done(f"No vote for either yet; {rest}.")
    low, high = clopper_pearson(one, one + other)
    return view.done(
        f"{first.name} {one}, {second.name} {other}; {rest}. Of the votes for either, "
        f"{one / (one + other):.0%} are for {first.name}, 95 % interval {low:.0%} to {high:.0%} "
        "(exact, Clopper and Pearson). It holds if you had decided before how often to vote."
    )
