"""The reference's pages, from `labkit/__init__.pyi` and the docstrings.

A page for each folder of the house that has public names, in the order of CONTRIBUTING.md's table.
Classes that public functions give back have a place on it too: people hold them in their hands.
"""

from __future__ import annotations

import ast
import inspect
import operator
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

import labkit
from labkit.cli.app import app

ROOT = Path(__file__).parents[2]
TERMINAL = {"COLUMNS": "88", "TERMINAL_WIDTH": "88", "NO_COLOR": "1", "TERM": "dumb"}


def public_names() -> dict[str, list[str]]:
    """The public names of each folder of labkit, as `labkit/__init__.pyi` lists them."""
    found: dict[str, list[str]] = {}
    for node in ast.parse((ROOT / "labkit" / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                folder = (node.module or name.name).split(".")[0]
                found.setdefault(folder, []).append(name.asname or name.name)
    return found


def folders() -> dict[str, str]:
    """What each folder is for, from CONTRIBUTING.md's table, in its order."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \| (.*?) \|", table, re.MULTILINE)
    return dict(rows)


def write_reference(folder: Path) -> None:
    """Write the pages into a folder of their own.

    Args:
        folder: where; it is made.
    """
    folder.mkdir(parents=True)
    groups, given = public_names(), given_back()
    wanted = {*groups, *map(folder_of, given)}
    pages = {name: purpose for name, purpose in folders().items() if name in wanted}
    for name, purpose in pages.items():
        mine = [one for one in given if folder_of(one) == name]
        text = page(name, purpose, groups.get(name, []), mine)
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    (folder / "command_line.rst").write_text(command_line(), encoding="utf-8")
    (folder / "index.rst").write_text(contents(pages, groups), encoding="utf-8")


def contents(pages: dict[str, str], groups: dict[str, list[str]]) -> str:
    lines = [
        *heading("Reference", "="),
        "Every public name: ``import labkit as lk``, then ``lk.Gradient`` and so on.",
        "",
    ]
    for name, purpose in pages.items():
        lines += [f":doc:`{name}`", f"    {as_rst(purpose)}", ""]
        listed = sorted(documented(groups.get(name, [])), key=str.lower)
        if listed:
            links = [f":py:obj:`~labkit.{one}`" for one in listed]
            lines += [f"    {' · '.join(links)}", ""]
    lines += [":doc:`command_line`", "    every command with its options", ""]
    lines += [".. toctree::", "   :hidden:", ""]
    return "\n".join([*lines, *(f"   {name}" for name in [*pages, "command_line"]), ""])


def command_line() -> str:
    """The page of commands: what each says with `--help`."""
    lines = heading("The command line", "=")
    for words in commands(typer.main.get_command(app), []):
        said = CliRunner().invoke(app, [*words, "--help"], env=TERMINAL, prog_name="labkit").output
        text = [f"   {line}".rstrip() for line in said.strip().splitlines()]
        title = " ".join(["labkit", *words])
        lines += [*heading(title, "-"), ".. code-block:: text", "", *text, ""]
    return "\n".join(lines)


def commands(command: Any, words: list[str]) -> Iterator[list[str]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, [*words, name])


def documented(names: list[str]) -> list[str]:
    """Names with those inside public modules: `figures.heatmap` in place of `figures`."""
    found = []
    for name in names:
        value = getattr(labkit, name)
        inner = value.__all__ if isinstance(value, types.ModuleType) else []
        found += [f"{name}.{one}" for one in inner] or [name]
    return found


def page(name: str, purpose: str, public: list[str], given: list[type]) -> str:
    lines = [*heading(name.capitalize(), "="), f"{purpose[0].upper()}{as_rst(purpose[1:])}.", ""]
    lines += [".. currentmodule:: labkit", ""]
    for one in documented(public):
        lines += directive(operator.attrgetter(one)(labkit), f"labkit.{one}")
    if given:
        lines += heading("What functions give back", "-")
        for value in given:
            lines += directive(value, f"{value.__module__}.{value.__qualname__}")
    return "\n".join(lines)


def folder_of(value: type) -> str:
    return value.__module__.split(".")[1]


def directive(value: Any, name: str) -> list[str]:
    kind = "autofunction"
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, Exception) else "autoclass"
    return [f".. {kind}:: {name}", *(["   :members:"] if kind == "autoclass" else []), ""]


def given_back() -> list[type]:
    """The classes of labkit that public functions give back and that are not public by name."""
    public = {getattr(labkit, name) for name in labkit.__all__}
    found: dict[type, None] = {}
    for value in public:
        for function in functions_of(value):
            returned = str(inspect.signature(function).return_annotation)
            for word in re.findall(r"\w+", returned):
                one = getattr(sys.modules[function.__module__], word, None)
                own = inspect.isclass(one) and one.__module__.startswith("labkit.")
                if own and one not in public and not word.startswith("_"):
                    found[one] = None
    return sorted(found, key=lambda one: (one.__module__, one.__name__))


def functions_of(value: Any) -> Iterator[Any]:
    if inspect.isfunction(value):
        yield value
    elif inspect.isclass(value) and value.__module__.startswith("labkit."):
        for name, member in vars(value).items():
            member = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if inspect.isfunction(member) and not name.startswith("_"):
                yield member


def heading(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]


def as_rst(text: str) -> str:
    """A table's Markdown, of which only code has another form."""
    return re.sub(r"`([^`]+)`", r"``\1``", text)
