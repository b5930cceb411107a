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


def test_a_sentence_with_a_colon_is_what_is_returned_and_no_type(small_book):
    assert with_directives(["Returns:", "    one: two", "    three."])[1] == "    : one: two"
    page = (small_book / "reference" / "surveys.html").read_text()
    assert "A row for each layer or module: its name" in page
    assert "Return type" not in page
