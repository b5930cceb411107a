"""The parts of the book that need no notebook, built as the whole is."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("sphinx", reason="the book's packages are not installed: --group book")


@pytest.fixture(scope="session")
def small_book(tmp_path_factory):
    """The reference and the page to try, with a front page of their own."""
    from docs.book.__main__ import build
    from docs.book.live_page import write_live_parts
    from docs.book.reference import write_reference

    folder = tmp_path_factory.mktemp("book")
    write_live_parts(folder / "sources")
    write_reference(folder / "sources" / "reference")
    (folder / "sources" / "index.md").write_text(
        "# Front\n\nA formula: $\\Delta W = s B A, \\dots$.\n\n"
        "```{toctree}\ntry_it\nreference/index\n```\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sphinx looks at what others have given up
        assert build(folder / "sources", folder / "pages") == 0
    return folder / "pages"
