"""A wrong input in a notebook is one line; where it was raised is there for who asks."""

import ast
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

import labkit
from labkit import errors

PACKAGE = Path(labkit.__file__).parent


def test_options_are_spelled_as_the_reader_writes_them(monkeypatch):
    assert errors.spelled("rest=0", "--rest 0") == "rest=0"
    monkeypatch.setattr(errors, "_in_shell", False)
    errors.speak_shell()
    assert errors.spelled("rest=0", "--rest 0") == "--rest 0"


@pytest.mark.parametrize(
    "folder", ["gradients", "files", "models", "deltas", "merging", "surveys", "inference",
               "probing", "figures", "writing", "widgets", "bench"],
)  # fmt: skip
def test_no_other_message_names_an_option_of_the_shell(folder):
    """What Python can raise too names `--option` only as the second of two spellings."""
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        two_spellings = {
            id(inner)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "spelled"
            for inner in ast.walk(call)
        }
        for raised in ast.walk(tree):
            if not isinstance(raised, ast.Raise):
                continue
            for text in ast.walk(raised):
                if isinstance(text, ast.Constant) and id(text) not in two_spellings:
                    assert " --" not in str(text.value), f"{path.name}: {text.value}"


def test_one_line_in_a_notebook_and_all_of_it_on_demand(capsys, monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    shell.run_cell("import labkit as lk; lk.Gradient.parse('0,y')", store_history=True)
    said = "".join(capsys.readouterr())
    assert said.strip() == (
        "LabkitError: entry 2 of the layer weights, 'y', is not a number; write the weights as "
        "0,0,0.5,1 or with runs as 0x2,0.5,1 (%tb shows where)"
    )
    shell.run_cell("%tb", store_history=True)
    said = "".join(capsys.readouterr())
    assert "Traceback (most recent call last)" in said
    assert "gradient.py" in said
