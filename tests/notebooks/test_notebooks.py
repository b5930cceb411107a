"""Every notebook runs from top to bottom, and is committed clean."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 12  # lines of code


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1"})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    # A failing cell raises above; a warning in red would be shown to every reader.
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    shown = "".join(errors)
    assert "Warning" not in shown, shown


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
