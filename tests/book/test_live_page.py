"""The page to try: what it says was measured, and of what."""

import json
import re

import labkit as lk
from docs.book.live_page import HERE, filled, measured, page_data

FOUND = {
    "about": {"passages": 8, "layers": 2, "norms": [1.0, 2.0], "base": "a", "lora": "b",
              "fits": {"a": "Better."}},
    "points": [
        {"name": name, "weights": weights, "nll": [nll, nll - 0.1, nll + 0.1],
         "from_base": [nll - 3, nll - 3.1, nll - 2.9], "kl": [kl, kl, kl], "answer": "</script>"}
        for name, weights, nll, kl in [
            ("base", "0x2", 3.0, 0.0), ("full LoRA", "1x2", 2.0, 1.0),
            ("0.5 everywhere", "0.5x2", 2.4, 0.2), ("0.9 everywhere", "0.9x2", 1.9, 0.8),
            ("late half", "0,1", 2.5, 0.3), ("early half", "1,0", 2.6, 0.4),
        ]
    ],
}  # fmt: skip


def test_numbers_are_filled_in_with_their_intervals():
    page = "{count} on `{passages}`: {nll of late half}; {from_base of full LoRA}; {fit of a} DATA"
    said, _, data = filled(page, FOUND).partition(" {")
    assert said == "6 on `8`: 2.50 [2.40, 2.60]; −1.00 [−1.10, −0.90]; Better."
    assert "</script>" not in data


def test_the_best_constant_is_measured_and_is_neither_base_nor_full():
    data = page_data(FOUND)
    assert data["best_constant"] == "0.9 everywhere"
    dots = {dot["name"]: dot for dot in data["plane"]["dots"]}
    assert dots["0.9 everywhere"]["label"] == "best constant (0.9)"
    assert dots["base"]["label"] == "base"
    assert dots["0.5 everywhere"]["label"] == ""
    assert [x for x, _ in data["plane"]["curve"]] == [0.0, 0.2, 0.8, 1.0]
    assert data["editor"]["weights"] == [0.0, 1.0]
    assert not [name for name in data["editor"] if name.startswith("_")]


def test_what_was_measured_is_whole():
    found = measured()
    layers = found["about"]["layers"]
    gradients = [lk.Gradient.parse(point["weights"], layers) for point in found["points"]]
    assert len(set(gradients)) == len(gradients) > 40
    points = {point["name"]: point for point in found["points"]}
    assert points["base"]["from_base"] == [0, 0, 0]
    for name, point in points.items():
        for kind in ("nll", "from_base", "kl"):
            estimate, low, high = point[kind]
            assert low <= estimate <= high, name
        difference = point["nll"][0] - points["base"]["nll"][0]
        assert abs(point["from_base"][0] - difference) < 2e-4, name
        assert point["answer"], name
    assert found["about"]["command"].endswith("docs/book/measure.py")


def test_the_buttons_of_the_page_load_what_was_measured():
    page = (HERE / "try_it.md").read_text()
    names = set(re.findall(r'data-load="([^"]*)"', page))
    assert names
    assert names <= {point["name"] for point in measured()["points"]}


def test_the_page_holds_what_python_says_of_the_editor(small_book):
    page = (small_book / "try_it.html").read_text()
    data = json.loads(re.search(r'id="try-it-data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["editor"]["presets"] == lk.GradientEditor([0.0, 1.0]).presets
    widgets = (small_book / "_static" / "widgets.js").read_text().splitlines()
    modules = json.loads(widgets[0].partition(" = ")[2].rstrip(";"))
    own = HERE.parents[1] / "labkit" / "widgets" / "editor.js"
    assert modules["editor"] == lk.GradientEditor._esm
    assert modules["editor"].endswith(own.read_text())
    shapes = json.loads(widgets[1].partition(" = ")[2].rstrip(";"))
    assert shapes["bell"][11] == list(lk.Gradient.bell(12))
