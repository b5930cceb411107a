"""What the lab draws: every number in its own place, and every text escaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from labkit.bench import view
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR, LIGHT_INK, MARK


def test_html_is_escaped():
    nasty = "<script>alert(1)</script>"
    made = view.columns([[nasty], [nasty], ["other"]], (nasty, "", ""), nasty)
    made += view.next_tokens([(nasty, (0.5, 0.5, 0.5))], (0.0, 0.0))
    made += view.plane([nasty, nasty], (1, 2), (2, 1), [(1, 1)])
    made += view.problem(nasty) + view.status(nasty) + view.remark(nasty)
    assert "<script" not in made


def test_differing_tokens_are_marked():
    assert view.marked([" a", " b", " c"], [" a", " x", " c"]) == " a<mark> b</mark> c"
    assert view.marked([], [" a"]) == ""


def test_each_answer_is_in_its_column():
    made = ElementTree.fromstring(
        view.columns([["a", "b"], ["a", "x"], ["c"]], ("one", "two", "three"), "mean weight 0.5")
    )
    columns = {column.get("class"): column for column in made}
    read = {kind: " ".join("".join(column.itertext()).split()) for kind, column in columns.items()}
    assert read == {
        "lab-column base": "base oneab",
        "lab-column merged": "merged · mean weight 0.5 twoax",
        "lab-column full": "full LoRA threec",
    }
    assert [mark.text for mark in columns["lab-column merged"].iter("mark")] == ["x"]
    assert list(columns["lab-column base"].iter("mark")) == []


def test_each_probability_is_in_its_column():
    rows = [("yes", (0.125, 0.5, 0.25)), ("\n", (0.5, 0.25, 0.0))]
    made = ElementTree.fromstring(f"<all>{view.next_tokens(rows, (1.5, 0.25))}</all>")
    heads = [head.text for head in made.iter("th")]
    assert heads == ["next token", "base", "merged", "full LoRA"]
    lines = [list(row) for row in made.iter("tr")][1:]
    assert [["".join(cell.itertext()) for cell in line[0::1]][::1] for line in lines] == [
        ["yes", "0.125", "", "0.500", "", "0.250", ""],
        [r"\n", "0.500", "", "0.250", "", "0.000", ""],
    ]
    bars = [(bar.get("class"), bar.get("style")) for bar in made.iter("span")]
    # The largest probability is 44 pixels wide.
    assert bars[:3] == [
        ("lab-bar base", "width:11px"),
        ("lab-bar merged", "width:44px"),
        ("lab-bar full", "width:22px"),
    ]
    said = "KL(merged‖base) 1.5000 · KL(merged‖full LoRA) 0.2500 nats"
    assert made.find("div").text == said


class Drawn:
    """The plane, read back from its SVG."""

    def __init__(self, base, full, trail):
        self.svg = ElementTree.fromstring(view.plane(["one", "two"], base, full, trail))
        self.dots = {}
        for circle in self.svg.iter("circle"):
            at = float(circle.get("cx")), float(circle.get("cy"))
            self.dots.setdefault((circle.get("fill"), circle.get("r")), []).append(at)
        self.base, self.full = self.dots[BASE_COLOR, "5"][0], self.dots[ADAPTER_COLOR, "5"][0]
        self.merges = [*self.dots.get((LIGHT_INK, "3"), []), *self.dots.get((MARK, "6"), [])]
        self.texts = {
            text.text: (float(text.get("x") or 0), float(text.get("y") or 0))
            for text in self.svg.iter("text")
        }


def test_a_larger_nll_lies_further_right_and_further_up():
    # Of the first text the base has the smallest NLL, of the second one the largest.
    drawn = Drawn(base=(1, 5), full=(3, 3), trail=[(2, 4), (4, 3.5)])
    assert drawn.base[0] < drawn.merges[0][0] < drawn.full[0] < drawn.merges[1][0]
    # y grows downwards.
    assert drawn.base[1] < drawn.merges[0][1] < drawn.merges[1][1] < drawn.full[1]


def test_the_plane_is_true_to_scale():
    drawn = Drawn(base=(1, 5), full=(3, 3), trail=[(2, 4), (1.5, 3.5)])
    for axis in (0, 1):
        base, full, first, last = (point[axis] for point in (drawn.base, drawn.full, *drawn.merges))
        assert first == pytest.approx((base + full) / 2, abs=0.11)
        share = (0.25, 0.75)[axis]
        assert last == pytest.approx(base + share * (full - base), abs=0.11)
    way = drawn.svg.find("polyline").get("points")
    assert [tuple(map(float, point.split(","))) for point in way.split()] == drawn.merges


def test_axes_names_and_labels_are_those_of_their_points():
    drawn = Drawn(base=(1, 5), full=(3, 3), trail=[(2, 4)])
    for name, point in (("base", drawn.base), ("full LoRA", drawn.full)):
        assert drawn.texts[name][1] == pytest.approx(point[1] + 4, abs=0.11)
    assert drawn.texts["merged"][0] == pytest.approx(drawn.merges[0][0] + 9, abs=0.11)
    # The middle mark of each axis is half-way between base and full LoRA.
    middle = drawn.texts["2.00"], drawn.texts["4.00"]
    assert middle[0][0] == pytest.approx(drawn.merges[0][0], abs=0.11)
    assert middle[1][1] == pytest.approx(drawn.merges[0][1] + 4, abs=0.11)
    across, up = (text for text in drawn.svg.iter("text") if "NLL on" in text.text)
    assert "one" in across.text
    assert across.get("transform") is None
    assert "two" in up.text
    assert "rotate(-90)" in up.get("transform")
    assert drawn.svg.get("aria-label") == (
        "NLL on one and two: base 1.000, 5.000; full LoRA 3.000, 3.000; merged 2.000, 4.000"
    )


def test_a_plane_without_a_merge():
    drawn = Drawn(base=(1, 5), full=(1, 5), trail=[])
    assert drawn.merges == []
    assert "merged" not in drawn.svg.get("aria-label")


def test_colours_are_those_of_the_pictures():
    assert f"--lab-base: {BASE_COLOR};" in view.STYLE
    assert f"--lab-adapter: {ADAPTER_COLOR};" in view.STYLE
    # Every colour that the style uses is said in it.
    used = set(re.findall(r"var\((--lab-[a-z-]+)", view.STYLE))
    assert used == set(re.findall(r"(--lab-[a-z-]+):", view.STYLE))


def test_an_error_without_words_is_named():
    assert ">KeyboardInterrupt</div>" in view.problem(KeyboardInterrupt())
    assert 'role="alert">no room</div>' in view.problem("no room")
