"""Notebooks come with outputs, and without what a page cannot show."""

import html
import json
import re

import nbformat
import pytest

from docs.book import gathering
from docs.book.gathering import executed, for_readers, gather, in_both_themes
from docs.book.live_page import EDITOR
from tests.notebooks.test_notebooks import EXECUTED

CODE = nbformat.v4.new_code_cell
WIDGET = gathering.WIDGET


def test_the_tests_leave_outputs_where_the_book_looks():
    assert EXECUTED == gathering.EXECUTED


def test_a_notebook_is_run_once_until_its_cells_change(tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "ROOT", tmp_path)
    monkeypatch.setattr(gathering, "EXECUTED", tmp_path / "executed")
    runs = tmp_path / "runs"
    source = f"with open({str(runs)!r}, 'a') as file:\n    file.write('x')\n6 * 7"
    path = tmp_path / "01_small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[CODE(source)]), path)
    for _ in range(2):
        assert executed(path).cells[0].outputs[0].data == {"text/plain": "42"}
    assert runs.read_text() == "x"
    nbformat.write(nbformat.v4.new_notebook(cells=[CODE(source + " + 1")]), path)
    assert executed(path).cells[0].outputs[0].data == {"text/plain": "43"}
    assert runs.read_text() == "xx"


def output(data):
    return nbformat.v4.new_output("display_data", data)


def test_an_editor_stays_and_other_widgets_go():
    states = {
        "box": {"state": {"children": ["IPY_MODEL_bar", "IPY_MODEL_editor"]}},
        "bar": {"state": {"value": 1}},
        "editor": {"state": {"_anywidget_id": EDITOR, "_esm": "…", "layout": "IPY_MODEL_bar",
                             "weights": [0.0, 1.0], "names": ["a<b", "'"]}},
    }  # fmt: skip
    cell = CODE("lab")
    for name in ("box", "bar"):
        view = {"model_id": name, "version_major": 2, "version_minor": 0}
        cell.outputs.append(output({WIDGET: view, "text/plain": "VBox(…)"}))
    cell.outputs.append(output({"text/plain": "kept"}))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata.widgets = {gathering.WIDGET_STATES: {"state": states}}
    shown = for_readers(notebook)
    live, kept = shown.cells[0].outputs
    value = re.search(r'data-state="([^"]*)"', live.data["text/html"])[1]
    assert json.loads(html.unescape(value)) == {"weights": [0.0, 1.0], "names": ["a<b", "'"]}
    assert kept.data == {"text/plain": "kept"}
    assert "widgets" not in shown.metadata


def test_folders_of_the_machine_are_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = f"{tmp_path}/cache/model {gathering.ROOT}/labkit ../..{tmp_path}/x"
    cell = CODE("x", outputs=[output({"text/plain": text})])
    (shown,) = for_readers(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert shown.data["text/plain"] == f"~/cache/model labkit ../..{tmp_path}/x"


def test_a_picture_beside_a_file_that_is_gone_is_its_text():
    cell = CODE("x", outputs=[output({"text/markdown": "![The weights](gradient.png) of it"})])
    (shown,) = for_readers(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert shown.data["text/markdown"] == "*(The weights)* of it"


def test_a_picture_with_a_dark_one_beside_it_is_shown_in_both_themes():
    assert in_both_themes("![Lab](docs/images/lab.png)\n![Moves](docs/images/lab.gif)") == (
        "![Lab](docs/images/lab.png){.only-light}\n![Lab](docs/images/lab-dark.png){.only-dark}\n"
        "![Moves](docs/images/lab.gif)"
    )


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gathered") / "book"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "executed", lambda path, again: nbformat.read(path, as_version=4))
        gather(folder)
    return folder


def test_every_notebook_and_document_is_in_the_book(gathered):
    front = (gathered / "index.md").read_text()
    notebooks = sorted((gathering.ROOT / "notebooks").glob("*.ipynb"))
    places = [front.index(f"\nnotebooks/{path.stem}\n") for path in notebooks]
    assert places == sorted(places)
    for path in (gathering.ROOT / "docs").glob("*.md"):
        assert (gathered / "docs" / path.name).is_file()
    assert "# labkit" in front
    assert "{" + "readme}" not in front


def test_links_to_the_readme_lead_to_the_front_page(gathered):
    for path in gathered.rglob("*.md"):
        up = "../" * (len(path.relative_to(gathered).parts) - 1)
        assert f"]({up}README.md)" not in path.read_text(), path
