"""Builds the book into build/book, and checks its links.

    uv run --group book python -m docs.book           # then open build/book/index.html
    uv run --group book python -m docs.book --again   # runs every notebook first

Notebooks whose outputs are in build/executed, where the tests leave them, are not run again while
their cells are the same. A warning is an error. Nothing is fetched from a network, neither by the
build nor by the pages.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

from docs.book.gathering import ROOT, gather
from docs.book.links import problems

BOOK = ROOT / "build" / "book"


def build(sources: Path, out: Path) -> int:
    """Build pages from gathered sources; how many errors and warnings there were, at least."""
    shutil.rmtree(out, ignore_errors=True)
    strict = ["-q", "-W", "--keep-going", "-d", str(out.with_name(f"{out.name}-doctrees"))]
    settings = ["-c", str(Path(__file__).parent), "-D", f"html_static_path={sources / '_static'}"]
    return sphinx(["-b", "html", *strict, *settings, str(sources), str(out)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.book", description=__doc__)
    parser.add_argument("--again", action="store_true", help="run every notebook")
    given = parser.parse_args()
    sources = ROOT / "build" / "book-sources"
    gather(sources, given.again)
    failed = build(sources, BOOK)
    found = problems(BOOK)
    for line in found:
        print(line, file=sys.stderr)
    if failed or found:
        return 1
    pages = len(list(BOOK.rglob("*.html")))
    print(f"{pages} pages in {BOOK.relative_to(ROOT)}; open {BOOK.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
