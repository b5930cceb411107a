"""Check a prediction: right, or a hint, and a stronger one after the second wrong answer."""

from __future__ import annotations

import filecmp
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from labkit.demonstration.base import adapter_folders
from labkit.errors import shown
from labkit.models.adapter import Adapter
from labkit.summary import Summary
from labkit.teaching.question import Question, question

_wrong: Counter[str] = Counter()
"""How many wrong answers each question had in this kernel since the last right one."""


@dataclass(frozen=True, repr=False)
class Reply(Summary):
    """What `check` says.

    Attributes:
        question: the name of the question.
        right: whether the answer is right; None where nothing was answered, or where the right
            answer is known for the demo's adapters alone and another one is measured.
        lines: what is said, each a label and a text.
    """

    question: str
    right: bool | None
    lines: tuple[tuple[str, str], ...]

    def summary(self) -> Iterator[tuple[str, str]]:
        """The lines."""
        yield from self.lines


def check(name: str, answer: object = None, *adapters: Adapter, solution: bool = False) -> Reply:
    """Check a prediction of a notebook: it is right, or there is a hint.

    The second wrong answer gets a stronger hint. `check("01.2")` shows the question and what an
    answer looks like, and so does the answer `...`, so that a notebook runs through without one.

    Args:
        name: the question: the notebook's number, and the question's place in it.
        answer: the prediction; its form is shown with the question.
        adapters: the adapters that the notebook measures. Many answers hold for the demo's alone;
            with others, nothing is called right or wrong.
        solution: show the answer and its reason instead.

    Raises:
        LabkitError: no question of that name, or an answer of another form.
    """
    asked = question(name)
    if solution:
        lines = [(name, asked.asks), *asked.options.items(), ("solution", asked.solution)]
        return Reply(name, None, (*lines, *_holds_for(asked)))
    if answer is None or answer is ...:
        more = [("answer", asked.form), ("then", f'lk.check("{name}", my_answer)')]
        return Reply(name, None, ((name, asked.asks), *asked.options.items(), *more))
    right = asked.accepts(answer)
    other = [one.name for one in adapters if not _is_the_demos(one, asked)]
    if other:
        noted = (
            f"You said {shown(str(answer))}. The right answer is known for the demo's LoRA "
            f"{' and '.join(asked.adapters)}, and this is {', '.join(map(shown, other))}. Run on: "
            "the next cells measure yours."
        )
        return Reply(name, None, (("noted", noted),))
    if right:
        del _wrong[name]
        return Reply(name, True, (("right", asked.solution), *_holds_for(asked)))
    _wrong[name] += 1
    last = _wrong[name] > len(asked.hints)
    hint = asked.hints[min(_wrong[name], len(asked.hints)) - 1]
    more = [("answer", f'lk.check("{name}", solution=True)')] if last else []
    return Reply(name, False, (("not yet", hint), *more))


def _holds_for(asked: Question) -> list[tuple[str, str]]:
    if not asked.adapters:
        return []
    return [("holds for", f"the demo's LoRA {' and '.join(asked.adapters)}, as measured here")]


def _is_the_demos(adapter: Adapter, asked: Question) -> bool:
    """Whether it is one of the demo's adapters that the answer holds for, wherever it lies."""
    if not asked.adapters:
        return True
    mine = adapter.file.path
    folders = adapter_folders()
    return any(
        filecmp.cmp(mine, folders[name] / "adapter_model.safetensors", shallow=False)
        for name in asked.adapters
    )
