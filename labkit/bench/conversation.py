"""A chat of several turns: what base, merge and full LoRA have each said so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets

from labkit.bench import view
from labkit.bench.panel import row
from labkit.bench.runs import Turn
from labkit.inference.prompts import CHAT, formatted


class Conversation:
    """The turns before the prompt on the screen, kept for each of the three models.

    Each model goes on from its own answers. The merge's are those of the gradients that were drawn
    when it gave them.

    Args:
        go_on: called when the answers on the screen are to become a turn; gives that turn, or
            nothing where they are not whole.
        changed: called when there are other turns than before.

    Attributes:
        turns: what was said before; each model's own last.
        widget: the buttons, which are shown with the chat template alone.
    """

    def __init__(self, go_on: Callable[[], Turn | None], changed: Callable[[], None]) -> None:
        self.turns: tuple[Turn, ...] = ()
        self._go_on, self._changed = go_on, changed
        self.more = ipywidgets.Button(
            description="Continue the conversation", icon="comments", layout={"width": "auto"},
            tooltip="keep these answers as what was said, and write the next prompt",
        )  # fmt: skip
        self.afresh = ipywidgets.Button(
            description="New conversation", icon="comment", layout={"width": "auto"}
        )
        self.said = ipywidgets.HTML()
        self.more.on_click(lambda _: self._continue())
        self.afresh.on_click(lambda _: self.set(()))
        self.widget = row(self.more, self.afresh, self.said)
        self.show("")

    def show(self, kind: str) -> None:
        """Show the buttons where the format has turns."""
        self.widget.layout.display = "flex" if kind == CHAT else "none"

    def set(self, turns: tuple[Turn, ...]) -> None:
        """Put other turns in place."""
        self.turns = turns
        count = f"{len(turns)} turn{'s' * (len(turns) > 1)} before this prompt"
        self.said.value = view.remark(count) if turns else ""
        self._changed()

    def _continue(self) -> None:
        turn = self._go_on()
        if turn is None:
            self.said.value = view.remark("wait for whole answers to the prompt on the screen")
        else:
            self.set((*self.turns, turn))


def asked(prompt: str, kind: str, tokenizer: Any, turns: tuple[Turn, ...]) -> tuple[str, str, str]:
    """What base, merge and full LoRA read: each the turns with its own answers, and the prompt.

    Raises:
        LabkitError: as `formatted`.
    """
    base, merged, full = (
        formatted(prompt, kind, tokenizer, [(turn[0], turn[model]) for turn in turns])
        for model in (1, 2, 3)
    )
    return base, merged, full
