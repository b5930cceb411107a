"""Public names in highlighted code become links."""

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from docs.book.code_links import linked

ADDRESS = {
    "labkit.Gradient": "r.html#Gradient",
    "labkit.Gradient.ramp": "r.html#ramp",
    "labkit.figures.heatmap": "f.html#heatmap",
}


def test_the_longest_known_name_is_linked():
    lines = ["Gradient.ramp(1)", "Gradient.nothing", "figures.heatmap(x)", "other"]
    code = "\n".join([*(f"lk.{line}" for line in lines), "other.Gradient"])
    page = linked(highlight(code, PythonLexer(), HtmlFormatter()), ADDRESS)
    assert page.count("<a ") == 3
    lines = page.splitlines()
    assert 'href="r.html#ramp"><span class="n">lk</span>' in lines[0]
    assert '<span class="n">ramp</span></a><span class="p">(' in lines[0]
    assert '<span class="n">Gradient</span></a><span class="o">.</span>' in lines[1]
    assert 'href="f.html#heatmap"' in lines[2]
    assert "<a " not in lines[3] + lines[4]
