"""The lab's fold "Fit": what its buttons and its slider draw, measure and say."""

from __future__ import annotations

import html
import re
import threading

import numpy as np
import pytest

import labkit as lk
from labkit.bench.evidence import quick_copy
from labkit.bench.lab import Lab
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.probing.text_plane import excerpt
from tests.tiny import make_adapter

pytestmark = pytest.mark.usefixtures("cache")
HALF = Gradient.parse("0,0.5,1,1")


def fit_said(lab):
    text = re.sub(r"<[^>]*>", " ", lab.panel.fit_said.value)
    return html.unescape(re.sub(r"\s+", " ", text).strip())


def row(lab, kind):
    found = re.search(rf'scope="row">{kind}[^<]*</th>(.*?)</tr>', lab.panel.fit_said.value)
    return re.findall(r">([^<>]+)</td>", found[1])


@pytest.fixture
def quick(monkeypatch, loud_base, loud_adapter):
    """A lab whose hand rests at once, and that asks nothing else of the model."""
    monkeypatch.setattr("labkit.bench.lab.REST", 0.0)
    monkeypatch.setattr("labkit.bench.fit_fold.REST", 0.0)
    monkeypatch.setattr("labkit.bench.fit_fold.EVALUATIONS", 3)
    monkeypatch.setattr("labkit.bench.strength_fit.EVALUATIONS", 3)
    monkeypatch.setattr(Lab, "_changed", lambda lab, answer=False: None)
    made = Lab(loud_base, loud_adapter, gradient=HALF, device="cpu")
    yield made
    made.close()


def test_a_fit_is_drawn_and_measured_again(quick):
    lab, panel = quick, quick.panel
    panel.fit.click()
    lab.wait(60)
    drawn = lab.gradient
    assert drawn != HALF
    assert (panel.fit.disabled, panel.stop_fit.disabled) == (False, True)
    assert panel.fit_progress.layout.display == "none"
    assert lab.editor.origin == "fit"
    assert lab.recipe.terms[0].weights == drawn
    # The numbers are those of what is drawn, as lk.evaluate has them.
    model = quick_copy(lab.model)
    read = [excerpt(model, *each, 40) for each in lab.texts.items()]
    table = lk.evaluate(model, {"it": drawn}, read)
    numbers_of = table.set_index(["gradient", "text", "metric"])["estimate"]
    expected = [numbers_of["it", "King James text", "nll"], numbers_of["it", "everyday text", "kl"]]
    # In bfloat16 two orders of one sum differ.
    assert [float(cell) for cell in row(lab, "measured")] == pytest.approx(expected, rel=0.01)
    assert len(row(lab, "predicted")) == 2
    assert len(row(lab, "best constant")) == 2
    said = fit_said(lab)
    assert said.startswith("strength 0.3 NLL on King James text KL to the base on everyday text")
    assert "the first 40 tokens of 4 and 4 passages, on which it was searched: 3 evalu" in said


def test_a_fit_of_several_says_what_undo_does_not_bring_back(
    quick, loud_base, loud_adapter, tmp_path
):
    assert "Undo" not in fit_said(quick)
    other = make_adapter(tmp_path / "other", loud_base, scale=0.2)
    lab = Lab(loud_base, loud_adapter, other, gradient=HALF, device="cpu")
    lab.panel.fit.click()
    lab.wait(60)
    assert HALF not in [term.weights for term in lab.recipe.terms]
    assert "best constant for all adapters, " in fit_said(lab)
    assert "Undo brings back the gradient on the screen, not those of the others" in fit_said(lab)
    lab.close()


def test_another_strength_is_predicted_at_once_and_measured_when_the_hand_rests(quick, monkeypatch):
    lab, panel = quick, quick.panel
    panel.strength.value = 0.5
    assert lab.gradient == HALF  # nothing was evaluated yet
    panel.fit.click()
    lab.wait(60)
    monkeypatch.setattr("labkit.bench.fit_fold.REST", 60)
    panel.strength.value = 10.0
    kept = lab.gradient
    fit = lab._fitting.fit
    assert kept == fit.terms(fit.proposed(10.0))[0].weights
    assert row(lab, "measured") == ["…", "…"]
    found = fit.predicted(np.array(list(kept)))
    assert row(lab, "predicted") == [f"{found.nll:.3f}", f"{found.kl:.3f}"]
    assert fit_said(lab).startswith("strength 10 ")
    read = []
    measured = fit.measured
    monkeypatch.setattr(fit, "measured", lambda *given: read.append(given[1]) or measured(*given))
    monkeypatch.setattr("labkit.bench.fit_fold.REST", 0.0)
    panel.strength.value = 7.0  # the latest wins: of 10 nothing is measured
    lab.wait(60)
    assert read == [7.0]
    assert "…" not in row(lab, "measured")
    assert fit_said(lab).startswith("strength 7 ")
    # What is drawn by hand then is not what was measured.
    lab.editor.weights = [0, 0, 1, 1]
    assert fit_said(lab) == ""


def test_stop_keeps_the_best(quick, monkeypatch):
    lab, panel = quick, quick.panel
    monkeypatch.setattr("labkit.bench.strength_fit.EVALUATIONS", 1000)
    seen = threading.Event()
    tell = panel.tell_fit

    def telling(said, share=0.0):
        tell(said, share)
        if said.startswith("evaluation 2 of"):
            # To measure another strength would end the search unasked.
            assert panel.strength.disabled
            panel.stop_fit.click()
            seen.set()

    monkeypatch.setattr(panel, "tell_fit", telling)
    panel.fit.click()
    assert seen.wait(60)
    lab.wait(60)
    assert not panel.strength.disabled
    assert lab._fitting.fit.evaluations == 2
    assert lab.gradient == lab._fitting.fit.terms(lab._fitting.fit.best(0.3))[0].weights
    assert "…" not in row(lab, "measured")


def test_what_is_drawn_during_a_search_stays(quick, monkeypatch):
    lab, panel = quick, quick.panel
    tell = panel.tell_fit

    def telling(said, share=0.0):
        tell(said, share)
        if said.startswith("evaluation 1 of"):
            lab.editor.weights = [0, 0, 0, 0.25]

    monkeypatch.setattr(panel, "tell_fit", telling)
    panel.fit.click()
    lab.wait(60)
    assert lab.gradient == Gradient([0, 0, 0, 0.25])
    assert fit_said(lab).startswith("found; you have drawn meanwhile")
    panel.strength.value = 0.5
    assert lab.gradient != Gradient([0, 0, 0, 0.25])
    lab.wait(60)


def test_a_fit_takes_no_gradient_of_its_own_away(quick):
    lab, panel = quick, quick.panel
    panel.scope.value = "mlp"
    lab.editor.weights = [0, 0, 0, 1]
    panel.fit.click()
    assert fit_said(lab) == ("a fit draws one gradient for all modules; clear that of MLP first")
    assert lab.recipe.terms[0].weights_for == {"mlp": Gradient([0, 0, 0, 1])}
    lab.wait(60)


def test_a_fit_that_fails_says_so_and_begins_anew(quick, monkeypatch):
    lab, panel = quick, quick.panel
    texts = dict(lab.texts)
    lab.texts["everyday text"] = "a"
    panel.fit.click()
    with pytest.raises(LabkitError, match="nothing to predict"):
        lab.wait(60)
    assert "passage 0 of 'everyday text' has nothing to predict" in fit_said(lab)
    assert (panel.fit.disabled, panel.stop_fit.disabled) == (False, True)
    lab.texts.update(texts)
    panel.fit.click()
    lab.wait(60)
    assert lab._fitting.fit.texts == texts
    first = lab._fitting.fit
    panel.fit.click()
    lab.wait(60)
    assert lab._fitting.fit is first
    lab.texts["everyday text"] = ["Another text", "And one more"]
    panel.fit.click()
    lab.wait(60)
    assert lab._fitting.fit is not first
