"""Layers × modules: the matrix as a term, and in the lab."""

from __future__ import annotations

import pytest

import labkit as lk
from labkit.bench.painting import Painting
from labkit.errors import LabkitError
from labkit.inference.live_model import free
from tests.tiny import ALL_LINEAR, make_adapter

HALF = lk.Gradient.parse("0,0.5,1,1")


def painted(matrix, row, layers, weight):
    """The cells with some of them painted, as the browser sends them."""
    cells = [list(each) for each in matrix.cells]
    for layer in layers:
        cells[matrix.rows.index(row)][layer] = weight
    matrix.cells = cells


def test_what_is_painted_is_a_term(tiny_base, tiny_adapter):
    matrix = lk.MatrixEditor(tiny_base, tiny_adapter, HALF)
    assert matrix.rows == ALL_LINEAR
    assert matrix.term.weights == HALF
    assert matrix.term.weights_for == {}
    for row in ALL_LINEAR[:4]:
        painted(matrix, row, [0, 3], 2)
    assert matrix.term.weights == HALF
    assert matrix.term.weights_for == {"self_attn": lk.Gradient([2, 0.5, 1, 2])}
    plan = lk.plan(lk.Recipe(tiny_base, [matrix.term]))
    weights = {(row.base_tensor, row.weight) for row in plan.ledger if row.layer == 3}
    assert {weight for name, weight in weights if "self_attn" in name} == {2}
    assert {weight for name, weight in weights if "mlp" in name} == {1}
    # How much it changes there: layer_norms of that kind of module.
    norms = matrix.norms[ALL_LINEAR.index("up_proj")]
    expected = lk.survey(tiny_base, tiny_adapter).query("module == 'up_proj'")["relative_norm"]
    assert norms == pytest.approx(list(expected))


def test_a_term_is_read_and_its_fit_stays_until_it_is_painted(tiny_base, second_adapter):
    term = lk.Term(second_adapter, "1x4", {"down_proj": "0,0,1,1"})
    matrix = lk.MatrixEditor(tiny_base, term, norms=False, brush=0.5)
    assert matrix.gradients == {
        "q_proj": lk.Gradient([1] * 4), "down_proj": lk.Gradient([0, 0, 1, 1]),
    }  # fmt: skip
    assert matrix.term is term
    assert matrix.norms == []
    matrix.term = lk.Term(term.source, "0x4")
    assert matrix.cells == [[0] * 4] * 2
    with pytest.raises(LabkitError, match="the matrix"):
        lk.MatrixEditor(tiny_base, second_adapter, "1x3")


def test_a_full_model_has_rows_for_all_that_a_layer_holds(tiny_base, words):
    term = lk.Term(str(words), HALF)
    matrix = lk.MatrixEditor(tiny_base, lk.Checkpoint(words), HALF)
    assert matrix.rows == [*ALL_LINEAR, "input_layernorm", "post_attention_layernorm"]
    painted(matrix, "input_layernorm", range(4), 0)
    plan = lk.plan(lk.Recipe(tiny_base, [matrix.term], 0))
    found = {
        row.weight for row in plan.ledger if row.base_tensor.endswith("input_layernorm.weight")
    }
    assert found == {0}
    assert matrix.norms == []
    assert term.weights == matrix.term.weights


def test_an_adapter_without_modules_in_the_layers_is_told(tiny_base, tmp_path):
    folder = make_adapter(tmp_path / "head", tiny_base, target_modules=["embed_tokens"])
    text = "head changes no module in a layer of tiny-llama: there are no weights of layers to"
    with pytest.raises(LabkitError, match=text):
        lk.MatrixEditor(tiny_base, folder)
    recipe = lk.Recipe(tiny_base, [lk.Term(folder, HALF)], 1)
    painting = Painting(lambda index, term: None)
    painting.toggle.value = True
    painting.show(recipe, 0)
    assert text in painting.box.children[0].value


@pytest.fixture
def lab(words, tiny_adapter, second_adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    # What the model answers has its own tests.
    monkeypatch.setattr(lk.Lab, "_refresh", lambda lab, *given, **named: lab._show_picture())
    made = lk.Lab(words, tiny_adapter, second_adapter, gradient=HALF, device="cpu")
    yield made
    made.close()
    free()


def scopes(lab):
    return [pattern for _, pattern in lab.panel.scope.options]


def test_painting_in_the_lab_is_in_its_recipe_and_can_be_cleared(lab):
    assert lab.painting.box.layout.display == "none"
    assert lab.painting.matrix is None
    lab.painting.toggle.value = True
    matrix = lab.painting.matrix
    assert lab.painting.box.layout.display is None
    assert matrix.rows == ALL_LINEAR
    painted(matrix, "q_proj", [1], 0.75)
    q = lk.Gradient([0, 0.75, 1, 1])
    assert lab.recipe.terms[0].weights_for == {"q_proj": q}
    assert lab.gradient == HALF
    # Seen beside the curve, chosen with a press, and cleared with a press.
    first = lab.recipe.terms[0].source.name
    assert lab.editor.others[f"{first} q_proj"] == list(q)
    assert scopes(lab) == ["", "self_attn", "mlp", "q_proj"]
    lab.editor.chosen = f"{first} q_proj"
    assert lab.panel.scope.value == "q_proj"
    assert lab.gradient == q
    assert lab.editor.chosen == ""
    lab.gradient = lk.Gradient([0, 0, 0, 1])
    assert matrix.gradients["q_proj"] == lab.gradient
    assert matrix.gradients["k_proj"] == HALF
    lab.wait(60)
    assert f"{first}: q_proj: <code>0,0,0,1</code>" in lab._picture_html()
    lab.clear(0, "q_proj")
    assert matrix.gradients == dict.fromkeys(ALL_LINEAR, HALF)
    assert lab.gradient == HALF
    assert scopes(lab) == ["", "self_attn", "mlp"]
    # What is undone in the browser arrives as any other painting.
    painted(matrix, "q_proj", [0, 1, 2], 0)
    painted(matrix, "q_proj", [1, 2], 0.5)
    painted(matrix, "q_proj", [2], 1)
    assert lab.recipe.terms[0].weights_for == {}


def test_a_column_is_painted_into_the_gradient_of_all_modules(lab):
    lab.painting.toggle.value = True
    matrix = lab.painting.matrix
    matrix.cells = [[row[0], row[1], -1, row[3]] for row in matrix.cells]
    assert lab.gradient == lk.Gradient([0, 0.5, -1, 1])
    assert lab.recipe.terms[0].weights_for == {}


def test_the_matrix_and_the_editor_show_the_adapter_that_is_chosen(lab):
    second = lab.recipe.terms[1].source.name
    assert list(lab.editor.others) == [second]
    lab.painting.toggle.value = True
    lab.editor.chosen = second
    matrix = lab.painting.matrix
    assert lab.panel.which.value == 1
    assert matrix.rows == ["q_proj", "down_proj"]
    assert matrix.names[1] == second
    painted(matrix, "down_proj", [3], 0)
    assert lab.recipe.terms[1].weights_for == {"down_proj": lk.Gradient([0, 0.5, 1, 0])}
    assert lab.recipe.terms[0].weights_for == {}
    lab.panel.which.value = 0
    assert matrix.rows == ALL_LINEAR
    assert f"{second} down_proj" in lab.editor.others


def test_what_is_painted_is_heard(words, tiny_adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    lab = lk.Lab(words, tiny_adapter, gradient=HALF, prompt="In the", tokens=3, device="cpu")
    lab.painting.toggle.value = True
    lab.wait(60)
    assert len(lab.painting.matrix.norms) == len(ALL_LINEAR)
    painted(lab.painting.matrix, "q_proj", range(4), 0.25)
    lab.wait(60)
    columns = lab.panel._shown["columns"].value
    assert "mean weights: all modules 0.62, q_proj 0.25" in columns
    lab.close()
    # It comes back, as everything that is drawn.
    again = lk.Lab(words, tiny_adapter, tokens=3, device="cpu")
    assert again.recipe.terms[0].weights_for == {"q_proj": lk.Gradient.constant(4, 0.25)}
    again.close()
    free()
