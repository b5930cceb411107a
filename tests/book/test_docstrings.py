"""Markdown in docstrings becomes what Sphinx reads."""

from docs.book.docstrings import with_directives


def test_a_table():
    lines = [
        "Columns:",
        "",
        "| name | what |",
        "|---|---|",
        "| `a` | one |",
        "| `b` | |",
        "",
        "End.",
    ]
    assert with_directives(lines) == [
        "Columns:", "",
        ".. list-table::", "   :header-rows: 1", "",
        "   * - name", "     - what",
        "   * - `a`", "     - one",
        "   * - `b`", "     -",
        "", "End.",
    ]  # fmt: skip


def test_code_further_in():
    lines = ["Do this:", "", "    one = 1", "    if one:", "        two()", "", "Then that."]
    assert with_directives(lines) == [
        "Do this:", "", ".. code-block:: python", "", *lines[2:],
    ]  # fmt: skip


def test_a_section_of_arguments_is_no_code():
    lines = ["Make it.", "", "Args:", "    first: of two", "        lines.", "", "    second: one."]
    assert with_directives(lines) == lines
