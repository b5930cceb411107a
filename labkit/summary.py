"""How a plan or a receipt shows itself: a label and a text for each line."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterator

from labkit.errors import shown

LONGEST_LINE = 400


class Summary(ABC):
    """Something that says what it is in a few labelled lines; a notebook shows them as a table."""

    @abstractmethod
    def summary(self) -> Iterator[tuple[str, str]]:
        """The lines: a label and a text each."""

    def __repr__(self) -> str:
        return "\n".join(
            f"{label:<8} {shown(text, LONGEST_LINE)}" for label, text in self.summary()
        )

    def _repr_html_(self) -> str:
        # Alignment is said cell by cell: notebooks align tables to the right.
        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top">{html.escape(shown(label))}</th>'
            '<td style="text-align:left;overflow-wrap:anywhere">'
            f"{html.escape(shown(text, LONGEST_LINE))}</td></tr>"
            for label, text in self.summary()
        )
        return f"<table>{rows}</table>"
