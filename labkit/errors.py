"""The one error that labkit raises on purpose, and how text from files is made safe to show."""

from __future__ import annotations

import sys
import traceback

LONGEST_SHOWN = 160

_in_shell = False


class LabkitError(Exception):
    """Wrong input, said in one line: what, where, expected, found, what to do."""

    _shown_in: int | None = None

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: one line; and where it was raised, once a later cell asks (`%tb`).

        IPython asks for it several times in the cell that raised it.
        """
        cell = sys.modules["IPython"].get_ipython().execution_count
        if self._shown_in is None:
            self._shown_in = cell
        if cell != self._shown_in:
            return traceback.format_exception(self)
        return [f"{type(self).__name__}: {self} (%tb shows where)"]


def speak_shell() -> None:
    """From now on, messages name options as the command line spells them."""
    global _in_shell
    _in_shell = True


def spelled(python: str, shell: str) -> str:
    """How the reader of a message writes something: in Python, or on the command line."""
    return shell if _in_shell else python


def with_kind(error: BaseException) -> str:
    """An error's text; before it its kind, where labkit did not raise it on purpose."""
    return str(error) if isinstance(error, LabkitError) else f"{type(error).__name__}: {error}"


def shown(text: object, longest: int = LONGEST_SHOWN) -> str:
    """Text from a file or a user, safe to print: one line, no control characters, not too long.

    Names in model files are not to be trusted: they may hold newlines or terminal escape
    sequences, or run to thousands of characters.
    """
    line = str(text)
    if not line.isprintable():
        line = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in line
        )
    if len(line) <= longest:
        return line
    return f"{line[: longest - 20]}… ({len(line)} characters)"
