"""Every notebook runs from top to bottom, and is committed clean."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from transformers import AutoTokenizer

from labkit.demonstration.base import base_folder
from tests.tiny import make_adapter, make_base

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
EXECUTED = ROOT / "build" / "executed"  # where the book (docs/book) looks for outputs
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 12  # lines of code
NUMBER = r"-?\d+(?:\.\d+)?%?"


def _execute(notebook, folder):
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1"})


def _assert_sentences_say_what_is_measured(notebook):
    """A number between backticks in a Reveal is one that a cell above it has printed."""
    printed = set()
    for cell in notebook.cells:
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
    _execute(notebook, tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    # A failing cell raises above; a warning in red would be shown to every reader.
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    shown = "".join(errors)
    assert "Warning" not in shown, shown
    _assert_sentences_say_what_is_measured(notebook)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    text = nbformat.writes(notebook).replace(f"{tmp_path}/", "")
    (EXECUTED / path.name).write_text(text, encoding="utf-8")


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


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_any_base_and_adapter(path, others, tmp_path):
    notebook = nbformat.read(path, as_version=4)
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
    assert replaced == (3 if path.stem[:2] in ("02", "07") else 2)
    _execute(notebook, tmp_path)


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
