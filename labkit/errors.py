"""The one error that labkit raises on purpose, and how text from files is made safe to show."""

from __future__ import annotations

LONGEST_SHOWN = 160


class LabkitError(Exception):
    """Wrong input, said in one line: what, where, expected, found, what to do."""


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
