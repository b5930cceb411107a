"""Changes labkit's code in one place at a time, and counts the changes that no test notices.

    uv run python -m benchmarks.mutants [MODULE ...] [--count 30] [--seed 0]

A mutant is a module with one small mistake: another operator, another constant, a root left out,
two arguments swapped, the attribute beside the one that is meant, a guard that never holds. A test
that fails kills it. What survives is printed with its line: a number that nobody checks, or a
mistake that is none.

mutmut runs all tests once to learn which of them reach a function, and cosmic-ray starts a process
for every mutant; here torch, transformers and peft would take minutes and most of the time. So this
process imports them once, and each mutant is a fork of it that runs the tests of its own module
(`tests/FOLDER/test_MODULE.py`, or those that TESTS names) in a copy of the tree, until the first
failure.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("labkit", "tests", "benchmarks", "notebooks", "recipes", "docs", "pyproject.toml",
         "environment.yml", "README.md", "CHANGELOG.md")  # fmt: skip
"""What tests need of a tree."""
TESTS: dict[str, tuple[str, ...]] = {
    "labkit/deltas": ("tests/deltas",),
    "labkit/merging/rounding.py": ("tests/merging/test_rounding_edges.py",
                                   "tests/merging/test_rounding.py"),
    "labkit/merging/rounding_on_device.py": ("tests/merging/test_rounding_edges.py",
                                             "tests/merging/test_rounding.py"),
    "labkit/publishing/baking.py": ("tests/publishing/test_baking_numbers.py",
                                    "tests/publishing/test_baking.py"),
    "labkit/merging/planning.py": ("tests/merging/test_plan_numbers.py",
                                   "tests/merging/test_planning.py"),
    "labkit/writing/card.py": ("tests/writing/test_card_numbers.py", "tests/writing/test_card.py"),
    "labkit/writing/write.py": ("tests/writing/test_write.py", "tests/merging/test_planning.py"),
}  # fmt: skip
"""The tests of a module, where they are not those of its name."""
FAILED, ENDLESS = "killed", "killed by its time"
SURVIVED = "survived"

SWAPPED_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
COMPARISONS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
LEFT_OUT = ("sqrt", "abs", "square", "log", "exp", "round", "sorted", "reversed", "norm", "mean")
"""Functions of one argument that a mistake leaves out."""
OTHER_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "max",
                   "zeros": "ones", "hypot": "max", "fsum": "max"}  # fmt: skip

KEPT_IN_ORDER = ("isinstance", "getattr", "replace", "join", "min", "max", "hypot")
"""Functions whose arguments are not swapped: nobody would, or it makes no difference."""


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake.

    Attributes:
        line: where it is.
        before: the expression as it stands there.
        after: the one in its place.
        source: the whole module with it.
    """

    line: int
    before: str
    after: str
    source: str


def mutants(text: str) -> list[Mutant]:
    """Every mutant of a module's source, in the order of its lines."""
    tree = ast.parse(text)
    found = []
    for place in places(tree):
        node = place.node
        for changed in changes(node, place.attributes):
            place.put(changed)
            source = ast.unparse(ast.fix_missing_locations(tree))
            place.put(node)
            before, after = ast.unparse(node), ast.unparse(changed)
            if before != after:
                found.append(Mutant(place.line, before, after, source))
    return sorted(found, key=lambda mutant: mutant.line)


@dataclass
class Place:
    """Where an expression or a statement stands in its parent."""

    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST
    line: int
    attributes: dict[str, set[str]]

    def put(self, node: ast.AST) -> None:
        """Let another node stand there."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def places(
    node: ast.AST, line: int = 0, attributes: dict[str, set[str]] | None = None
) -> Iterator[Place]:
    """Every place of code: types, imports, docstrings and the texts of errors are none."""
    attributes = attributes or {}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        attributes = attributes_in(node)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment", "bases"):
            continue
        listed = isinstance(value, list)
        for index, child in enumerate(value if listed else [value]):
            if not isinstance(child, ast.AST) or left_alone(child):
                continue
            here = getattr(child, "lineno", line)
            yield Place(node, field, index if listed else None, child, here, attributes)
            yield from places(child, here, attributes)


def left_alone(node: ast.AST) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    # `Name = A | B` is a type, and `int | None` in a call of cast is one, too.
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and isinstance(
        node.value.op, ast.BitOr) and ast.unparse(node.targets[0])[0].isupper() and not ast.unparse(
        node.targets[0]).isupper()  # fmt: skip


def attributes_in(function: ast.AST) -> dict[str, set[str]]:
    """The attributes that a function reads and does not call, by what it reads them of."""
    called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    found: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            continue
        if id(node) not in called and isinstance(node.ctx, ast.Load):
            found.setdefault(node.value.id, set()).add(node.attr)
    return found


def changes(node: ast.AST, attributes: dict[str, set[str]]) -> Iterator[ast.AST]:
    """What could stand in a node's place by mistake."""
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)):
        kind = SWAPPED_OPERATORS.get(type(node.op))
        if kind is not None and not any(is_text(child) for child in ast.walk(node)):
            yield with_(node, op=kind())
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield with_(node, left=node.right, right=node.left)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Compare):
        for kind in COMPARISONS[type(node.ops[0])]:
            yield with_(node, ops=[kind(), *node.ops[1:]])
    elif isinstance(node, ast.Constant) and not isinstance(node.value, (str, bytes)):
        yield from (ast.Constant(value) for value in other_constants(node.value))
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        if node.attr == "T":
            yield node.value
        elif isinstance(node.value, ast.Name):
            others = sorted(attributes.get(node.value.id, set()) - {node.attr, "T"})
            if others and node.attr in attributes[node.value.id]:
                yield with_(node, attr=random.Random(ast.unparse(node)).choice(others))
    elif isinstance(node, ast.Call):
        yield from other_calls(node)
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield with_(node, ifs=[])
    elif isinstance(node, ast.If):
        yield with_(node, test=ast.Constant(False))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def other_calls(node: ast.Call) -> Iterator[ast.AST]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in LEFT_OUT:
        if node.args:
            yield node.args[0]
        elif isinstance(node.func, ast.Attribute):
            yield node.func.value
    if name in OTHER_FUNCTIONS:
        other = OTHER_FUNCTIONS[name]
        if isinstance(node.func, ast.Name):
            yield with_(node, func=ast.Name(other))
        elif name not in ("fsum", "hypot"):
            yield with_(node, func=with_(node.func, attr=other))
        else:
            yield with_(node, func=ast.Name(other))
    plain = not any(isinstance(argument, ast.Starred) for argument in node.args)
    if plain and len(node.args) > 1 and name not in KEPT_IN_ORDER:
        yield with_(node, args=[node.args[1], node.args[0], *node.args[2:]])


def other_constants(value: object) -> tuple[object, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1,) if value > 1 else (1 - value, value + 2)
    return (value * 2,) if isinstance(value, float) else ()


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def with_(node: ast.AST, **changed: object) -> ast.AST:
    made = copy.copy(node)
    for name, value in changed.items():
        setattr(made, name, value)
    return made


# The tests, in a fork of this process for each mutant.


def tests_of(module: str) -> list[str]:
    """The test files of a module, those that are there."""
    path = Path(module)
    own = Path("tests", *path.parts[1:-1], f"test_{path.name}")
    chosen = TESTS.get(module) or TESTS.get(str(path.parent)) or (str(own),)
    named = [name for name in chosen if (ROOT / name).exists()]
    # A module without tests of its name has those of its folder.
    return named or [
        str(p.relative_to(ROOT)) for p in sorted((ROOT / own.parent).glob("test_*.py"))
    ]


def warm() -> None:
    """Import what takes long and is not labkit's."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                   "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}  # fmt: skip
    sys.dont_write_bytecode = True  # two mutants of one second would share their bytecode
    import beartype  # noqa: F401
    import hypothesis  # noqa: F401
    import jaxtyping  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401


def run(tree: Path, tests: list[str], limit: float) -> tuple[str, float]:
    """Run tests in a copy of the tree; tell how they ended and after how many seconds."""
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        run_tests(tree, tests)
    while time.perf_counter() - began < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            # 0: all passed; 1: some failed; 2 and more: not even collected, or killed.
            result = SURVIVED if os.waitstatus_to_exitcode(status) == 0 else FAILED
            return result, time.perf_counter() - began
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return ENDLESS, limit


def run_tests(tree: Path, tests: list[str]) -> None:
    """Run pytest and end this process with its status."""
    status = 3
    try:
        os.setsid()  # with the processes that tests start it ends as one
        nowhere = os.open(os.devnull, os.O_RDWR)
        output = os.open(tree / "output.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for number, target in enumerate((nowhere, output, output)):
            os.dup2(target, number)
        os.chdir(tree)
        os.environ["PYTHONPATH"] = str(tree)
        sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.split(".")[0] in PARTS]:
            del sys.modules[name]
        import pytest

        status = int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", *tests]))
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def examine(module: str, count: int, seed: int, tree: Path) -> tuple[int, int]:
    """Try some mutants of a module; print what survives. Gives the killed and the tried."""
    path = tree / module
    text = path.read_text()
    tests = tests_of(module)
    result, seconds = run(tree, tests, 600)
    if result != SURVIVED:
        sys.exit(f"{module}: its tests fail as it is:\n{(tree / 'output.txt').read_text()[-2000:]}")
    everything = mutants(text)
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    chosen.sort(key=lambda mutant: mutant.line)
    ends: list[str] = []
    print(f"{module}: {len(chosen)} of {len(everything)} mutants, {seconds:.1f} s without one, by "
          f"{' '.join(tests)}", flush=True)  # fmt: skip
    for mutant in chosen:
        path.write_text(mutant.source)
        ended, _ = run(tree, tests, 10 + 3 * seconds)
        ends.append(ended)
        if ended == SURVIVED:
            print(f"  line {mutant.line}: {short(mutant.before)}  →  {short(mutant.after)}",
                  flush=True)  # fmt: skip
    path.write_text(text)
    survived = ends.count(SURVIVED)
    killed = len(ends) - survived
    print(
        f"  {killed} killed ({ends.count(ENDLESS)} by their time), {survived} survived", flush=True
    )
    return killed, len(ends)


def short(code: str) -> str:
    line = " ".join(code.split())
    return line if len(line) <= 110 else f"{line[:107]}..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="such as labkit/writing/card.py; or folders")
    parser.add_argument("--count", type=int, default=30, help="mutants of each module at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    named = [ROOT / name for name in given.modules or MODULES]
    files = [p for name in named for p in (sorted(name.rglob("*.py")) if name.is_dir() else [name])]
    warm()
    with tempfile.TemporaryDirectory(prefix="labkit-mutants-") as folder:
        tree = Path(folder)
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("*.pyc"))
            else:
                shutil.copy(ROOT / part, tree / part)
        rows = {}
        for file in files:
            module = str(file.relative_to(ROOT))
            if file.name != "__init__.py":
                rows[module] = examine(module, given.count, given.seed, tree)
    print("\n| module | mutants | killed | survived |\n|---|---:|---:|---:|")
    for module, (killed, tried) in rows.items():
        print(f"| {module.removeprefix('labkit/')} | {tried} | {killed} | {tried - killed} |")


MODULES = (
    "labkit/merging/rounding.py", "labkit/merging/rounding_on_device.py", "labkit/deltas",
    "labkit/merging/planning.py", "labkit/surveys", "labkit/inference/live_model.py",
    "labkit/probing", "labkit/bench/answering.py", "labkit/writing/card.py",
    "labkit/writing/receipt.py", "labkit/writing/write.py", "labkit/publishing/baking.py",
)  # fmt: skip
"""Where the numbers are made that people see, and those that guard the promise."""


if __name__ == "__main__":
    main()
