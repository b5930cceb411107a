"""Every notebook runs from top to bottom, says what it measures, and is committed clean.

A sentence that says which of two is larger, or that two cannot be told apart, has its claim beside
it: `<!-- holds: EXPRESSION -->` in the same cell, which no reader sees. It is evaluated in the
notebook's kernel, where the sentence stands. `says(row, text)` is the verdict of the notebook's
table `measured`, and `from_base(row, text)` that of the difference to the base;
`from_constant(row)` and `above_the_curve(name)` are for notebook 7.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from transformers import AutoTokenizer

from labkit.demonstration.base import base_folder
from labkit.teaching.question import questions
from tests.tiny import make_adapter, make_base

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
EXECUTED = ROOT / "build" / "executed"  # where the book (docs/book) looks for outputs
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WITH_QUESTIONS = [path for path in NOTEBOOKS if "lk.check(" in path.read_text(encoding="utf-8")]
LONGEST_CELL = 12  # lines of code
NUMBER = r"-?\d+(?:\.\d+)?%?"
HOLDS = re.compile(r"<!-- holds: (.+?) -->")
WIDGET = "application/vnd.jupyter.widget-view+json"
CHECK = re.compile(r'lk\.check\("(\w+\.\d+)"')
VERDICTS = """
def says(row, text):
    (found,) = measured[(measured["gradient"] == row) & (measured["text"] == text)]["verdict"]
    return found


def from_base(row, text):
    chosen = measured[(measured["gradient"] == row) & (measured["text"] == text)]
    (low,), (high,) = chosen["from_base_low"], chosen["from_base_high"]
    return "lower" if high < 0 else "higher" if low > 0 else "not told apart"


def from_constant(row):
    chosen = found.table[(found.table["metric"] == "nll") & (found.table["gradient"] == row)]
    (low,), (high,) = chosen["from_constant_low"], chosen["from_constant_high"]
    return "lower" if high < 0 else "higher" if low > 0 else "not told apart"


def above_the_curve(name):
    import numpy

    at = numpy.interp(cost.estimate[name], cost.estimate[curve], gain.from_base[curve])
    return gain.from_base[name] > at
"""


def _execute(notebook, folder, kernel=None):
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1"})
    finally:
        if kernel is not None:  # which goes on for the next one, without this client
            client.kc.stop_channels()


def _name_of(path):
    """The notebook's number, as its questions begin."""
    return path.stem.partition("_")[0]


def _with_claims(notebook, name):
    """Put a cell after each sentence that asserts what it claims, and the questions' at the end."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code":
            cell.source = cell.source.replace("tried_them = False", "tried_them = True")
            continue
        claims = [f"assert {claim}, {claim!r}" for claim in HOLDS.findall(cell.source)]
        if claims:
            cells.append(nbformat.v4.new_code_cell("\n".join([VERDICTS, *claims])))
    asked = [one for one in questions().values() if one.name.startswith(f"{name}.")]
    claims = [
        f"answer = {one.measured}\n"
        f"assert question({one.name!r}).accepts(answer), ({one.name!r}, answer)"
        for one in asked
    ]
    start = "from labkit.teaching.question import question"
    cells.append(nbformat.v4.new_code_cell("\n".join([start, VERDICTS, *claims])))
    notebook.cells = cells


def _assert_sentences_say_what_is_measured(notebook):
    """A number between backticks in a Reveal is one that a cell above it has printed."""
    printed = set()
    for cell in notebook.cells:
        if CHECK.search(cell.source):  # a question measures nothing
            continue
        if cell.cell_type == "markdown" and cell.source.startswith("**Reveal"):
            said = re.findall(rf"`({NUMBER})`", cell.source)
            assert set(said) <= printed, f"{set(said) - printed} not measured: {cell.source}"
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            printed.update(re.findall(NUMBER, text))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    _with_claims(notebook, _name_of(path))
    _execute(notebook, tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    # A failing cell raises above; a warning in red would be shown to every reader.
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    shown = "".join(errors)
    assert "Warning" not in shown, shown
    # A widget that is saved without its state shows an error; only labs need one.
    widgets = [cell.source for cell in notebook.cells if WIDGET in str(cell.get("outputs"))]
    assert _name_of(path) in ("04", "07") or widgets == []
    _assert_sentences_say_what_is_measured(notebook)
    if _cleans_up(notebook):
        assert list(tmp_path.iterdir()) == []
    _leave_for_the_book(path, notebook, tmp_path)


def _leave_for_the_book(path, ran, folder):
    """The notebook as it is committed, with the outputs of those cells that ran as they stand."""
    notebook = nbformat.read(path, as_version=4)
    cells = {cell.id: cell for cell in ran.cells}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cells[cell.id].source == cell.source:
            cell.outputs = cells[cell.id].outputs
    notebook.metadata.widgets = ran.metadata.get("widgets", {})
    EXECUTED.mkdir(parents=True, exist_ok=True)
    text = nbformat.writes(notebook).replace(f"{folder}/", "")
    (EXECUTED / path.name).write_text(text, encoding="utf-8")


def _cleans_up(notebook):
    return any("## Clean up" in cell.source for cell in notebook.cells)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A base and two adapters that are not the demo's, with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("others")
    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    base = make_base(
        folder / "base", torch.float16, layers=12, vocab_size=len(tokenizer),
        tie_word_embeddings=False,
    )  # fmt: skip
    tokenizer.save_pretrained(base)
    make_adapter(folder / "one", base, target_modules=["q_proj", "v_proj"], r=2)
    make_adapter(folder / "two", base, target_modules=["q_proj", "v_proj", "down_proj"], r=3)
    return {"base": base, "lora": folder / "one", "other": folder / "two"}


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all notebooks: to import everything takes longer than a notebook's tiny base.

    That each runs in a kernel of its own, the test from top to bottom says.
    """
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_any_base_and_adapter(path, others, kernel, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    begin = f"%reset -f\n%cd -q {tmp_path}\nimport labkit as lk\nlk.free()\ndel lk"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    replaced = 0
    for cell in notebook.cells:
        for start, made in (
            ("base, loras = ", f"base = lk.Checkpoint({str(others['base'])!r})"),
            ("lora = ", f"lora = lk.Adapter({str(others['lora'])!r})"),
            ("other = ", f"other = lk.Adapter({str(others['other'])!r})"),
        ):
            pattern = rf"(?m)^{start}.*(lk\.demo|loras\[).*$"
            cell.source, count = re.subn(pattern, lambda _, made=made: made, cell.source)
            replaced += count
    assert replaced == (3 if _name_of(path) in ("02b", "07", "08") else 2)
    _execute(notebook, tmp_path, kernel)


@pytest.mark.parametrize("path", WITH_QUESTIONS, ids=lambda path: path.stem)
def test_each_prediction_can_be_checked_and_has_a_reveal(path):
    cells = nbformat.read(path, as_version=4).cells
    found = []
    for number, cell in enumerate(cells):
        if cell.cell_type == "markdown" and "**Predict first.**" in cell.source:
            check = cells[number + 1].source
            assert check.startswith("my_answer = ...  # "), cell.source
            found += CHECK.findall(check)
            (asked,) = CHECK.findall(check)
            named = re.search(r"my_answer, (lora|other)\b", check)
            assert bool(named) == bool(questions()[asked].adapters), check
            assert any(later.source.startswith("**Reveal") for later in cells[number:])
        elif cell.cell_type == "markdown" and cell.source.startswith("**Reveal"):
            assert HOLDS.search(cell.source), f"nothing is claimed: {cell.source}"
    assert found == [one for one in questions() if one.startswith(f"{_name_of(path)}.")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_clean(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in content["metadata"]
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            assert cell["execution_count"] is None
            lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
            assert len(lines) <= LONGEST_CELL, "".join(cell["source"])
