"""Gathers what the book is made of into one folder, laid out as the repository is.

So links between README, notebooks and documents mean the same in the book as in the repository.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from docs.book.live_page import live_editors, write_live_parts
from docs.book.reference import write_reference

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
EXECUTED = ROOT / "build" / "executed"
"""Notebooks with their outputs, as the tests leave them."""
TEXTS = (
    "benchmarks/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "labkit/demonstration/README.md",
    "labkit/demonstration/data/README.md",
    "labkit/demonstration/adapters/*/README.md",
    "labkit/teaching/*.yaml",
    "notebooks/README.md",
    "docs/*.md",
    "docs/images/*",
    "recipes/*.yaml",
)
MARKDOWN = "text/markdown"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_STATES = "application/vnd.jupyter.widget-state+json"
LIVE = """{}<p class="live-note">Draw in it: this works without a kernel. A model that answers needs
the notebook itself; <a href="../try_it.html">Try it here</a> has what was measured before.</p>
<script src="../_static/without_kernel.js"></script><script src="../_static/widgets.js"></script>
"""
"""An editor in a notebook's page."""


def gather(folder: Path, again: bool = False) -> None:
    """Fill a folder with the book's sources.

    Args:
        folder: where; what is there is removed.
        again: execute every notebook, also those whose outputs are there.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for pattern in TEXTS:
        for path in sorted(ROOT.glob(pattern)):
            copy(path, folder)
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        nbformat.write(for_readers(executed(path, again)), target)
    write_index(folder, notebooks)
    write_recipes(folder)
    write_reference(folder / "reference")
    write_live_parts(folder)


def copy(path: Path, folder: Path) -> None:
    """A file under its name in the repository; README.md of the repository is the book's front."""
    target = folder / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".md":
        shutil.copyfile(path, target)
        return
    text = path.read_text(encoding="utf-8")
    up = "/".join([".."] * (len(target.relative_to(folder).parts) - 1) + ["README.md"])
    text = text.replace(f"]({up})", f"]({up.replace('README', 'index')})")
    target.write_text(text, encoding="utf-8")


def write_index(folder: Path, notebooks: list[Path]) -> None:
    """The front page: README, and what stands in the book's margin."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    frame = (HERE / "index.md").read_text(encoding="utf-8")
    overview = (ROOT / "notebooks").glob("README.md")
    pages = [path.relative_to(ROOT).with_suffix("") for path in (*overview, *notebooks)]
    listed = "\n".join(page.as_posix() for page in pages)
    title, _, rest = readme.partition("\n")
    page = frame.replace("{title}", title).replace("{readme}", in_both_themes(rest))
    (folder / "index.md").write_text(page.replace("{notebooks}", listed), encoding="utf-8")


def in_both_themes(text: str) -> str:
    """Pictures of which there is a dark one as well are shown in the reader's theme."""

    def both(found: re.Match[str]) -> str:
        said, path = found[1], Path(found[2])
        dark = path.with_name(f"{path.stem}-dark{path.suffix}")
        if not (ROOT / dark).is_file():
            return found[0]
        return f"![{said}]({path}){{.only-light}}\n![{said}]({dark}){{.only-dark}}"

    return re.sub(r"!\[([^\]]*)\]\(([^)]+)\)", both, text)


def write_recipes(folder: Path) -> None:
    lines = ["# Recipes", "", "`labkit merge --recipe FILE --out DIR` carries one out.", ""]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        lines += [f"## {path.stem}", "", f"```{{literalinclude}} {path.name}", "```", ""]
    (folder / "recipes" / "index.md").write_text("\n".join(lines), encoding="utf-8")


def executed(path: Path, again: bool = False) -> Any:
    """A notebook with outputs: the tests' copy where it has the same cells, else run now."""
    notebook = nbformat.read(path, as_version=4)
    kept = EXECUTED / path.name
    if kept.is_file() and not again:
        found = nbformat.read(kept, as_version=4)
        if sources(found) == sources(notebook):
            return found
    print(f"running {path.name}", flush=True)
    work = ROOT / "build" / "executing" / path.stem
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    )
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1"})
    shutil.rmtree(work)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    text = nbformat.writes(notebook).replace(f"{work}/", "")
    kept.write_text(text, encoding="utf-8")
    return notebook


def sources(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def for_readers(notebook: Any) -> Any:
    """Outputs as a page shows them: an editor draws without its kernel, other widgets are left out.

    The folders of the machine that ran it are nobody's business.
    """
    kept = notebook.metadata.pop("widgets", {}).get(WIDGET_STATES, {"state": {}})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if WIDGET in data:
                editors = live_editors(data[WIDGET]["model_id"], kept["state"])
                output.data = {"text/html": LIVE.format(editors)} if editors else {}
            if MARKDOWN in data:
                # A picture beside a file that a cell wrote; the page has its text.
                data[MARKDOWN] = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"*(\1)*", data[MARKDOWN])
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("data") != {}]
    text = nbformat.writes(notebook).replace(f"{ROOT}/", "")
    return nbformat.reads(re.sub(rf"(?<![\w./]){re.escape(str(Path.home()))}/", "~/", text), 4)
