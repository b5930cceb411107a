"""`labkit.__all__` is the whole public interface, and what people read uses nothing else."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import labkit

ROOT = Path(__file__).parents[1]
NAMESPACES = {name for name in labkit.__all__ if inspect.ismodule(getattr(labkit, name))}
"""Modules that are public themselves, with the names in their own `__all__`."""


def code_of(path):
    """The Python in a file: of a script, a notebook's cells, or the fences of Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [text]
    if path.suffix == ".md":
        return fences(text)
    found = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        found += [source] if cell["cell_type"] == "code" else fences(source)
    return found


def fences(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def private_uses(code):
    """Lines that use what is not public, as (line, what). Code in strings counts too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and holds_code(node.value):
            yield from ((node.lineno, what) for _, what in private_uses(node.value))
        for what in names_of_labkit(node):
            if not is_public(what.split(".")[1:]):
                yield node.lineno, what


def holds_code(value):
    return isinstance(value, str) and re.search(r"(?m)^(import|from) labkit", value)


def names_of_labkit(node):
    """What a piece of Python names of labkit, in full: `labkit.figures.heatmap`."""
    names = []
    if isinstance(node, ast.Import):
        names = [name.name for name in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{name.name}" for name in node.names]
    elif isinstance(node, ast.Attribute):
        name = re.sub(r"^lk\.", "labkit.", ast.unparse(node))
        if re.fullmatch(r"labkit(\.\w+)+", name):
            # Beyond a class or a function are its own members.
            parts = name.split(".")
            names = [".".join(parts[: 3 if parts[1] in NAMESPACES else 2])]
    return [name for name in names if name.split(".")[0] == "labkit"]


def is_public(parts):
    if not parts or parts in (["__version__"], ["__file__"]):
        return True
    if parts[0] in NAMESPACES:
        return len(parts) == 1 or parts[1] in getattr(labkit, parts[0]).__all__
    return len(parts) == 1 and parts[0] in labkit.__all__


READ = [
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted((ROOT / "benchmarks").glob("*")),
]


@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_only_public_names_are_used(path):
    if path.suffix not in (".py", ".md", ".ipynb"):
        return
    for code in code_of(path):
        lines = code.splitlines()
        for line, what in private_uses(code):
            excused = path.parent.name == "benchmarks" and says_why(what, lines, line)
            assert excused, f"line {line}: {what}"


def says_why(what, lines, line):
    """Whether a benchmark, which may disturb the inside, says why above its import of it."""
    imports = re.compile(rf"(import|from) {'.'.join(what.split('.')[:2])}")
    above = [number for number in range(line) if imports.search(lines[number])]
    return bool(above) and lines[above[-1] - 1].strip().startswith("#")


def test_the_search_finds_each_kind():
    code = """
import labkit as lk
import labkit.files.cache
from labkit.files.cache import cache_folder
from labkit import plan, bake, files
from labkit import __version__
lk.Gradient.ramp(3, 0, 1)
lk.merging.planning.plan
labkit.Plan
CELL = '''
import labkit.surveys
'''
"""
    assert sorted({what for _, what in private_uses(code)}) == [
        "labkit.files", "labkit.files.cache", "labkit.files.cache.cache_folder", "labkit.merging",
        "labkit.surveys",
    ]  # fmt: skip


@pytest.mark.parametrize("name", labkit.__all__)
def test_every_public_name_explains_itself(name):
    value = getattr(labkit, name)
    explain_themselves(name, value)
    if name in NAMESPACES:
        for inner in value.__all__:
            explain_themselves(f"{name}.{inner}", getattr(value, inner))


def explain_themselves(name, value):
    text = value.__doc__ or ""
    # What `dataclass` writes where there is nothing is a signature.
    assert len(text) > 20, name
    assert not text.startswith(f"{name.rpartition('.')[2]}("), name


def test_what_the_shell_can_do_python_can():
    from labkit.cli.app import app
    from labkit.cli.recipes import recipes

    commands = {
        command.name or command.callback.__name__
        for command in (*app.registered_commands, *recipes.registered_commands)
    }
    in_python = {
        "demo": "demo", "inspect": "survey", "merge": "plan", "push": "push", "bake": "bake",
        "picture": "Gradient", "verify": "verify", "import": "import_recipe",
        "export": "export_recipe", "preset": "preset", "extract": "extract",
        "resize": "resize", "combine": "combine",
    }  # fmt: skip
    assert commands == in_python.keys()
    assert set(in_python.values()) <= set(labkit.__all__)


@pytest.mark.parametrize(("own", "expected"), [("", "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_torch_wait_asleep_unless_the_user_wants_it_otherwise(own, expected):
    """As OpenMP itself says when torch is loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE"} | ({"OMP_WAIT_POLICY": own} if own else {})
    run = [sys.executable, "-c", "import labkit, torch"]
    said = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{expected}'" in said.stderr
