"""A front's dots load their gradients into an editor, sliders or a lab."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import free
from labkit.merging.recipe import Term
from labkit.models.adapter import Adapter
from labkit.probing.front import Front

FIT = Gradient.parse("0.1,0.2,0.9,1")
POINTS = {
    "base": (3.0, 0.0, 0.0),
    "full LoRA": (2.0, 1.0, 1.0),
    "constant, strength 0.3": (2.4, 0.3, 0.61),
    "fit, strength 0.3": (2.3, 0.31, FIT.mean),
}


def front(*adapters, gradient=FIT):
    rows = []
    for name, (nll, kl, mean) in POINTS.items():
        gain = -0.08 if name.startswith("fit") else np.nan
        against = {"from_constant": gain, "from_constant_low": gain - 0.03,
                   "from_constant_high": gain + 0.02}  # fmt: skip
        shared = {"gradient": name, "mean_weight": mean}
        rows.append({**shared, "text": "verse", "metric": "nll", "estimate": nll, **against})
        rows.append({**shared, "text": "prose", "metric": "kl", "estimate": kl})
    curve = pd.DataFrame({"constant": [0, 0.5, 1], "nll": [3, 2.4, 2], "kl": [0, 0.3, 1]})
    terms = tuple(Term(Adapter(adapter), FIT) for adapter in adapters)
    table = pd.DataFrame(rows)
    return Front({0.3: gradient}, {0.3: terms}, {0.3: ""}, table, curve, pd.DataFrame(), 1.0)


def press(picker, name):
    picker._handle_custom_msg({"kind": "pick", "name": name}, [])


@pytest.mark.parametrize("make", [lk.GradientEditor, lk.sliders])
def test_a_press_loads_the_gradient(tiny_adapter, make):
    editor = make(Gradient([0, 0, 0, 0.5]))
    picker = lk.pick(front(tiny_adapter), editor)
    assert picker.chosen == ""
    expected = {
        "base": [0, 0, 0, 0],
        "full LoRA": [1, 1, 1, 1],
        "constant, strength 0.3": [0.61] * 4,
        "fit, strength 0.3": list(FIT),
    }
    assert [dot["name"] for dot in picker.dots] == list(expected)
    for name, weights in expected.items():
        press(picker, name)
        assert editor.weights == weights
        assert picker.chosen == name
    # What is drawn then is none of the dots, and a press brings the dot back.
    editor.weights = [0, 0, 1, 1]
    assert picker.chosen == ""
    press(picker, "fit, strength 0.3")
    assert editor.weights == list(FIT)


def test_the_dots_lie_where_the_table_says(tiny_adapter):
    picker = lk.pick(front(tiny_adapter), lk.GradientEditor(FIT))
    dots = {dot["name"]: dot for dot in picker.dots}
    fit = dots["fit, strength 0.3"]
    assert (fit["x"], fit["y"], fit["label"]) == (0.31, 2.3, "0.3")
    # The constant of the same KL has 2.3 + 0.08; the interval is [-0.11, -0.06] from there.
    assert (fit["low"], fit["high"]) == pytest.approx((2.27, 2.32))
    assert fit["said"] == (
        "fit, strength 0.3: NLL 2.300, KL 0.310 (held out, nats a token); "
        "NLL less that of the constant of the same KL: -0.080 [-0.110, -0.060]"
    )
    assert (dots["base"]["low"], dots["base"]["label"]) == (None, "base")
    assert picker.curve == [[0, 3], [0.3, 2.4], [1, 2]]
    assert picker.axes == ["KL(base ‖ merge) on prose, nats a token", "NLL on verse, nats a token"]
    assert picker.chosen == "fit, strength 0.3"


def test_a_lab_takes_the_gradients_of_every_adapter(
    words, tiny_adapter, second_adapter, tmp_path, monkeypatch
):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    lab = lk.Lab(words, tiny_adapter, second_adapter, gradient=Gradient.parse("0x4"), device="cpu")
    lab.panel.live.value = False
    found = front(tiny_adapter, second_adapter, gradient={"one": FIT, "other": FIT})
    picker = lk.pick(found, lab)
    # One number says no constants of two adapters.
    assert [dot["name"] for dot in picker.dots] == ["base", "full LoRA", "fit, strength 0.3"]
    assert picker.chosen == "base"
    press(picker, "fit, strength 0.3")
    assert [term.weights for term in lab.recipe.terms] == [FIT, FIT]
    assert lab.gradient == FIT
    assert picker.chosen == "fit, strength 0.3"
    lab.wait(60)
    # The lab's other adapter is drawn: it is no dot any more, though the first one's is the same.
    lab.panel.which.value = 1
    lab.editor.weights = [0, 0, 0, 0]
    lab.panel.which.value = 0
    assert picker.chosen == ""
    with pytest.raises(LabkitError) as caught:
        lk.pick(front(tiny_adapter), lab)
    names = [Adapter(one).name for one in (tiny_adapter, second_adapter)]
    assert str(caught.value) == (
        f"the lab has the adapters {names[0]}, {names[1]}, and these gradients are for "
        f"{names[0]}; make a lab of the same adapters"
    )
    lab.close()
    free()


def test_an_editor_has_one_gradient_of_the_right_length(tiny_adapter):
    with pytest.raises(LabkitError) as caught:
        lk.pick(front(tiny_adapter, gradient={"a:q_proj": FIT, "a:v_proj": FIT}),
                lk.GradientEditor(FIT))  # fmt: skip
    assert str(caught.value) == (
        "the front has several gradients (a:q_proj, a:v_proj), and an editor has one; give a Lab"
    )
    with pytest.raises(LabkitError, match=r"4 weights for 3 layers \(the front, for this editor\)"):
        lk.pick(front(tiny_adapter), lk.GradientEditor([0, 0, 1]))
