"""What matters for the gradient on the screen: against `lk.sensitivity`, module by module."""

from __future__ import annotations

import numpy as np
import pytest

import labkit as lk
from labkit.bench.evidence import evidence, quick_copy, said_of
from labkit.gradients.gradient import Gradient
from labkit.merging.recipe import Recipe, Term
from labkit.probing.texts import Texts

TEXTS = Texts("one", ["In the beginning", "was the Word", "and the Word was"])


def recipe(model, **weights_for):
    weights = Gradient.parse("0,0.5,1,-0.5")
    parsed = {name: Gradient.parse(text) for name, text in weights_for.items()}
    return Recipe(model.base, [Term(model.adapters[0], weights, parsed)])


def test_each_gradient_has_the_modules_that_it_counts_for(loud):
    whole = recipe(loud, self_attn="1,0,1,0", q_proj="0.5x4")
    loud.use(whole.terms)
    modules = lk.sensitivity(loud, TEXTS, by="module")
    mine = {
        "": ["mlp"],
        "self_attn": ["k_proj", "v_proj", "o_proj"],
        "q_proj": ["q_proj"],
    }
    for pattern, names in mine.items():
        rows = modules[modules["module"].str.contains("|".join(names))]
        expected = rows.groupby("layer")["estimate"].sum()
        found = np.array(evidence(loud, TEXTS, whole, 0, pattern))
        assert found[:, 0] == pytest.approx(expected.to_numpy(), rel=1e-6)
        assert (found[:, 1] < found[:, 0]).all()
        assert (found[:, 0] < found[:, 2]).all()


def test_one_passage_has_no_interval(loud):
    rows = evidence(loud, Texts("one", ["In the beginning"]), recipe(loud), 0, "")
    assert [row[1:] for row in rows] == [(None, None)] * 4
    assert all(isinstance(row[0], float) for row in rows)


def test_a_small_model_is_measured_in_bfloat16(loud, monkeypatch):
    copy = quick_copy(loud)
    assert str(next(copy._model.parameters()).dtype) == "torch.bfloat16"
    assert quick_copy(loud) is copy
    monkeypatch.setattr("labkit.bench.evidence.COPIED_BYTES", 10)
    assert quick_copy(loud) is loud


def test_what_was_measured_is_said():
    said = said_of([TEXTS, Texts("two", ["a text"])], 30, "the gradient 1x30")
    assert said == (
        "How the NLL begins to change as a layer's weight is raised (∂NLL/∂w, nats per token), at "
        "the gradient 1x30. Read: the first 32 tokens of 3 passages of one and 1 passage of two. "
        "Whiskers are 95 % intervals; of 60 of them 3 leave out the truth."
    )
