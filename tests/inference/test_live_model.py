"""A live model answers what the written merge answers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import LiveModel, free, live
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe, Term
from tests.tiny import make_adapter

GRADIENTS = ["0x4", "1x4", "0,0.5,1,1", "1,0,-0.5,2", "0.1,0.2,0.3,0.4"]


@pytest.fixture
def model(words, tiny_adapter):
    yield live(words, tiny_adapter, device="cpu")
    free()


def merged_logits(recipe, folder, text, model):
    plan(recipe).write(folder, progress=False)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return merged(model.tokens(text)).logits[0]


@pytest.mark.parametrize("weights", GRADIENTS)
def test_logits_are_those_of_the_written_merge(model, words, tiny_adapter, tmp_path, weights):
    gradient = Gradient.parse(weights)
    recipe = Recipe(words, [Term(tiny_adapter, gradient)], dtype="float32")
    expected = merged_logits(recipe, tmp_path / "merged", "In the beginning", model)
    model.weights = gradient
    torch.testing.assert_close(model.logits("In the beginning"), expected, atol=1e-4, rtol=0)


def test_a_baked_adapter_answers_the_same_in_plain_peft(model, words, tiny_adapter, tmp_path):
    from peft import PeftModel

    from labkit.publishing.baking import bake

    gradient = Gradient.parse("0,0.5,-1,2")
    bake(tiny_adapter, gradient, tmp_path / "baked")
    base = AutoModelForCausalLM.from_pretrained(words, dtype=torch.float32)
    baked = PeftModel.from_pretrained(base, tmp_path / "baked")
    with torch.inference_mode():
        expected = baked(model.tokens("In the beginning")).logits[0]
    model.weights = "0x4"
    assert (model.logits("In the beginning") - expected).abs().max() > 1e-3
    model.weights = gradient
    torch.testing.assert_close(model.logits("In the beginning"), expected, atol=1e-4, rtol=0)


def test_several_adapters_and_module_patterns(words, tiny_adapter, second_adapter, tmp_path):
    model = live(words, tiny_adapter, second_adapter, device="cpu")
    terms = [
        Term(tiny_adapter, "0,0.5,1,1", {"mlp": "1x4"}),
        Term(second_adapter, "1,0.5,0,0"),
    ]
    expected = merged_logits(
        Recipe(words, terms, dtype="float32"), tmp_path / "merged", "light", model
    )
    model.use(terms)
    torch.testing.assert_close(model.logits("light"), expected, atol=1e-4, rtol=0)
    model.weights = {"tiny-lora": "0x4", "second": "0x4"}
    model.weights = {"tiny-lora": "0,0.5,1,1", "tiny-lora:mlp": "1x4", 1: "1,0.5,0,0"}
    torch.testing.assert_close(model.logits("light"), expected, atol=1e-4, rtol=0)
    assert model.weights["second"] == Gradient.parse("1,0.5,0,0")
    with pytest.raises(LabkitError, match="the model has 2 adapters \\(tiny-lora, second\\)"):
        model.weights = "0x4"
    with pytest.raises(LabkitError, match="no adapter 'third'; the model has tiny-lora, second"):
        model.weights = {"third": "0x4"}


def test_mixtures_in_one_batch_answer_as_each_alone(model):
    mixes = [model.mix(0), model.mix(Gradient.parse("0,0.5,1,1")), model.mix(1)]
    tokens = model.tokens("In the beginning").expand(3, -1)
    together = model.forward(tokens, mixes).logits
    for row, mix in enumerate(mixes):
        alone = model.forward(tokens[:1], [mix]).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-4)
    assert not torch.equal(together[0], together[2])


def test_weight_0_is_the_base(model, words):
    base = AutoModelForCausalLM.from_pretrained(words, dtype=torch.float32)
    model.weights = "0x4"
    with torch.inference_mode():
        expected = base(model.tokens("word")).logits[0]
    assert torch.equal(model.logits("word"), expected)


def test_new_weights_count_at_the_next_token(model):
    model.weights = "0x4"
    pieces = model.generate("In the", max_tokens=12)
    begun = next(pieces)
    scalings = {module.scaling[key] for module, key, _ in model.loras[0].values()}
    assert scalings == {0}
    model.weights = "0,0.5,1,1"
    begun += next(pieces, "")
    scalings = {module.scaling[key] for module, key, _ in model.loras[0].values()}
    assert scalings == {0, 1, 2}  # alpha / r is 2


def test_generating_stops_at_the_length_and_repeats_itself(model):
    answers = ["".join(model.generate("In the", 9, temperature=1.0, seed=3)) for _ in range(2)]
    assert answers[0] == answers[1]
    assert 0 < len(answers[0]) <= 9


def test_columns_with_equal_weights_throw_the_same_dice(model):
    mixes = [model.mix(1), model.mix(Gradient.parse("1x4")), model.mix(0.5)]
    steps = list(model.stream("In", mixes, 8, temperature=1.5, seed=1))
    assert [step[0] for step in steps] == [step[1] for step in steps]


def test_nll_and_next_tokens(model):
    texts = ["In the beginning", "light"]
    logits = [model.logits(text)[:-1] for text in texts]
    targets = [model.tokens(text)[0, 1:] for text in texts]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))
    assert model.nll(texts) == pytest.approx(expected.item(), rel=1e-5)
    assert model.nll_of(texts, [model.mix(1), model.mix(0)])[0] == pytest.approx(
        expected.item(), rel=1e-5
    )
    top = model.next_tokens("light", 5)
    assert len(top) == 5
    assert [share for _, share in top] == sorted((share for _, share in top), reverse=True)
    with pytest.raises(LabkitError, match="nothing to predict"):
        model.nll("a")


def test_asking_again_gives_the_same_model_back(model, words, tiny_adapter):
    assert live(words, tiny_adapter, device="cpu") is model
    assert model.weights == Gradient.constant(4)


def test_free_gives_the_memory_back(words, tiny_adapter):
    model = live(words, tiny_adapter, device="cpu")
    inside = weakref.ref(model._model)
    free()
    gc.collect()
    assert inside() is None
    assert model.freed
    with pytest.raises(LabkitError, match="this model was freed; call lk"):
        model.logits("light")
    assert live(words, tiny_adapter, device="cpu") is not model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "the device 'tpu' is unknown; expected cuda, mps, cpu or auto"),
        ({"dtype": "int8"}, "the dtype 'int8' is unknown; expected auto, float32"),
    ],
)
def test_what_is_not_there_is_said(words, tiny_adapter, arguments, message):
    with pytest.raises(LabkitError, match=message):
        live(words, tiny_adapter, **arguments)


def test_an_adapter_is_needed_and_gradients_fit(model, words):
    with pytest.raises(LabkitError, match="needs at least one adapter"):
        live(words)
    with pytest.raises(LabkitError, match="3 weights for 4 layers \\(adapter tiny-lora\\)"):
        model.weights = "1x3"
    assert isinstance(model, LiveModel)


def test_a_model_with_code_of_its_own_is_not_run(tmp_path, words, tiny_adapter):
    import json
    import shutil

    folder = tmp_path / "own-code"
    shutil.copytree(words, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own_kind"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(LabkitError, match="transformers cannot load"):
        live(folder, tiny_adapter)
    assert not (tmp_path / "ran").exists()


def test_a_merge_tells_its_progress_and_can_be_ended(words, tiny_adapter, tmp_path):
    merge = plan(Recipe(words, [Term(tiny_adapter, "1x4")]))
    told = []
    merge.write(tmp_path / "merged", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0

    def enough(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge.write(tmp_path / "ended", progress=enough)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_kind_for_which_scaling_is_not_exact_is_refused(words, tmp_path):
    dora = make_adapter(tmp_path / "dora", words, use_dora=True)
    with pytest.raises(LabkitError, match="a live model works on plain LoRA only, and dora holds"):
        live(words, dora)
