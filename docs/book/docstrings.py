"""Docstrings use some Markdown, for terminals and editors; here it becomes what Sphinx reads.

Code between single backticks is a link where it names something public; a table is a table; lines
that are further in, after an empty line, are code.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole

NAME = re.compile(r"(?:lk\.)?([A-Za-z_]\w*(?:\.\w+)*)(?:\(\))?$")
RULE = re.compile(r"\|(?:-+\|)+$")


def named(
    _: str, rawtext: str, text: str, line: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[Any]]:
    """What stands between single backticks: code, and a link where it is a public name."""
    found = NAME.match(text)
    if not found:
        return [nodes.literal(rawtext, text)], []
    titled = f"{text} <{found[1]}>"
    return PyXRefRole()("py:obj", rawtext, titled, line, inliner, options, content)


def with_directives(lines: list[str]) -> list[str]:
    """A docstring's lines with its tables and code as directives."""
    found: list[str] = []
    in_code = False
    for number, line in enumerate(lines):
        begins = line.startswith("    ") and number > 0 and not lines[number - 1].strip()
        if begins and not in_code and _outside_sections(lines[:number]):
            found += [".. code-block:: python", ""]
            in_code = True
        elif line.strip() and not line.startswith("    "):
            in_code = False
        if not in_code and line.startswith("|"):
            found += _table_line(lines, number)
        elif number > 0 and lines[number - 1] in ("Returns:", "Yields:"):
            # Without a type before the first colon: types stand in the signature.
            found.append(f"    : {line.strip()}")
        else:
            found.append(line)
    return found


def _outside_sections(before: list[str]) -> bool:
    """Whether the last line that is not further in is a sentence, and no `Args:` of a section."""
    last = next((line for line in reversed(before) if line[:1].strip()), "")
    return not re.fullmatch(r"[A-Z]\w+:", last) and not last.startswith(("- ", "|"))


def _table_line(lines: list[str], number: int) -> list[str]:
    line = lines[number].strip()
    if RULE.fullmatch(line):
        return []
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    row = [f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() for i, cell in enumerate(cells)]
    if lines[number - 1].startswith("|"):
        return row
    return [".. list-table::", "   :header-rows: 1", "", *row]


def _process(_: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = with_directives(lines)


def _skip(_: Sphinx, kind: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a class has from a library's, such as matplotlib's."""
    module = getattr(getattr(value, "fget", value), "__module__", None) or "labkit"
    return None if module.split(".")[0] == "labkit" else True


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("named", named)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
