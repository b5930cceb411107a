"""A question of a notebook: what is asked, what an answer looks like, and which is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import LabkitError, shown
from labkit.gradients.calls import as_gradient
from labkit.gradients.gradient import Gradient

FILE = Path(__file__).with_name("questions.yaml")
Answer = str | float | Gradient


@dataclass(frozen=True)
class Question:
    """What a notebook asks before it measures.

    Attributes:
        name: the notebook and the question's place in it, as "01.2".
        asks: the question.
        options: letter -> what it stands for, where one is chosen; empty otherwise.
        right: the right letter, the lowest and the highest number that is right, or a gradient.
        unit: what a number counts.
        hints: for the first wrong answer, and for the second.
        solution: the answer and its reason.
        adapters: the demo's adapters that the answer holds for; empty where it holds for all.
        measured: Python that gives the answer in the notebook's own variables, once it has run.
            A test compares.
    """

    name: str
    asks: str
    options: Mapping[str, str]
    right: str | tuple[float, float] | Gradient
    unit: str
    hints: tuple[str, str]
    solution: str
    adapters: tuple[str, ...]
    measured: str

    @property
    def form(self) -> str:
        """What an answer looks like."""
        if self.options:
            *first, last = (f'"{letter}"' for letter in self.options)
            return f"{', '.join(first)} or {last}"
        if isinstance(self.right, Gradient):
            return 'a list of layer weights, such as "0,0.5,1"'
        return f"a number: {self.unit}"

    def read(self, answer: object) -> Answer:
        """Take an answer as a person writes it.

        Raises:
            LabkitError: what cannot be an answer to this question.
        """
        found: Answer | None = None
        if self.options:
            letter = str(answer).strip().lower()
            found = letter if letter in self.options else None
        elif isinstance(self.right, Gradient):
            found = _gradient(answer)
        else:
            found = _number(answer)
        if found is None:
            raise LabkitError(
                f"question {self.name}: {shown(repr(answer))} is no answer; expected {self.form}"
            )
        return found

    def accepts(self, answer: object) -> bool:
        """Whether an answer is right."""
        found = self.read(answer)
        if isinstance(self.right, tuple) and isinstance(found, float):
            return self.right[0] <= found <= self.right[1]
        return found == self.right


def _number(answer: Any) -> float | None:
    if isinstance(answer, bool):
        return None
    try:
        found = float(answer)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _gradient(answer: Any) -> Gradient | None:
    try:
        return as_gradient(answer)
    except (LabkitError, TypeError):
        return None


@cache
def questions() -> Mapping[str, Question]:
    """All questions, by their names."""
    entries: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: _question(name, entry) for name, entry in entries.items()}


def question(name: str) -> Question:
    """The question of a name.

    Raises:
        LabkitError: no question of that name.
    """
    found = questions().get(name)
    if found is None:
        raise LabkitError(
            f"there is no question {shown(repr(name))}; there are {', '.join(questions())}"
        )
    return found


def _question(name: str, entry: Mapping[str, Any]) -> Question:
    right = entry["right"]
    if isinstance(right, list):
        right = (float(right[0]), float(right[1]))
    elif "options" not in entry:
        right = Gradient.parse(right)
    first, second = entry["hints"]
    return Question(
        name,
        entry["asks"].strip(),
        entry.get("options", {}),
        right,
        entry.get("unit", ""),
        (first.strip(), second.strip()),
        entry["solution"].strip(),
        tuple(entry.get("adapters", ())),
        entry["measured"].strip(),
    )
