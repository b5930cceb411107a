"""Ctrl-C, SIGTERM and SIGHUP while a folder is built: the first ends it, no other its clean-up."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruptions:
    """Stands between the signals that end a program and what they interrupt, inside `with`.

    The first signal does what it always does: it raises `KeyboardInterrupt`, as a rule. From then
    on signals wait until the block has ended, and so they do after `hold`. One that waited is
    delivered at the end, unless an error ends the work by itself.

    Signals reach only Python's main thread; in another one this does nothing. Neither does it for
    a signal that Python does not handle: one that kills at once, or that is ignored.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._held = False
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._done = ""

    def hold(self, done: str = "") -> None:
        """Let signals wait from now on.

        Args:
            done: what is true at the end, unless an error says something else; it becomes a note
                of what an interruption then raises.
        """
        self._held = True
        self._done = done or self._done

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in SIGNALS:
                    if callable(handler := signal.getsignal(number)):
                        self._before[number] = handler
                        signal.signal(number, self._came)
            except BaseException:  # one came already
                self._restore()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._restore()
        if kind is None and self._waiting:
            number, frame = self._waiting[0]
            try:
                self._before[number](number, frame)
            except BaseException as error:
                if self._done:
                    error.add_note(self._done)
                raise

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._waiting.append((number, frame))
            return
        self._held = True
        self._before[number](number, frame)
        self._held = False  # its handler lets the program go on
