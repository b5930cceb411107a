"""The lab without a browser: what its controls do, and that it always says what is on screen."""

from __future__ import annotations

import filecmp
import html
import itertools
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import labkit as lk
from labkit.bench.evidence import quick_copy
from labkit.bench.lab import Lab
from labkit.bench.remembering import runs_file, state_file
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.inference import loading
from labkit.inference.live_model import free, live
from labkit.inference.prompts import formats, formatted
from labkit.merging.methods.weighted_sum import WeightedSum
from labkit.merging.planning import plan
from labkit.merging.recipe import CardOptions, Recipe, Term
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.probing.next_token import compare_next_token
from labkit.probing.text_plane import excerpt
from labkit.probing.texts import Texts
from labkit.surveys.delta_survey import layer_norms
from tests.inference.helpers import noisy
from tests.tiny import make_adapter, make_base, make_tokenizer

pytestmark = pytest.mark.usefixtures("cache")
HALF = Gradient.parse("0,0.5,1,1")


@pytest.fixture
def lab(words, tiny_adapter):
    made = Lab(words, tiny_adapter, gradient=HALF, prompt="In the", device="cpu")
    made.panel.length.value = 5
    made.wait(60)
    yield made
    made.close()


def shown(lab, name):
    return lab.panel._shown[name].value


def test_it_answers_when_it_is_made(lab):
    assert "full LoRA" in shown(lab, "columns")
    assert "mean weight 0.62" in shown(lab, "columns")
    assert "KL(merged‖base)" in shown(lab, "next")
    assert lab._trail.map.texts == ["King James text", "everyday text"]
    assert [one["kind"] for one in lab._trail.map.points] == ["base", "full", "best", "run"]
    assert "ledger" in shown(lab, "plan")
    assert re.search(r"loses \d+\.\d% .*of the change", shown(lab, "rounding"))
    assert len(lab.editor.norms) == 4
    assert all(norm > 0 for norm in lab.editor.norms)


def test_gradient_and_recipe_say_what_the_editor_shows(lab):
    lab.editor.weights = [1, 0, 0, 1]
    assert lab.gradient == Gradient([1, 0, 0, 1])
    assert lab.recipe.terms[0].weights == Gradient([1, 0, 0, 1])
    lab.gradient = HALF
    lab.wait(60)
    assert lab.editor.weights == list(HALF)
    assert "0,0.5,1x2" in [run.gradient for run in lab._trail.runs]


def test_attention_and_mlp_can_have_gradients_of_their_own(lab):
    assert [label for label, _ in lab.panel.scope.options] == ["all modules", "attention", "MLP"]
    lab.panel.scope.value = "mlp"
    assert lab.recipe.terms[0].weights_for == {}
    lab.editor.weights = [0, 0, 0, 1]
    lab.panel.scope.value = ""
    assert lab.gradient == HALF
    assert lab.recipe.terms[0].weights == HALF
    assert lab.recipe.terms[0].weights_for == {"mlp": Gradient([0, 0, 0, 1])}
    lab.wait(60)


def own_buttons(lab):
    return list(lab.panel._own.children[1:])


def test_every_gradient_in_force_is_shown_and_can_be_cleared(lab):
    assert own_buttons(lab) == []
    assert lab.editor.others == {}
    lab.panel.scope.value = "self_attn"
    lab.editor.weights = [1, 1, 1, 1]
    # The editor shows attention's; the gradient of all other modules is an outline.
    assert lab.editor.others == {"all modules": list(HALF)}
    lab.panel.scope.value = ""
    assert lab.editor.others == {"attention": [1, 1, 1, 1]}
    assert [one.description for one in own_buttons(lab)] == ["attention: mean weight 1.00"]
    lab.gradient = Gradient.constant(4, 0)
    lab.wait(60)
    # Experiment 3 of notebook 04: header, picture and list say what the model has.
    assert "mean weights: all modules 0.00, attention 1.00" in shown(lab, "columns")
    picture = lab._picture_html()
    assert "mean weights: all modules 0.00, attention 1.00" in picture
    assert "self_attn: <code>1,1,1,1</code>" in picture
    titles = [axes.get_title() for axes in lab._figure().axes]
    assert titles == ["all other modules · mean weight 0.00", "self_attn · mean weight 1.00"]
    # Nothing is left for the gradient of all modules to count for.
    lab.panel.scope.value = "mlp"
    lab.editor.weights = [0, 0, 0, 1]
    lab.panel.scope.value = ""
    assert lab.editor.others == {"attention": [1, 1, 1, 1], "MLP": [0, 0, 0, 1]}
    said = lab.panel._own.children[0].value
    assert "What is drawn for all modules counts nowhere: a gradient of its own" in said
    # One press each, also of the one that is being edited.
    own_buttons(lab)[0].click()
    assert lab.recipe.terms[0].weights_for == {"mlp": Gradient([0, 0, 0, 1])}
    assert lab.editor.others == {"MLP": [0, 0, 0, 1]}
    lab.panel.scope.value = "mlp"
    own_buttons(lab)[0].click()
    assert lab.recipe.terms[0].weights_for == {}
    assert lab.gradient == Gradient.constant(4, 0)
    assert own_buttons(lab) == []
    lab.wait(60)
    assert "merged · mean weight 0.00" in shown(lab, "columns")


def test_patterns_of_a_recipe_are_shown_and_can_be_drawn(words, tiny_adapter):
    term = Term(tiny_adapter, HALF, {"q_proj": "1x4"})
    lab = Lab(Recipe(words, [term]), device="cpu")
    lab.panel.live.value = False
    assert lab.editor.others == {"q_proj": [1, 1, 1, 1]}
    lab.panel.scope.value = "q_proj"
    assert lab.gradient == Gradient.constant(4, 1)
    lab.close()


def test_without_answers_those_on_the_screen_are_marked_as_older(lab):
    assert "before)" not in shown(lab, "columns")
    lab.panel.live.value = False
    lab.wait(60)
    assert "before)" not in shown(lab, "columns")
    lab.gradient = Gradient([1, 0, 0, 1])
    lab.wait(60)
    assert "(of the gradient before)" in shown(lab, "columns")
    lab.panel.answer.click()
    lab.wait(60)
    assert "before)" not in shown(lab, "columns")


def test_the_status_is_not_empty_while_a_newer_drawing_waits(lab, monkeypatch):
    said, begun = [], threading.Event()
    lab.panel.status.observe(lambda change: said.append(change["new"]), "value")
    measure = lab._answers.measure

    def measuring(prompt, merge):
        measure(prompt, merge)
        if not begun.is_set():
            begun.set()
            lab.editor.weights = [0, 0, 0, 1]

    monkeypatch.setattr(lab._answers, "measure", measuring)
    lab.editor.weights = [0, 0, 1, 1]
    lab.wait(60)
    assert begun.is_set()
    assert said[-1] == ""
    assert "" not in said[:-1]


def test_the_model_is_loaded_once(words, tiny_adapter, monkeypatch):
    """Two threads that import transformers at once would each see half of it."""
    monkeypatch.setattr(Lab, "_changed", lambda lab, answer=False: None)
    lab = Lab(words, tiny_adapter, gradient=HALF, device="cpu")
    loaded, inside = [], threading.Lock()

    def loading(*given, **more):
        assert inside.acquire(blocking=False)
        time.sleep(0.2)
        inside.release()
        loaded.append(live(*given, **more))
        return loaded[-1]

    monkeypatch.setattr("labkit.bench.lab.live", loading)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: lab.model, range(2))
    assert loaded == [first]
    assert second is first
    lab.close()


def test_stop_empties_the_status(lab):
    lab.panel.say("asking the model …")
    lab.panel.stop.click()
    assert lab.panel.status.value == ""


def test_several_adapters(words, tiny_adapter, second_adapter):
    lab = Lab(words, tiny_adapter, second_adapter, gradient=HALF, device="cpu")
    lab.panel.length.value = 3
    lab.panel.which.value = 1
    assert lab.editor.names[1] == "second"
    lab.gradient = Gradient([1, 1, 1, 0])
    lab.panel.which.value = 0
    assert lab.gradient == HALF
    assert [term.weights for term in lab.recipe.terms] == [HALF, Gradient([1, 1, 1, 0])]
    assert lab.editor.others == {"second": [1, 1, 1, 0]}
    lab.wait(60)
    assert "mean weights: tiny-lora 0.62, second 0.75" in shown(lab, "columns")


def test_where_nothing_is_merged_rounding_loses_nothing(lab):
    lab.gradient = Gradient.constant(4, 0)
    lab.wait(60)
    assert "loses" not in shown(lab, "rounding")


def test_the_merge_is_what_the_plan_writes(lab, words, tiny_adapter, tmp_path):
    lab.write(tmp_path / "by-lab")
    lab.wait(60)
    assert lab.receipt.folder == tmp_path / "by-lab"
    assert "by-lab" in shown(lab, "receipt")
    plan(Recipe(words, [Term(tiny_adapter, HALF)])).write(tmp_path / "by-plan", progress=False)
    names = [path.name for path in (tmp_path / "by-plan").glob("*.safetensors")]
    same, _, _ = filecmp.cmpfiles(tmp_path / "by-lab", tmp_path / "by-plan", names, shallow=False)
    assert sorted(same) == sorted(names)
    # A second press takes over what is the same.
    lab.write(tmp_path / "by-lab", overwrite=True)
    lab.wait(60)
    assert lab.receipt.taken_over.folder == tmp_path / "by-lab"
    assert len(lab.receipt.taken_over.tensors) == len(lab.receipt.tensors) > 0
    same, _, _ = filecmp.cmpfiles(tmp_path / "by-lab", tmp_path / "by-plan", names, shallow=False)
    assert sorted(same) == sorted(names)


def test_an_error_is_a_red_line_and_is_raised_by_wait(lab, tmp_path):
    (tmp_path / "there").mkdir()
    lab.write(tmp_path / "there")
    with pytest.raises(LabkitError, match="there"):
        lab.wait(60)
    assert 'role="alert"' in lab.panel.saved.value
    assert lab.receipt is None
    lab.write(tmp_path / "elsewhere")
    lab.wait(60)
    assert lab.panel.saved.value == ""


def test_recipe_and_picture_are_saved_and_the_recipe_restores_the_lab(lab, tmp_path):
    lab.panel.folder.value = str(tmp_path / "mine")
    lab.panel.save_recipe.click()
    lab.panel.save_picture.click()
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    again = Lab(tmp_path / "mine.yaml", device="cpu")
    assert again.gradient == HALF
    again.close()


def test_the_adapter_is_baked(lab, tmp_path):
    lab.panel.folder.value = str(tmp_path / "mine")
    lab.panel.bake.click()
    lab.wait(60)
    assert (tmp_path / "mine-adapter" / "adapter_model.safetensors").exists()
    assert f"saved {tmp_path}/mine-adapter" in lab.panel.saved.value


def test_what_is_there_is_replaced_only_by_a_press(lab, tmp_path):
    panel = lab.panel
    panel.folder.value = str(tmp_path / "mine")
    for button, name in (
        (panel.write, "mine"),
        (panel.bake, "mine-adapter"),
        (panel.save_recipe, "mine.yaml"),
        (panel.save_picture, "mine.png"),
    ):
        target = tmp_path / name
        button.click()
        lab.wait(60)
        before = {path: path.read_bytes() for path in (target, *target.glob("*")) if path.is_file()}
        assert before
        lab.gradient = Gradient([1 - lab.gradient[0], 0.5, 1, 1])
        button.click()
        lab.wait(60)
        assert f"{name} is there already; replace it, or write another name" in panel.saved.value
        assert panel.replace.layout.display is None
        assert all(path.read_bytes() == content for path, content in before.items())
        panel.replace.click()
        lab.wait(60)
        assert "is there already" not in panel.saved.value
        assert panel.replace.layout.display == "none"
        assert any(path.read_bytes() != content for path, content in before.items())
    panel.save_recipe.click()
    assert "is there already" in panel.saved.value
    panel.folder.value = str(tmp_path / "other")
    assert panel.saved.value == ""
    assert panel.replace.layout.display == "none"


def test_a_recipe_that_cannot_be_saved_is_said_beside_the_button(lab, tmp_path):
    lab.panel.folder.value = str(tmp_path / "nowhere" / "mine")
    lab.panel.save_recipe.click()
    assert "cannot write the recipe" in lab.panel.saved.value
    assert lab.panel.problem.value == ""
    with pytest.raises(LabkitError, match="cannot write the recipe"):
        lab.wait(60)


def test_an_empty_name_writes_nothing(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab.panel.folder.value = "  "
    panel = lab.panel
    for button in (panel.write, panel.bake, panel.save_recipe, panel.save_picture):
        button.click()
        assert "write a name into the field" in panel.saved.value
    lab.wait(60)
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


def test_what_the_cell_says_counts_where_it_was_changed(words, tiny_adapter):
    def settings(**said):
        lab = Lab(words, tiny_adapter, device="cpu", **{"prompt": "In", "tokens": 5, **said})
        lab.panel.live.value = False
        lab.wait(60)
        found = {name: field.value for name, field in lab.panel.settings.items()}
        return lab, found

    lab, found = settings(temperature=0.5)
    assert found == {"prompt": "In", "format": "plain", "tokens": 5, "temperature": 0.5, "seed": 0}
    lab.panel.prompt.value, lab.panel.kind.value = "the", "Alpaca"
    lab.panel.length.value, lab.panel.temperature.value, lab.panel.seed.value = 7, 0.75, 3
    lab.wait(60)
    lab.close()
    chosen = {"prompt": "the", "format": "Alpaca", "tokens": 7, "temperature": 0.75, "seed": 3}
    # The same cell again: all comes back.
    lab, found = settings(temperature=0.5)
    assert found == chosen
    lab.close()
    # Another prompt, length and temperature in the cell: these count, and the rest comes back.
    lab, found = settings(prompt="Word", tokens=9, temperature=1.0, gradient=HALF)
    assert found == {**chosen, "prompt": "Word", "tokens": 9, "temperature": 1.0}
    assert lab.gradient == HALF
    lab.close()
    with pytest.raises(LabkitError, match="no prompt format 'ChatML'; there are plain, chat templ"):
        settings(format="ChatML")


def test_above_temperature_0_there_are_dice(lab):
    panel = lab.panel
    assert panel.seed.layout.display == panel.again.layout.display == "none"
    panel.temperature.value = 1.5
    assert panel.seed.layout.display is None
    lab.wait(60)
    before = shown(lab, "columns")
    panel.again.click()
    assert panel.seed.value == 1
    lab.wait(60)
    assert shown(lab, "columns") != before


def test_shown_twice_it_is_two_views_of_one_lab(lab, monkeypatch):
    from IPython import display

    monkeypatch.setattr("labkit.bench.lab._cell", lambda: "one cell")
    views, pictures = [], []

    class Handle:
        def display(self, content, raw):
            pictures.append(self)

        def update(self, content, raw):
            self.content = content["text/html"]

    monkeypatch.setattr(display, "display", views.append)
    monkeypatch.setattr(display, "DisplayHandle", Handle)
    lab._ipython_display_()
    lab._ipython_display_()
    assert views == [lab.widget, lab.widget]
    lab.gradient = Gradient([1, 0, 0, 1])
    lab.wait(60)
    assert ["1,0,0,1" in picture.content for picture in pictures] == [True, True]


def test_what_was_drawn_last_comes_back(lab, words, tiny_adapter):
    lab.panel.scope.value = "mlp"
    lab.editor.weights = [0.25, 0, 0, 1]
    lab.wait(60)
    again = Lab(words, tiny_adapter, device="cpu")
    assert again.gradient == HALF
    assert again.recipe.terms[0].weights_for == {"mlp": Gradient([0.25, 0, 0, 1])}
    again.close()


def test_a_kept_state_that_is_damaged_is_passed_over(lab, words, tiny_adapter):
    state_file(lab.recipe).write_text('{"terms": [{"weights": "1x3", "weights_for": {}}]}')
    again = Lab(words, tiny_adapter, device="cpu")
    assert again.gradient == Gradient.constant(4)
    again.close()


def test_what_is_wrong_is_said_at_once(words, tiny_adapter):
    with pytest.raises(LabkitError, match="3 weights for 4 layers"):
        Lab(words, tiny_adapter, gradient=Gradient([1, 1, 1]))
    with pytest.raises(LabkitError, match="the lab probes two texts, found 1"):
        Lab(words, tiny_adapter, texts={"one": "text"})


def test_what_else_a_recipe_says_is_kept_while_drawing(words, tiny_adapter):
    card = CardOptions(title="Mine")
    recipe = Recipe(words, [Term(tiny_adapter, HALF)], 0.5, "float16", untie=True, card=card)
    lab = Lab(recipe, device="cpu")
    lab.panel.live.value = False
    lab.editor.weights = [1, 0, 0, 1]
    drawn = lab.recipe
    assert drawn.terms[0].weights == Gradient([1, 0, 0, 1])
    assert (drawn.rest, drawn.dtype, drawn.untie, drawn.card) == (0.5, "float16", True, card)
    lab.close()


def test_a_method_that_is_no_sum_is_refused(words, tiny_adapter):
    class Other(WeightedSum):
        name, linear = "other", False

    recipe = Recipe(words, [Term(tiny_adapter, HALF)], method=Other())
    with pytest.raises(LabkitError, match="the method other is no sum of what each adapter adds"):
        Lab(recipe, device="cpu")


def test_the_static_picture_is_what_the_editor_shows(lab):
    picture = lab._picture_html()
    assert f"labkit-picture-{lab.editor.picture_id}" in picture
    assert "0,0.5,1,1" in picture
    assert "data:image/png;base64," in picture


def test_prompt_formats(lab):
    tokenizer = lab.model.tokenizer
    assert formats(tokenizer) == ["plain", "Alpaca", "Metharme"]
    assert formatted("Go!", "Alpaca", tokenizer) == "### Instruction:\nGo!\n### Response:\n"
    assert formatted("Go!", "Metharme", tokenizer) == "<|user|>Go!<|model|>"
    with pytest.raises(LabkitError, match=re.escape("no prompt format 'chat template'")):
        formatted("Go!", "chat template", tokenizer)


def numbers(html, pattern):
    return [float(number) for number in re.search(pattern, html).groups()]


def test_the_numbers_on_the_screen_are_the_measured_ones(loud_base, loud_adapter):
    lab = Lab(loud_base, loud_adapter, gradient=HALF, prompt="In the", device="cpu")
    lab.panel.live.value = False
    lab.wait(60)
    merge = lab.model.mix(lab.recipe.terms)
    expected = compare_next_token(lab.model, "In the", merge)
    assert expected.from_base != pytest.approx(expected.from_full, rel=0.1)
    table = shown(lab, "next")
    assert numbers(table, r"KL\(merged‖base\) ([\d.]+) · KL\(merged‖full LoRA\) ([\d.]+)") == (
        pytest.approx([expected.from_base, expected.from_full], abs=6e-5)
    )
    shares = re.findall(r'<td class="number">([\d.]+)</td>', table)
    assert [float(share) for share in shares] == pytest.approx(
        [share for _, row in expected.rows for share in row], abs=6e-4
    )
    read = [excerpt(lab.model, *each) for each in lab.texts.items()]
    points = {}
    for kind, weights in (("base", "0x4"), ("full", "1x4"), ("run", HALF)):
        lab.model.weights = weights
        points[kind] = [lab.model.nll([one.text for one in text]) for text in read]
    seen = {one["kind"]: one for one in lab._trail.map.points}
    for kind, point in points.items():
        assert [seen[kind]["x"], seen[kind]["y"]] == pytest.approx(point, rel=1e-5)
        assert f"King James text {point[0]:.3f}" in seen[kind]["said"]
    assert len({round(number, 3) for point in points.values() for number in point}) == 6
    lab.close()


def test_other_texts_begin_another_plane(lab):
    before = lab._trail.plane
    lab.texts["everyday text"] = "Something else."
    lab.gradient = Gradient([1, 0, 0, 1])
    lab.wait(60)
    after = lab._trail.plane
    assert after.texts == lab.texts
    assert after.base[1] != before.base[1]
    assert after.base[0] == before.base[0]
    # What was measured on other texts is kept in the table, and is no point of this plane.
    assert [one["kind"] for one in lab._trail.map.points] == ["base", "full", "best", "run"]
    assert len(lab._trail.runs) == 2
    older, newer = lab._trail.table.rows[-2:]
    assert (older["first"] is None, older["second"], older["kl"]) == (False, None, None)
    assert None not in (newer["first"], newer["second"], newer["kl"])


def test_the_plane_marks_the_best_constant(lab):
    plane = lab._trail.plane
    assert sorted(plane.constants) == [0.25, 0.5, 0.75]
    best = next(one for one in lab._trail.map.points if one["kind"] == "best")
    first, second = plane.constants[plane.best_constant]
    assert (best["x"], best["y"]) == (first.mean.value, second.mean.value)
    assert best["label"] == f"best constant {plane.best_constant:g}"
    assert lab._trail.map.line[0] == [one.mean.value for one in plane.base]
    assert len(lab._trail.map.line) == 5


def test_texts_are_passages(words, tiny_adapter):
    texts = {"one": Texts("other", ["In the", "beginning"]), "two": ["was", "the", "Word"]}
    lab = Lab(words, tiny_adapter, gradient=HALF, texts=texts, device="cpu")
    lab.panel.live.value = False
    lab.wait(60)
    assert lab._trail.map.texts == ["one", "two"]
    assert [(one.name, len(one)) for one in lab.texts.values()] == [("one", 2), ("two", 3)]
    lab.close()


def test_what_matters_is_measured_for_what_is_shown(lab):
    assert lab.editor.evidence == {}
    lab.panel.matters.value = True
    lab.wait(60)
    model = quick_copy(lab.model)
    first, second = (excerpt(model, *each, 32) for each in lab.texts.items())
    expected = lk.sensitivity(model, [first, second], HALF)
    for text in (first, second):
        rows = expected[expected["text"] == text.name][["estimate", "low", "high"]]
        assert np.array(lab.editor.evidence[text.name]) == pytest.approx(rows.to_numpy(), rel=1e-6)
    note = lab.editor.evidence_note
    assert (
        "at the gradient 0,0.5,1x2. Read: the first 32 tokens of 4 passages of King James" in note
    )
    assert "of 8 of them 0.4 leave out the truth" in note
    # Another gradient: what is shown says that it is old, until it is measured again.
    before = lab.editor.evidence
    lab.editor.weights = [1, 0, 0, 1]
    assert lab.editor.evidence_note.startswith("Of an earlier gradient; it is measured again")
    assert lab.editor.evidence == before
    lab.wait(60)
    assert "at the gradient 1,0x2,1. Read" in lab.editor.evidence_note
    assert lab.editor.evidence != before
    lab.panel.matters.value = False
    assert (lab.editor.evidence, lab.editor.evidence_note) == ({}, "")


def test_what_matters_that_cannot_be_measured_is_a_red_line(lab, monkeypatch):
    lab.texts["everyday text"] = "a"
    lab.panel.live.value = False
    with pytest.raises(LabkitError, match="nothing to predict"):
        lab.wait(60)
    lab.panel.matters.value = True
    with pytest.raises(LabkitError, match="passage 0 of 'everyday text' has nothing to predict"):
        lab.wait(60)
    assert "nothing to predict" in lab.panel.problem.value
    assert lab.editor.evidence_note == ""


def test_norms_are_those_of_what_the_editor_shows(words, tiny_adapter, second_adapter):
    lab = Lab(words, tiny_adapter, second_adapter, gradient=HALF, device="cpu")
    lab.panel.live.value = False
    lab.wait(60)
    for index, scope in ((1, ""), (1, "mlp"), (0, "mlp"), (0, "self_attn"), (0, "")):
        lab.panel.which.value, lab.panel.scope.value = index, scope
        lab.wait(60)
        adapter = (tiny_adapter, second_adapter)[index]
        expected = layer_norms(Checkpoint(words), Adapter(adapter), scope)
        assert lab.editor.norms == expected
        assert all(norm > 0 for norm in expected)
    lab.close()


class Panic(BaseException):
    pass


def test_a_panic_in_the_tokenizer_is_shown_and_the_next_drawing_is_answered(lab, monkeypatch):
    tokenizer = lab.model.tokenizer

    def panics(*_, **__):
        raise Panic("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(lab.model, "tokenizer", panics)
    monkeypatch.setattr(panics, "bos_token_id", None, raising=False)
    lab.gradient = Gradient([1, 0, 0, 1])
    with pytest.raises(Panic):
        lab.wait(60)
    assert "Panic: called `Option::unwrap()`" in lab.panel.problem.value
    lab.model.tokenizer = tokenizer
    lab.gradient = Gradient([0, 0, 0, 1])
    lab.wait(60)
    assert lab.panel.problem.value == ""
    assert "mean weight 0.25" in shown(lab, "columns")


def test_freed_while_it_answers_it_says_so_and_loads_the_model_again(lab, monkeypatch):
    model, writing = lab.model, threading.Event()
    tokens = itertools.repeat([1])

    def endless(*_, **__):
        for token in tokens:
            writing.set()
            model.forward(torch.tensor([token]))
            yield token

    monkeypatch.setattr(model, "stream", endless)
    lab.gradient = Gradient([1, 0, 0, 1])
    assert writing.wait(60)
    free()
    with pytest.raises(
        LabkitError, match="^this model was freed; call lk.live\\(base, adapter\\) ag"
    ):
        lab.wait(60)
    assert "this model was freed" in lab.panel.problem.value
    lab.gradient = Gradient([0, 0, 0, 1])
    lab.wait(60)
    assert lab.panel.problem.value == ""
    assert lab.model is not model


def test_freed_before_it_measures(lab, monkeypatch):
    measure = lab._answers.measure

    def freed(*arguments):
        free()
        measure(*arguments)

    monkeypatch.setattr(lab._answers, "measure", freed)
    lab.gradient = Gradient([1, 0, 0, 1])
    with pytest.raises(LabkitError, match="this model was freed"):
        lab.wait(60)


def table(lab):
    """The rows of the runs that were tried, by name."""
    return {row["name"]: row for row in lab._trail.table.rows if not row["fixed"]}


def press(lab, kind, **content):
    lab._trail.table._handle_custom_msg({"kind": kind, **content}, [])


def test_what_is_tried_is_a_row_and_a_press_brings_it_back(lab):
    lab.panel.scope.value = "mlp"
    lab.editor.weights = [0, 0, 0, 1]
    lab.panel.prompt.value, lab.panel.temperature.value = "Out of", 0.5
    lab.wait(60)
    tried = list(lab._trail.runs)
    first, last = tried[0], tried[-1]
    assert (first.gradient, first.question.prompt) == ("0,0.5,1x2", "In the")
    assert last.gradient == "all modules: 0,0.5,1x2; mlp: 0x3,1"
    assert lab._trail.table.current == last.key
    row = table(lab)[last.name]
    assert row["bars"] == [[0, 0.5, 1, 1], [0, 0, 0, 1]]
    assert row["said"].startswith("Out of → ")
    assert row["first"][0] == pytest.approx(last.readings[0].mean.value)
    press(lab, "recall", key=first.key)
    assert lab.recipe.terms[0].weights_for == {}
    assert (lab.panel.prompt.value, lab.panel.temperature.value) == ("In the", 0.0)
    lab.wait(60)
    assert lab._trail.table.current == first.key
    assert [run.key for run in lab._trail.runs] == [run.key for run in tried]
    # A point does the same; full LoRA, base and best constant can be brought back, too.
    lab._trail.map._handle_custom_msg({"key": last.key}, [])
    assert lab.recipe.terms[0].weights_for == {"mlp": Gradient([0, 0, 0, 1])}
    assert lab.panel.prompt.value == "Out of"
    press(lab, "recall", key="full")
    assert lab.recipe.terms[0].weights == Gradient.constant(4)
    press(lab, "recall", key="gone")
    assert lab._trail.table.problem == "there is no run 'gone' any more"
    lab.wait(60)


def test_a_run_that_cannot_be_brought_back_says_why(lab):
    (run,) = lab._trail.runs
    odd = replace(run, key="odd", question=replace(run.question, format="chat template"))
    lab._trail.runs._put(odd)
    press(lab, "recall", key="odd")
    assert lab._trail.table.problem == "this model has no prompt format 'chat template'"
    lab._trail.runs._put(replace(run, key="odd", weights=(("1x3", ()),)))
    press(lab, "recall", key="odd")
    assert "3 weights for 4 layers" in lab._trail.table.problem
    lab._trail.runs.always["base"] = replace(run, kind="base")  # and the lab lives on
    lab._trail.show()


def test_runs_are_a_table_and_come_back_with_the_lab(lab, words, tiny_adapter, tmp_path):
    lab.gradient = Gradient([1, 0, 0, 1])
    lab.wait(60)
    one, other = lab._trail.runs
    press(lab, "rename", key=one.key, name="late half")
    press(lab, "star", key=one.key, starred=True)
    frame = lab.runs
    assert list(frame["name"]) == ["base", "full LoRA", "best constant", "late half", "run 2"]
    assert list(frame["gradient"])[-2:] == ["0,0.5,1x2", "1,0x2,1"]
    assert frame[["first_nll", "second_nll", "kl"]].notna().all(axis=None)
    answers = re.findall(r'lab-text">(.*?)</div>', shown(lab, "columns"))
    told = [html.unescape(re.sub("</?mark>", "", text)) for text in answers]
    assert [frame["answer"][row] for row in (0, 4, 1)] == told
    texts = [Texts(name, given).sha256 for name, given in lab.texts.items()]
    assert [set(frame["first_sha256"]), set(frame["second_sha256"])] == [{one} for one in texts]
    again = Lab(words, tiny_adapter, prompt="In the", device="cpu")
    again.panel.live.value = False
    assert [row["name"] for row in again._trail.table.rows] == list(frame["name"])
    assert list(again.runs["gradient"])[-2:] == list(frame["gradient"])[-2:]
    again.wait(60)
    again.close()
    # With another weight outside the layers, the same gradient is another merge.
    other = Lab(words, tiny_adapter, rest=0.5, prompt="In the", device="cpu")
    assert len(other._trail.runs) == 0
    other.close()
    files = [runs_file(lab.recipe), runs_file(other.recipe), runs_file(lab.recipe, "nf4")]
    assert len(set(files)) == 3
    lab.panel.folder.value = str(tmp_path / "mine")
    lab.panel.save_runs.click()
    assert f"saved {tmp_path}/mine-runs.csv" in lab.panel.saved.value
    written = pd.read_csv(tmp_path / "mine-runs.csv", keep_default_na=False)
    assert list(written["name"]) == list(frame["name"])
    lab.panel.save_runs.click()
    assert "mine-runs.csv is there already" in lab.panel.saved.value


def test_a_damaged_file_of_runs_breaks_nothing(words, tiny_adapter, lab):
    file = runs_file(lab.recipe)
    file.write_bytes(b"\xff\x00{" + file.read_bytes())
    again = Lab(words, tiny_adapter, prompt="In the", device="cpu")
    again.panel.live.value = False
    again.wait(60)
    assert len(again._trail.runs) == 1
    again.close()


def test_two_runs_are_compared(lab):
    lab.gradient = Gradient([1, 0, 0, 1])
    lab.wait(60)
    one, other = lab._trail.runs
    press(lab, "compare", keys=[other.key])
    assert shown(lab, "compared") == ""
    press(lab, "compare", keys=[other.key, one.key])
    change = other.readings[0].less(one.readings[0])
    assert f"{other.name} less {one.name}, 95 %" in shown(lab, "compared")
    assert f"{abs(change.value):.3f} [" in shown(lab, "compared")
    press(lab, "compare", keys=[other.key, "base"])
    assert f"{other.name} less base, 95 %" in shown(lab, "compared")
    press(lab, "compare", keys=[])
    assert shown(lab, "compared") == ""


def test_without_answers_the_point_alone_is_a_run(lab):
    lab.panel.live.value = False
    lab.gradient = Gradient([1, 0, 0, 1])
    lab.wait(60)
    last = list(lab._trail.runs)[-1]
    assert (last.question, last.gradient) == (None, "1,0x2,1")
    lab.panel.answer.click()
    lab.wait(60)
    assert lab._trail.runs[last.key].answer != ""
    assert len(lab._trail.runs) == 2


def test_other_texts_are_chosen_in_the_panel(lab, tmp_path):
    axis = lab._choice._axes[1]
    axis.choice.value = "own text …"
    axis.own.value = "Some words.\n\nOther words."
    lab.wait(60)
    assert list(lab.texts) == ["King James text", "own second text"]
    assert lab._trail.map.texts == ["King James text", "own second text"]
    older, newer = table(lab).values()
    assert older["second"] is None
    assert newer["second"] is not None
    axis.own.value = "a"
    with pytest.raises(LabkitError, match="passage 0 of 'own second text' has nothing to predict"):
        lab.wait(60)
    problem = html.unescape(lab._choice._problem.value)
    assert "passage 0 of 'own second text' has nothing to predict" in problem
    axis.choice.value = "everyday text"
    lab.wait(60)
    assert lab._choice._problem.value == ""
    assert table(lab)["run 1"]["second"] is not None


def test_more_texts_than_two_are_choices(words, tiny_adapter):
    lab = Lab(words, tiny_adapter, texts={name: f"{name} text" for name in "abc"}, device="cpu")
    assert list(lab.texts) == ["a", "b"]
    offered = [name for _, name in lab._choice._axes[0].choice.options]
    assert {"a", "b", "c", "King James text", "everyday text"} < set(offered)
    lab.close()


def test_blind_listening_asks_both_with_the_same_dice(loud_base, loud_adapter):
    lab = Lab(loud_base, loud_adapter, gradient=HALF, tokens=5, temperature=1.0, device="cpu")
    lab.wait(60)
    listening = lab._listening
    listening.prompts.value = "In the"
    listening.first.value, listening.second.value = "base", next(iter(lab._trail.runs)).key
    listening.next()
    lab.wait(60)
    trial = listening.trial
    question = trial.question
    assert (question.prompt, question.tokens, question.temperature) == ("In the", 5, 1.0)
    for run, answer in zip((0.0, HALF), trial.answers, strict=True):
        steps = lab.model.stream("In the", [lab.model.mix(run)], 5, 1.0, question.seed)
        tokens = [token for (token,) in steps]
        assert answer == lab.model.tokenizer.decode(tokens, skip_special_tokens=True)
    listening.vote("A")
    lab.wait(60)
    assert list(lab.votes["vote"]) == ["second" if trial.swapped else "first"]
    lab.close()
    again = Lab(loud_base, loud_adapter, device="cpu")
    assert len(again.votes) == 1
    again.close()


def test_a_file_of_prompts_is_answered_by_the_starred_runs(loud_base, loud_adapter, tmp_path):
    lab = Lab(loud_base, loud_adapter, gradient=HALF, tokens=4, device="cpu")
    lab.wait(60)
    many = lab._many
    many.answer.click()
    assert "write the path of a file of prompts first" in many.said.value
    (tmp_path / "some.txt").write_text("In the\nOut of\n")
    many.path.value = str(tmp_path / "some.txt")
    many.answer.click()
    lab.wait(60)
    (run,) = lab._trail.runs
    expected = lk.answers(lab.model, ["In the", "Out of"], {run.name: HALF}, tokens=4)
    written = pd.read_csv(tmp_path / "some-answers.csv")
    pd.testing.assert_frame_equal(written, expected)
    assert f"saved {tmp_path}/some-answers.csv: 2 prompts × 3 gradients" in many.said.value
    assert (many.answer.disabled, many.stop.disabled) == (False, True)
    # With stars, these answer in place of what is drawn.
    press(lab, "star", key=run.key, starred=True)
    lab.gradient = Gradient([1, 0, 0, 1])
    lab.wait(60)
    many.answer.click()
    lab.wait(60)
    assert list(pd.read_csv(tmp_path / "some-answers.csv")["gradient"])[:3] == [
        "base", "full LoRA", run.name,
    ]  # fmt: skip
    lab.close()


@pytest.fixture
def chatty(tmp_path):
    """A base with a chat template, and a LoRA that changes much."""
    base = make_base(tmp_path / "chatty", initializer_range=0.3)
    adapter = make_adapter(tmp_path / "lora", base, scale=0.3)
    template = (
        "{% for one in messages %}{{ one.role[0] }}:{{ one.content }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    return make_tokenizer(base, template), adapter


def test_a_conversation_goes_on_with_each_models_own_answers(chatty):
    lab = Lab(
        *chatty, gradient=HALF, prompt="Hi", format="chat template", tokens=3,
        device="cpu",
    )  # fmt: skip
    lab.wait(60)
    talk, panel = lab._conversation, lab.panel
    assert talk.widget.layout.display == "flex"
    (first,) = lab._trail.runs
    answers = dict(zip(lab.runs["kind"], lab.runs["answer"], strict=True))
    said = [answers["base"], answers["run"], answers["full LoRA"]]
    talk.more.click()
    assert talk.turns == (("Hi", *said),)
    assert panel.prompt.value == ""
    lab.wait(60)
    assert "1 turn before this prompt" in talk.said.value
    assert shown(lab, "columns").count('class="lab-turn"') == 3
    assert len(lab._trail.runs) == 1  # nothing is asked while nothing is written
    talk.more.click()
    assert "wait for whole answers" in talk.said.value
    asked, stream = [], lab.model.stream

    def streaming(prompt, mixes, *given):
        asked.append((prompt, [mix.weights for mix in mixes]))
        return stream(prompt, mixes, *given)

    lab.model.stream = streaming
    panel.prompt.value = "More"
    lab.wait(60)
    mixes = [lab.model.mix(one).weights for one in (0.0, HALF, 1.0)]
    assert len(set(said)) == 3
    assert asked == [
        (f"u:Hi;a:{answer};u:More;a:", [mix]) for answer, mix in zip(said, mixes, strict=True)
    ]
    last = list(lab._trail.runs)[-1]
    assert last.question.turns == (("Hi", *said),)
    # A press on an earlier run brings its conversation back, which had no turns.
    press(lab, "recall", key=first.key)
    assert (talk.turns, panel.prompt.value) == ((), "Hi")
    press(lab, "recall", key=last.key)
    assert (talk.turns, panel.prompt.value) == ((("Hi", *said),), "More")
    talk.afresh.click()
    assert (talk.turns, talk.said.value) == ((), "")
    panel.kind.value = "plain"
    assert talk.widget.layout.display == "none"
    lab.wait(60)


def test_a_full_model_and_a_dora_are_heard(words, tmp_path):
    other = noisy(words, tmp_path / "other", scale=0.2)
    dora = make_adapter(tmp_path / "dora", words, 0.3, use_dora=True, target_modules=["q_proj"])
    lab = Lab(words, other, dora, gradient=HALF, rest=0.5, prompt="In the", tokens=5, device="cpu")
    lab.wait(120)
    assert lab.panel.scope.options[1:] == (("attention", "self_attn"), ("MLP", "mlp"))
    first = shown(lab, "columns")
    assert all(said in first for said in ("full LoRA", "mean weight"))
    assert lab.editor.norms == []
    lab.panel.matters.value = True
    lab.editor.weights = [1, 0, 0, 1]
    lab.wait(120)
    assert shown(lab, "columns") != first
    assert [len(rows) for rows in lab.editor.evidence.values()] == [4, 4]
    assert all(row[0] != 0 for rows in lab.editor.evidence.values() for row in rows)
    found = lab.model.logits("light")
    lab.model.use(lab.recipe.terms)
    assert not torch.equal(found, lab.model.logits("light"))
    merged = tmp_path / "merged"
    lab.write(merged)
    lab.wait(120)
    assert lab.receipt is not None
    lab.close()


def test_the_status_says_what_is_heard_in_other_numbers(words, tiny_adapter, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda: 1)
    lab = Lab(words, tiny_adapter, gradient=HALF, tokens=5, device="cpu")
    lab.wait(60)
    assert "heard in bfloat16: float32 needs 0.5 GB, and 0.0 GB are free" in lab.panel.status.value
    lab.close()


def test_a_quantised_model_is_called_an_approximation(words, tiny_adapter):
    pytest.importorskip("bitsandbytes")
    lab = Lab(words, tiny_adapter, gradient=HALF, tokens=5, device="cpu", quantize="int8")
    lab.wait(60)
    said = re.search(
        r"an approximation: quantised to int8; KL (\S+) nats per token from the unquantised",
        lab.panel.status.value,
    )
    assert said
    assert float(said[1]) > 0
    lab.close()
