"""The lab's answers: asks the live model, and shows what comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from labkit.bench import view
from labkit.bench.runs import Turn
from labkit.inference.live_model import LiveModel, Mix
from labkit.probing.next_token import compare_next_token, expected_next

DRAW_EVERY = 0.1
"""Seconds between two drawings of a streaming answer."""


@dataclass(frozen=True)
class Heard:
    """Whole answers of base, merge and full LoRA to one question.

    Attributes:
        texts: the three answers.
        seconds: that they took, or that of the merge alone where the others were known.
    """

    texts: tuple[str, str, str]
    seconds: float


class Answers:
    """Answers of base, merge and full LoRA, keeping those that do not change with the gradient.

    Args:
        model: the live model.
        show: told what to show: "columns" or "next", and its HTML.
    """

    def __init__(self, model: LiveModel, show: Callable[[str, str], None]) -> None:
        self.model, self._show = model, show
        self._asked: tuple[Any, ...] = ()
        self._kept: list[list[str]] | None = None
        # The last prompt, and what base and full LoRA expect after it.
        self._ends: tuple[str, Any] | None = None
        # What the columns show: the question, the merge's weights, and how they were drawn.
        self._complete = False
        self._shown: tuple[tuple[Any, ...], Any, tuple[Any, ...]] | None = None

    def measure(self, prompt: str, merge: Mix) -> None:
        """Show the next tokens after a prompt."""
        if self._ends is None or self._ends[0] != prompt:
            both = [self.model.mix(0), self.model.mix(1)]
            self._ends = prompt, expected_next(self.model, prompt, both)
        expected = compare_next_token(self.model, prompt, merge, self._ends[1])
        self._show(
            "next", view.next_tokens(expected.rows, (expected.from_base, expected.from_full))
        )

    def write(
        self,
        prompt: str | tuple[str, str, str],
        merge: Mix,
        length: int,
        temperature: float,
        seed: int,
        weights: str,
        stopped: threading.Event,
        turns: Sequence[Turn] = (),
    ) -> Heard | None:
        """Stream the three answers until they end or `stopped` is set.

        Args:
            prompt: the text to go on from; of base, merge and full LoRA each, where they differ.
            merge: the merge's mixture.
            length: longest answer, in tokens.
            temperature: 0 always takes the most probable token.
            seed: of the random numbers.
            weights: the merge's gradient in a word, for the column's head.
            stopped: set from another thread to end early.
            turns: what was said before, which is shown above the answers.

        Returns:
            the answers; nothing if it was stopped.
        """
        asked = (prompt, length, temperature, seed)
        begun = time.monotonic()
        self._complete = False
        kept = self._kept if asked == self._asked else None
        mixes = [merge] if kept else [self.model.mix(0), merge, self.model.mix(1)]
        tokens: list[list[int]] = [[] for _ in mixes]
        prompts = (prompt,) * 3 if isinstance(prompt, str) else prompt
        steps = self._stream(prompts[1:2] if kept else prompts, mixes, length, temperature, seed)
        drawn = 0.0

        def draw(note: str) -> list[list[str]]:
            texts = [pieces(self.model.tokenizer, row) for row in tokens]
            if kept:
                texts = [kept[0], texts[0], kept[1]]
            notes = ("", note, "") if kept else (note, note, note)
            self._shown = (asked, merge.weights, (texts, weights, turns))
            self._show("columns", view.columns(texts, notes, weights, turns))
            return texts

        draw("…")
        for step in steps:
            for row, token in zip(tokens, step, strict=True):
                if token is not None:
                    row.append(token)
            if stopped.is_set():
                draw("(stopped)")
                return None
            if time.monotonic() - drawn > DRAW_EVERY:
                draw("…")
                drawn = time.monotonic()
        base, merged, full = map("".join, draw(""))
        if not kept:
            self._kept = [pieces(self.model.tokenizer, tokens[row]) for row in (0, 2)]
            self._asked = asked
        self._complete = True
        return Heard((base, merged, full), time.monotonic() - begun)

    def _stream(
        self,
        prompts: Sequence[str],
        mixes: Sequence[Mix],
        length: int,
        temperature: float,
        seed: int,
    ) -> Iterator[list[int | None]]:
        """One token of each mixture at a time, after a prompt of its own; all with one dice."""
        if len(set(prompts)) == 1:
            yield from self.model.stream(prompts[0], mixes, length, temperature, seed)
            return
        streams = [
            self.model.stream(prompt, [mix], length, temperature, seed)
            for prompt, mix in zip(prompts, mixes, strict=True)
        ]
        over: list[int | None] = [None]
        if self.model.merged_alike(mixes):
            for steps in zip_longest(*streams, fillvalue=over):
                yield [token for step in steps for token in step]
            return
        # One after the other, since they take turns in the model's memory.
        for row, stream in enumerate(streams):
            for (token,) in stream:
                yield [token if one == row else None for one in range(len(streams))]

    def show_turns(self, weights: str, turns: Sequence[Turn]) -> None:
        """Show what was said so far, while the next prompt is written."""
        self._complete, self._shown = False, None
        self._show("columns", view.columns([[], [], []], ("", "", ""), weights, turns))

    def current(self, prompt: Any, merge: Mix, length: int, temperature: float, seed: int) -> bool:
        """Whether the columns hold whole answers to this, by this merge."""
        asked = (prompt, length, temperature, seed)
        if self._shown is None:
            return False
        return self._complete and self._shown[:2] == (asked, merge.weights)

    def mark_as_older(
        self, prompt: Any, merge: Mix, length: int, temperature: float, seed: int
    ) -> None:
        """Say beside the answers on the screen that they are to something else than this."""
        if self._shown is None or self.current(prompt, merge, length, temperature, seed):
            return
        asked, _, (texts, weights, turns) = self._shown
        note = "(of the gradient before)"
        notes = ("", note, "")
        if asked != (prompt, length, temperature, seed):
            notes = ("(of the question before)",) * 3
        self._show("columns", view.columns(texts, notes, weights, turns))


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The text of each token; a letter of several tokens comes with its last one."""
    written, found = "", []
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        if text.endswith("\ufffd") and end < len(tokens):
            continue
        found.append(text[len(written) :])
        written = text
    return found
