"""Links that lead nowhere are found, and what would be fetched from elsewhere."""

from docs.book.links import problems


def test_each_kind_of_problem_is_found(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.html").write_text('<p id="here">b</p><a href="../a.html#top">a</a>')
    (tmp_path / "a.html").write_text(
        '<h1 id="top">a</h1><a href="folder/b.html#here">fine</a><a href="#top">fine</a>'
        '<a href="https://example.org/elsewhere">fine</a><img src="data:image/png;base64,AA">'
        '<link rel="canonical" href="https://example.org/a"><a href="mailto:a@example.org">fine</a>'
        '<a href="c.html">gone</a><a href="folder/b.html#gone">gone</a><a href="#gone">gone</a>'
        '<img src="picture.png"><script src="https://example.org/a.js"></script>'
        '<link rel="stylesheet" href="//example.org/a.css">'
    )
    assert problems(tmp_path) == [
        "a.html: leads nowhere: c.html",
        "a.html: there is no such place in the page: folder/b.html#gone",
        "a.html: there is no such place in the page: #gone",
        "a.html: leads nowhere: picture.png",
        "a.html: is fetched from elsewhere when the page opens: https://example.org/a.js",
        "a.html: is fetched from elsewhere when the page opens: //example.org/a.css",
    ]


def test_the_small_book_has_none(small_book):
    assert problems(small_book) == []
    assert len(list(small_book.rglob("*.html"))) > 10


def test_formulas_are_drawn_by_the_browser(small_book):
    front = (small_book / "index.html").read_text()
    assert "<math" in front
    assert "MathJax" not in front
