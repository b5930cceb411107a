"""Full models as terms of a merge, against `W + Σ w·(W_model − W)` computed directly."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit import Adapter, Checkpoint, Gradient, LabkitError, Recipe, Term, plan, verify
from labkit.models.full_model import FullModel, open_source
from tests.tiny import ALL_LINEAR, load_file_of, make_adapter, make_base, merged_by_peft

RAMP = [0.0, 0.25, 0.5, 1.0]
LAYERS = 4


def another(folder, base, seed=7, **changes):
    """A model of the base's shape whose numbers are a little different."""
    make_base(folder, **changes)
    generator = torch.Generator().manual_seed(seed)
    for path in folder.glob("*.safetensors"):
        tensors = {
            name: (values.float() + 0.02 * torch.randn(values.shape, generator=generator)).to(
                values.dtype
            )
            for name, values in load_file(path).items()
        }
        save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def second(tmp_path_factory, tiny_base):
    return another(tmp_path_factory.mktemp("second") / "second", tiny_base, shard="5GB")


def weight_of(name, gradient, rest):
    return gradient[int(name.split(".")[2])] if ".layers." in name else rest


def directly(base, terms, rest, dtype=torch.bfloat16):
    """`round(W + Σ w·(W_model − W))` with torch, in float64."""
    ours, merged = load_file_of(base), {}
    models = [(load_file_of(folder), gradient) for folder, gradient in terms]
    for name, values in ours.items():
        total = values.double()
        for theirs, gradient in models:
            weight = weight_of(name, gradient, rest)
            total = total + weight * (theirs[name].double() - values.double())
        merged[name] = total.to(dtype)
    return merged


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


def test_a_ratio_for_each_layer_of_two_models(tiny_base, second, tmp_path):
    """What the seed's merge-cli.py does: embeddings, norm and head come from the second model."""
    resolved = plan(tiny_base, second, Gradient(RAMP), rest=1.0)
    resolved.write(tmp_path / "merged", progress=False)
    merged = load_file_of(tmp_path / "merged")
    assert_same(merged, directly(tiny_base, [(second, RAMP)], 1.0))
    theirs, ours = load_file_of(second), load_file_of(tiny_base)
    for name, values in merged.items():
        if ".layers.0." in name:
            assert torch.equal(values, ours[name]), name
        if ".layers." not in name or ".layers.3." in name:
            assert torch.equal(values, theirs[name]), name
    assert verify(tmp_path / "merged").files > 0


def test_models_and_adapters_in_one_recipe(tiny_base, second, tiny_adapter, tmp_path):
    third = another(tmp_path / "third", tiny_base, seed=8)
    terms = [
        Term(FullModel(second), Gradient([0.3] * LAYERS)),
        Term(Adapter(tiny_adapter), Gradient(RAMP)),
        Term(Checkpoint(third), Gradient([0.1, 0, 0.2, 0.3])),
    ]
    recipe = Recipe(Checkpoint(tiny_base), terms, rest=0.25, dtype="float32")
    plan(recipe).write(tmp_path / "merged", progress=False)
    expected = directly(
        tiny_base, [(second, [0.3] * 4), (third, [0.1, 0, 0.2, 0.3])], 0.25, torch.float64
    )
    lora = merged_by_peft(tiny_base, tiny_adapter, RAMP)
    ours = load_file_of(tiny_base)
    for name, values in load_file_of(tmp_path / "merged").items():
        wanted = expected[name] + (lora[name].double() - ours[name].double())
        np.testing.assert_allclose(values.double(), wanted, atol=3e-7)


def test_the_recipe_names_the_model_and_is_read_again(tiny_base, second, tmp_path):
    resolved = plan(tiny_base, second, Gradient(RAMP), rest=0.5)
    resolved.write(tmp_path / "merged", progress=False)
    text = (tmp_path / "merged" / "recipe.yaml").read_text()
    assert "source:\n    model:\n      reference: " in text
    again = Recipe.load(tmp_path / "merged" / "recipe.yaml")
    assert isinstance(again.terms[0].source, FullModel)
    assert (again.terms[0].source.folder, again.terms[0].weights) == (second, Gradient(RAMP))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "- full model: second" in card
    assert "1 is all of the full model" in card
    assert "- merge\n- gradient-merge\n- labkit\n" in card
    assert ("model", "second, mean weight 0.44, 0,0.25,0.5,1") in [*resolved.summary()]


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"weights": "1x4"}, "has no adapter; expected adapter: …, or source: {model: …}"),
        ({"adapter": "a", "source": {"model": "b"}, "weights": "1x4"}, "has both adapter and so"),
        ({"source": {"modle": "b"}, "weights": "1x4"}, "known are adapter, model"),
        ({"source": {}, "weights": "1x4"}, "expected one of adapter and model"),
        ({"source": "b", "weights": "1x4"}, "expected one of adapter and model"),
        ({"source": {"model": "b"}}, "has no weights"),
    ],
)
def test_a_recipe_that_names_it_wrongly(tiny_base, tmp_path, term, message):
    text = json.dumps({"base": str(tiny_base), "terms": [term]})
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(LabkitError, match=message.replace("{", r"\{").replace("}", r"\}")):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_model_that_is_tied_gives_its_head_to_one_that_is_not(tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    model = another(tmp_path / "model", base, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file_of(model)
    plan(base, model, "1x4", rest=1.0).write(tmp_path / "merged", progress=False)
    merged, theirs = load_file_of(tmp_path / "merged"), load_file_of(model)
    assert torch.equal(merged["lm_head.weight"], theirs["model.embed_tokens.weight"])


def test_a_head_of_its_own_needs_untie(tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    model = another(tmp_path / "model", base, tie_word_embeddings=False)
    with pytest.raises(LabkitError, match="untie them"):
        plan(base, model, "1x4", rest=1.0)
    recipe = Recipe(Checkpoint(base), [Term(model, Gradient(RAMP))], rest=1.0, untie=True)
    plan(recipe).write(tmp_path / "merged", progress=False)
    merged, theirs = load_file_of(tmp_path / "merged"), load_file_of(model)
    assert torch.equal(merged["lm_head.weight"], theirs["lm_head.weight"])


def test_a_larger_vocabulary_comes_with_its_tokenizer(words, tmp_path):
    model = another(tmp_path / "model", words, vocab_size=136)
    shutil.copy(words / "tokenizer.json", model)
    settings = json.loads((words / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "mine": 1}))
    plan(words, model, Gradient(RAMP), rest=0.5).write(tmp_path / "merged", progress=False)
    merged, ours, theirs = map(load_file_of, (tmp_path / "merged", words, model))
    name = "model.embed_tokens.weight"
    mixed = (ours[name].double() + theirs[name][:128].double()) / 2
    assert torch.equal(merged[name][:128], mixed.to(torch.bfloat16))
    assert torch.equal(merged[name][128:], theirs[name][128:])
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == 136
    assert '"mine"' in (tmp_path / "merged" / "tokenizer_config.json").read_text()


def test_with_the_same_vocabulary_the_bases_tokenizer_stays(words, tmp_path):
    model = another(tmp_path / "model", words)
    shutil.copy(words / "tokenizer.json", model)
    (model / "tokenizer_config.json").write_text("{}")
    plan(words, model, Gradient(RAMP), rest=0.5).write(tmp_path / "merged", progress=False)
    kept = (tmp_path / "merged" / "tokenizer_config.json").read_bytes()
    assert kept == (words / "tokenizer_config.json").read_bytes()


def test_what_is_refused(tiny_base, second, tmp_path):
    with pytest.raises(LabkitError, match="the model three has 3 layers and the base tiny-llama 4"):
        plan(tiny_base, make_base(tmp_path / "three", layers=3), "1x4", rest=1.0)
    with pytest.raises(LabkitError, match="lies outside the layers, and no layer weight counts"):
        plan(tiny_base, second, "1x4")
    wide = make_base(tmp_path / "wide", intermediate_size=96)
    with pytest.raises(LabkitError, match="the model was made for another model"):
        plan(tiny_base, wide, "1x4", rest=1.0)
    odd = make_base(tmp_path / "odd", attention_bias=True)
    with pytest.raises(LabkitError, match=r"of the model odd's tensors match nothing"):
        plan(tiny_base, odd, "1x4", rest=1.0)
    with pytest.raises(LabkitError, match=r"lacks 16 tensors of the layers of the base odd"):
        plan(odd, tiny_base, "1x4", rest=1.0)
    (tmp_path / "wide" / "config.json").write_text(
        json.dumps({"num_hidden_layers": 4, "quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(LabkitError, match="is quantised"):
        FullModel(wide)


def test_numbers_that_are_not_finite_end_the_merge(tiny_base, tmp_path):
    model = another(tmp_path / "model", tiny_base, shard="5GB")
    (path,) = model.glob("*.safetensors")
    tensors = load_file(path)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    resolved = plan(tiny_base, model, "1x4", rest=1.0)
    with pytest.raises(LabkitError, match=r"up_proj.weight' of .* NaN or infinite"):
        resolved.write(tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged").exists()


def test_the_base_itself_changes_nothing_and_says_so(tiny_base, tmp_path):
    resolved = plan(tiny_base, tiny_base, Gradient([0.3] * 4), rest=0.3)
    assert any("is the base itself" in note for note in resolved.notes)
    resolved.write(tmp_path / "merged", progress=False)
    assert_same(load_file_of(tmp_path / "merged"), load_file_of(tiny_base))


def test_a_folder_is_opened_as_what_it_is(tiny_base, tiny_adapter):
    assert isinstance(open_source(tiny_base), FullModel)
    adapter = open_source(tiny_adapter)
    assert isinstance(adapter, Adapter)
    assert open_source(adapter) is adapter
    with pytest.raises(LabkitError, match="is no adapter, which is needed here"):
        _ = Term(tiny_base, Gradient(RAMP)).adapter


def test_its_deltas_are_those_of_a_merged_adapter(tiny_base, tmp_path):
    """A LoRA and the model that it was merged into make the same merge, but for rounding."""
    adapter = make_adapter(tmp_path / "lora", tiny_base, target_modules=ALL_LINEAR)
    whole = plan(Recipe(Checkpoint(tiny_base), [Term(adapter, "1x4")], dtype="float32"))
    whole.write(tmp_path / "whole", progress=False)
    for out, source in (("one", adapter), ("other", tmp_path / "whole")):
        recipe = Recipe(Checkpoint(tiny_base), [Term(source, Gradient(RAMP))], 0.0, "float32")
        plan(recipe).write(tmp_path / out, progress=False)
    one, other = load_file_of(tmp_path / "one"), load_file_of(tmp_path / "other")
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], atol=1e-7)
