"""The lab's answers: asks the live model, and shows what comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labkit.bench import view
from labkit.inference.live_model import LiveModel, Mix
from labkit.probing.evaluation import CONSTANTS
from labkit.probing.next_token import compare_next_token
from labkit.probing.text_plane import Given, TextPlane, text_plane

DRAW_EVERY = 0.1
"""Seconds between two drawings of a streaming answer."""


class Answers:
    """Answers of base, merge and full LoRA, keeping those that do not change with the gradient.

    Attributes:
        plane: the NLLs on the two texts, since these texts were measured first.

    Args:
        model: the live model.
        show: told what to show: "columns", "next" or "plane", and its HTML.
    """

    def __init__(self, model: LiveModel, show: Callable[[str, str], None]) -> None:
        self.model, self._show = model, show
        self.plane: TextPlane | None = None
        self._asked: tuple[Any, ...] = ()
        self._kept: list[list[str]] | None = None
        # What the columns show: the question, the merge's weights, and how they were drawn.
        self._complete = False
        self._shown: tuple[tuple[Any, ...], Any, tuple[Any, ...]] | None = None

    def measure(self, prompt: str, merge: Mix) -> None:
        """Show the next tokens after a prompt."""
        expected = compare_next_token(self.model, prompt, merge)
        self._show(
            "next", view.next_tokens(expected.rows, (expected.from_base, expected.from_full))
        )

    def place(self, texts: Mapping[str, Given], merge: Mix) -> None:
        """Show the NLLs on two texts."""
        if self.plane is None or self.plane.texts != texts:
            self.plane = text_plane(self.model, texts)
        self.plane = self.plane.with_merge(self.model, merge)
        self._show_plane()

    def place_constants(self, stopped: threading.Event) -> None:
        """Put the constants that are missing into the plane, which base and merge are in."""
        assert self.plane is not None  # noqa: S101 - `place` comes first
        for weight in CONSTANTS:
            if weight not in self.plane.constants and not stopped.is_set():
                self.plane = self.plane.with_constant(self.model, weight)
                self._show_plane()

    def _show_plane(self) -> None:
        plane = self.plane
        assert plane is not None  # noqa: S101
        best = plane.best_constant if len(plane.constants) == len(CONSTANTS) else None
        names, trail = list(plane.texts), plane.trail
        self._show("plane", view.plane(names, plane.base, plane.full, trail, plane.constants, best))

    def write(
        self,
        prompt: str,
        merge: Mix,
        length: int,
        temperature: float,
        seed: int,
        weights: str,
        stopped: threading.Event,
    ) -> None:
        """Stream the three answers until they end or `stopped` is set.

        Args:
            prompt: the text to go on from.
            merge: the merge's mixture.
            length: longest answer, in tokens.
            temperature: 0 always takes the most probable token.
            seed: of the random numbers.
            weights: the merge's gradient in a word, for the column's head.
            stopped: set from another thread to end early.
        """
        asked = (prompt, length, temperature, seed)
        self._complete = False
        kept = self._kept if asked == self._asked else None
        mixes = [merge] if kept else [self.model.mix(0), merge, self.model.mix(1)]
        tokens: list[list[int]] = [[] for _ in mixes]
        drawn = 0.0

        def draw(note: str) -> None:
            texts = [pieces(self.model.tokenizer, row) for row in tokens]
            if kept:
                texts = [kept[0], texts[0], kept[1]]
            notes = ("", note, "") if kept else (note, note, note)
            self._shown = (asked, merge.weights, (texts, weights))
            self._show("columns", view.columns(texts, notes, weights))

        draw("…")
        for step in self.model.stream(prompt, mixes, length, temperature, seed):
            for row, token in zip(tokens, step, strict=True):
                if token is not None:
                    row.append(token)
            if stopped.is_set():
                draw("(stopped)")
                return
            if time.monotonic() - drawn > DRAW_EVERY:
                draw("…")
                drawn = time.monotonic()
        draw("")
        if not kept:
            self._kept = [pieces(self.model.tokenizer, tokens[row]) for row in (0, 2)]
            self._asked = asked
        self._complete = True

    def current(self, prompt: str, merge: Mix, length: int, temperature: float, seed: int) -> bool:
        """Whether the columns hold whole answers to this, by this merge."""
        asked = (prompt, length, temperature, seed)
        if self._shown is None:
            return False
        return self._complete and self._shown[:2] == (asked, merge.weights)

    def mark_as_older(
        self, prompt: str, merge: Mix, length: int, temperature: float, seed: int
    ) -> None:
        """Say beside the answers on the screen that they are to something else than this."""
        if self._shown is None or self.current(prompt, merge, length, temperature, seed):
            return
        asked, _, (texts, weights) = self._shown
        note = "(of the gradient before)"
        notes = ("", note, "")
        if asked != (prompt, length, temperature, seed):
            notes = ("(of the question before)",) * 3
        self._show("columns", view.columns(texts, notes, weights))


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
