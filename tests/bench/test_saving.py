"""What the lab writes, bakes and exports: one thing at a time, which can be cancelled."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from labkit.bench.lab import Lab
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.merging.planning import Plan

pytestmark = pytest.mark.usefixtures("cache")
HALF = Gradient.parse("0,0.5,1,1")


@pytest.fixture
def lab(words, tiny_adapter, tmp_path):
    made = Lab(words, tiny_adapter, gradient=HALF, prompt="In the", device="cpu")
    made.panel.live.value = False
    made.panel.folder.value = str(tmp_path / "mine")
    made.wait(60)
    yield made
    made.close()


def shown(lab, name):
    return lab.panel._shown[name].value


class Held:
    """Stands in for `Plan.write` or `Plan.export`, which last until they are let go."""

    def __init__(self, monkeypatch, method, said):
        self.begun, self.go = threading.Event(), threading.Event()
        self.said = said
        monkeypatch.setattr(Plan, method, lambda *given, **options: self(*given, **options))

    def __call__(self, *_, progress, **options):
        self.options = options
        progress(*self.said)
        self.begun.set()
        while not self.go.wait(0.01):
            progress(*self.said)
        return SimpleNamespace(_repr_html_=lambda: "<b>made</b>", folder=None)

    def wait(self):
        assert self.begun.wait(60)


def test_the_merge_is_exported(lab, tmp_path, monkeypatch):
    asked = []

    def export(resolved, out, format, *, calibration, overwrite, progress):
        asked.append((resolved.recipe.terms[0].weights, out, format, calibration, overwrite))
        progress("merges")
        out.mkdir(exist_ok=True)
        return SimpleNamespace(_repr_html_=lambda: "<b>KL 0.05</b>")

    monkeypatch.setattr(Plan, "export", export)
    for wanted, calibration in (("gguf-q4_k_m", "none"), ("gguf-bf16", None)):
        lab.panel.exporting.format.value = wanted
        lab.panel.export.click()
        lab.wait(60)
        target = tmp_path / f"mine-{wanted}"
        assert asked.pop() == (HALF, target, wanted, calibration, False)
        assert f"saved {target}" in lab.panel.saved.value
        assert shown(lab, "receipt") == "<b>KL 0.05</b>"
    lab.panel.export.click()
    assert "mine-gguf-bf16 is there already; replace it" in lab.panel.saved.value
    lab.panel.replace.click()
    lab.wait(60)
    assert asked == [(HALF, target, "gguf-bf16", None, True)]


def test_an_export_that_is_refused_is_said_beside_the_button(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.exporting.environments.find_spec", lambda name: None)
    lab.panel.export.click()
    with pytest.raises(LabkitError, match="not installed"):
        lab.wait(60)
    assert "pip install" in lab.panel.saved.value
    assert list(tmp_path.glob("mine*")) == []
    assert not lab.panel.export.disabled


def cancel_once_begun(lab, monkeypatch, name):
    """Press a plan's button, and Cancel as soon as the plan tells how far it is."""
    make, begun = getattr(Plan, name), threading.Event()

    def slowly(*given, progress, **options):
        def tell(*said):
            begun.set()
            assert lab._saving.cancel.wait(60)
            progress(*said)

        return make(*given, progress=tell, **options)

    monkeypatch.setattr(Plan, name, slowly)
    getattr(lab.panel, name).click()
    assert begun.wait(60)
    lab.panel.cancel.click()
    lab.wait(60)


def test_a_cancelled_merge_leaves_nothing(lab, tmp_path, monkeypatch):
    cancel_once_begun(lab, monkeypatch, "write")
    assert "cancelled; nothing was written" in lab.panel.saved.value
    assert list(tmp_path.glob("*mine*")) == []
    assert lab.receipt is None


def test_a_cancelled_export_leaves_nothing(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.exporting.environments.find_spec", lambda name: True)
    cancel_once_begun(lab, monkeypatch, "export")
    assert "cancelled; nothing was written" in lab.panel.saved.value
    assert list(tmp_path.glob("*mine*")) == []
    assert not lab.panel.export.disabled


@pytest.mark.parametrize(
    ("method", "button", "said", "does"),
    [
        ("write", "write", (1, 4), "writes {}/mine"),
        ("export", "export", ("reads the texts",), "exports to gguf-q4_k_m"),
    ],
)
def test_one_thing_is_made_at_a_time_and_the_buttons_say_so(
    lab, tmp_path, monkeypatch, method, button, said, does
):
    held = Held(monkeypatch, method, said)
    panel, does = lab.panel, does.format(tmp_path)
    makers = (panel.write, panel.bake, panel.export)
    idle = [one.tooltip for one in makers]
    assert panel._at_work.layout.display == "none"
    assert not any(one.disabled for one in makers)
    getattr(panel, button).click()
    held.wait()
    assert panel._at_work.layout.display == "flex"
    for one in makers:
        assert one.disabled
        assert one.tooltip == f"waits until this has ended: {does}"
    assert not panel.cancel.disabled
    told = does if method == "write" else said[0]
    assert told in panel._doing.value
    if method == "write":
        assert panel.progress.value == 0.25
        assert panel.progress.layout.display is None
    else:
        assert panel.progress.layout.display == "none"
        assert "s so far" in panel._so_far.value
    with pytest.raises(LabkitError, match=f"the lab {does}, and makes one thing at a time; wait"):
        lab.write(tmp_path / "other")
    # What takes no time is saved meanwhile.
    panel.save_recipe.click()
    assert "saved" in panel.saved.value
    held.go.set()
    lab.wait(60)
    assert shown(lab, "receipt") == "<b>made</b>"
    assert panel._at_work.layout.display == "none"
    assert [one.tooltip for one in makers] == idle
    assert not any(one.disabled for one in makers)


def test_a_bake_says_that_it_cannot_be_cancelled(lab, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def bake(*_, **__):
        begun.set()
        assert go.wait(60)

    monkeypatch.setattr("labkit.publishing.baking.bake", bake)
    lab.panel.bake.click()
    assert begun.wait(60)
    assert lab.panel.cancel.disabled
    assert lab.panel.cancel.tooltip == "it takes seconds"
    assert lab.panel.write.disabled
    go.set()
    lab.wait(60)
    assert not lab.panel.write.disabled


def test_a_closed_lab_ends_its_export(words, tiny_adapter, tmp_path, monkeypatch):
    held = Held(monkeypatch, "export", ("merges",))
    lab = Lab(words, tiny_adapter, gradient=HALF, device="cpu")
    lab.panel.live.value = False
    lab.panel.folder.value = str(tmp_path / "mine")
    lab.panel.export.click()
    held.wait()
    lab.close()
    assert lab._saving.worker.wait(60)


def test_it_is_calibrated_on_what_is_chosen_and_says_before_what_it_lacks(
    lab, tmp_path, monkeypatch
):
    held = Held(monkeypatch, "export", ("merges",))
    held.go.set()
    panel, choice = lab.panel, lab.panel.exporting
    choice.format.value = "gptq"
    assert panel.export.disabled
    assert "write the name of a file" in panel.export.tooltip
    panel.export.click()  # which no hand can do
    assert "write the name of a file" in panel.saved.value
    assert not held.begun.is_set()
    choice.text.value = "the training text of stepwise"
    assert not panel.export.disabled
    panel.export.click()
    lab.wait(60)
    assert held.options["calibration"] == "stepwise"
    choice.text.value = "King James text"
    panel.export.click()
    lab.wait(60)
    assert held.options["calibration"] == lab.texts["King James text"]
    lab._use_texts({"mine": "one passage", "other": "another"})
    assert choice.text.options[:2] == ("mine", "other")
