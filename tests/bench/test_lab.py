"""The lab without a browser: what its controls do, and that it always says what is on screen."""

from __future__ import annotations

import filecmp
import re

import pytest

from labkit.bench.lab import Lab
from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import free
from labkit.inference.prompts import formats, formatted
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe, Term

HALF = Gradient.parse("0,0.5,1,1")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    yield
    free()


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
    assert "NLL on everyday text" in shown(lab, "plane")
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
    assert len(lab._answers.plane.trail) >= 1


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


def test_several_adapters(words, tiny_adapter, second_adapter):
    lab = Lab(words, tiny_adapter, second_adapter, gradient=HALF, device="cpu")
    lab.panel.length.value = 3
    lab.panel.which.value = 1
    assert lab.editor.names[1] == "second"
    lab.gradient = Gradient([1, 1, 1, 0])
    lab.panel.which.value = 0
    assert lab.gradient == HALF
    assert [term.weights for term in lab.recipe.terms] == [HALF, Gradient([1, 1, 1, 0])]
    lab.wait(60)


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


def test_an_error_is_a_red_line_and_is_raised_by_wait(lab, tmp_path):
    (tmp_path / "there").mkdir()
    lab.write(tmp_path / "there")
    with pytest.raises(LabkitError, match="there"):
        lab.wait(60)
    assert 'role="alert"' in lab.panel.problem.value
    assert lab.receipt is None
    lab.editor.weights = [1, 1, 1, 1]
    lab.wait(60)
    assert lab.panel.problem.value == ""


def test_a_cancelled_merge_leaves_nothing(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(lab._cancel, "clear", lab._cancel.set)
    lab.write(tmp_path / "ended")
    lab.wait(60)
    assert "cancelled" in shown(lab, "receipt")
    assert not (tmp_path / "ended").exists()
    assert lab.receipt is None


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
    assert "saved" in lab.panel.status.value


def test_what_was_drawn_last_comes_back(lab, words, tiny_adapter):
    lab.panel.scope.value = "mlp"
    lab.editor.weights = [0.25, 0, 0, 1]
    lab.wait(60)
    again = Lab(words, tiny_adapter, device="cpu")
    assert again.gradient == HALF
    assert again.recipe.terms[0].weights_for == {"mlp": Gradient([0.25, 0, 0, 1])}
    again.close()


def test_a_kept_state_that_is_damaged_is_passed_over(lab, words, tiny_adapter):
    lab._state_file().write_text('{"terms": [{"weights": "1x3", "weights_for": {}}]}')
    again = Lab(words, tiny_adapter, device="cpu")
    assert again.gradient == Gradient.constant(4)
    again.close()


def test_what_is_wrong_is_said_at_once(words, tiny_adapter):
    with pytest.raises(LabkitError, match="3 weights for 4 layers"):
        Lab(words, tiny_adapter, gradient=Gradient([1, 1, 1]))
    with pytest.raises(LabkitError, match="the lab probes two texts, found 1"):
        Lab(words, tiny_adapter, texts={"one": "text"})


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
