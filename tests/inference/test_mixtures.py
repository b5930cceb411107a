"""A recipe with a method is heard as the merge that it writes, bit for bit."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from labkit import Gradient, LabkitError, Recipe, Term, plan
from labkit.inference import live_model
from labkit.inference.live_model import free, live
from labkit.inference.merged_tensors import MergedTensor
from labkit.inference.mixtures import memory_to_merge
from labkit.machine import workers
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from tests.inference.helpers import noisy
from tests.inference.test_merged_tensors import numbers_of
from tests.oracle import quiet
from tests.tiny import make_adapter, make_base, make_letters

TEXT = "In the beginning"
FIRST, SECOND = "0,0.5,1,-0.5", "0.7,0,0.25,1"
METHODS = ("linear", "dare", "della", {"ties": {"convention": "mergekit", "density": 0.6}})


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    """Drawing it takes longer than the rest of a tiny merge."""
    monkeypatch.setattr("labkit.writing.write.picture_of", lambda resolved: b"")
    yield
    free()


@pytest.fixture(scope="module")
def dora(words, tmp_path_factory):
    """A DoRA on the attention of `words`."""
    folder = tmp_path_factory.mktemp("dora") / "dora"
    return make_adapter(folder, words, 0.3, use_dora=True, target_modules=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def another(words, tmp_path_factory):
    """A full model: `words` with noise in every tensor, far enough for an arc."""
    return noisy(words, tmp_path_factory.mktemp("models") / "another", scale=0.1)


@pytest.fixture(scope="module")
def base_numbers(words):
    """All numbers of the base, as plain transformers loads them."""
    with quiet():
        return AutoModelForCausalLM.from_pretrained(words, dtype=torch.float32).state_dict()


def written(recipe, folder, dtype):
    """Plain transformers' model of the merge that labkit writes."""
    plan(recipe).write(folder, progress=False, hashes=False)
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def assert_is(model, recipe, folder, dtype):
    """All numbers of a live model, and what it answers, are those of a recipe's written merge."""
    found = model.logits(TEXT)
    plain = written(recipe, folder, dtype)
    inside = numbers_of(model)
    for name, values in plain.state_dict().items():
        assert torch.equal(inside[name], values), name
    with torch.inference_mode():
        assert torch.equal(found, plain(model.tokens(TEXT)).logits[0].float())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_number_is_that_of_the_written_merge(
    words, tiny_adapter, second_adapter, base_numbers, tmp_path, method
):
    terms = [Term(tiny_adapter, FIRST), Term(second_adapter, SECOND)]
    recipe = Recipe(words, terms, method=method)
    # The base is in bfloat16: the merge is, too, and the live model widens its numbers.
    model = live(recipe, device="cpu")
    assert model._model.dtype == torch.float32
    assert_is(model, recipe, tmp_path / "merged", "float32")
    # Weights that are set while it lives, and back to a sum.
    model.weights = {"tiny-lora": SECOND, 1: FIRST}
    turned = Recipe(words, [Term(tiny_adapter, SECOND), Term(second_adapter, FIRST)], method=method)
    assert_is(model, turned, tmp_path / "turned", "float32")
    mixes = [model.mix(0.0), model.mix(recipe), model.mix(1.0), model.mix(plan(turned))]
    tokens = model.tokens(TEXT).expand(4, -1)
    rows = model.forward(tokens, mixes).logits
    alone = [model.forward(tokens[:1], [mix]).logits[0] for mix in mixes]
    for row, one in zip(rows, alone, strict=True):
        torch.testing.assert_close(row, one, atol=1e-6, rtol=0)
    assert len(torch.unique(rows[:, -1, 0])) == 4
    inside = numbers_of(model)
    free()
    assert all(torch.equal(inside[name], values) for name, values in base_numbers.items())


def test_an_arc_between_full_models_with_all_that_lies_outside(words, another, tmp_path):
    recipe = Recipe(words, [Term(another, FIRST)], 0.3, method="slerp")
    line = written(Recipe(words, [Term(another, FIRST)], 0.3), tmp_path / "line", "bfloat16")
    model = live(recipe, device="cpu", dtype="bfloat16")
    assert_is(model, recipe, tmp_path / "merged", "bfloat16")
    arc = numbers_of(model)["model.layers.1.mlp.up_proj.weight"]
    assert not torch.equal(arc, line.state_dict()["model.layers.1.mlp.up_proj.weight"])


def test_mixed_kinds_and_the_dtype_of_the_recipe(words, dora, tiny_adapter, another, tmp_path):
    terms = [Term(dora, FIRST), Term(tiny_adapter, SECOND, {"mlp": "0.5x4"}), Term(another, FIRST)]
    recipe = Recipe(words, terms, 1.0, "float16", method="ties")
    model = live(recipe, device="cpu")
    assert model._model.dtype == torch.float16
    assert_is(model, recipe, tmp_path / "merged", "float16")


def test_a_sum_is_turned_as_ever(words, tiny_adapter, second_adapter):
    terms = [Term(tiny_adapter, FIRST), Term(second_adapter, SECOND)]
    model = live(words, tiny_adapter, second_adapter, device="cpu")
    model.use(terms)
    expected = model.logits(TEXT)
    heard = live(Recipe(words, terms), device="cpu")
    assert heard is model
    assert torch.equal(heard.logits(TEXT), expected)
    assert len(heard._merged) == 0
    # Another call begins with the whole LoRA of a sum again.
    live(Recipe(words, terms, method="ties"), device="cpu")
    whole = live(words, tiny_adapter, second_adapter, device="cpu")
    assert torch.equal(whole.logits(TEXT), whole.forward(whole.tokens(TEXT), [whole.mix(1)])
                       .logits[0])  # fmt: skip


def test_a_recipe_of_other_adapters_is_merged(words, tiny_adapter, second_adapter, tmp_path):
    model = live(words, tiny_adapter, device="cpu")
    recipe = Recipe(words, [Term(second_adapter, SECOND)])
    mix = model.mix(recipe)
    found = model.forward(model.tokens(TEXT), [mix]).logits[0]
    plain = written(recipe, tmp_path / "merged", "float32")
    with torch.inference_mode():
        assert torch.equal(found, plain(model.tokens(TEXT)).logits[0])
    assert mix.mean == pytest.approx(Gradient.parse(SECOND).mean)
    with pytest.raises(LabkitError, match="the terms are not of this model's adapters, in its ord"):
        model.use(recipe)


def test_only_what_changed_is_merged_and_at_the_next_token(
    words, tiny_adapter, second_adapter, monkeypatch
):
    terms = [Term(tiny_adapter, "1x4"), Term(second_adapter, "1x4")]
    model = live(Recipe(words, terms, method="ties"), device="cpu")
    merged, put = [], MergedTensor._put

    def counted(one, *rest):
        merged.append(one.tensor.name)
        put(one, *rest)

    monkeypatch.setattr(MergedTensor, "_put", counted)
    pieces = model.generate("In the", max_tokens=12)
    next(pieces)
    assert len(merged) == 28  # seven modules in each of four layers
    next(pieces)
    assert len(merged) == 28
    model.weights = {1: "1,1,0.5,1"}
    next(pieces)
    # All of the layer, as a method may count what leaves a tensor alone, too.
    assert len(merged) == 35
    assert all(name.startswith("model.layers.2.") for name in merged[28:])
    model.weights = {0: "0x4", 1: "0x4"}
    next(pieces)
    assert len(merged) == 35  # the base's numbers are put back
    model.weights = {0: "0x4", 1: "0,0,0.5,0"}
    next(pieces)
    names = [f"model.layers.2.{leaf}_proj.weight" for leaf in ("mlp.down", "self_attn.q")]
    assert sorted(merged[35:]) == names


def test_memory_is_counted_before_anything_is_read(words, tiny_adapter, monkeypatch):
    recipe = Recipe(words, [Term(tiny_adapter, FIRST)], method="ties")
    resolved = plan(recipe)
    changed = [change.tensor for change in resolved.changes.values()]
    assert len(changed) == 21  # the first layer's weight is 0
    kept = sum(tensor.nbytes for tensor in changed)
    names = [tensor.name for tensor in changed]
    assert memory_to_merge(resolved) - memory_to_merge(resolved, names) == kept
    method, largest = recipe.method, max(tensor.elements for tensor in changed)
    work = method.working_memory(1) + method.held_memory(1, largest) + 2 * largest
    assert memory_to_merge(resolved, names) > workers() * work
    nothing = plan(Recipe(words, [Term(tiny_adapter, "0x4")], method="ties"))
    assert memory_to_merge(nothing) == 0
    model = live(words, tiny_adapter, device="cpu")
    monkeypatch.setattr(live_model, "free_memory", lambda: memory_to_merge(resolved) - 1)
    told = (
        r"^to merge by ties in a live model's memory takes \d+\.\d GB, and \d+\.\d GB are free; "
        r"write it \(lk.plan\), and give the folder to lk.live as a model$"
    )
    with pytest.raises(LabkitError, match=told):
        model.mix(recipe)
    assert len(model._merged) == 0
    monkeypatch.setattr(live_model, "free_memory", lambda: memory_to_merge(resolved))
    model.mix(recipe)
    assert model._merged.nbytes == kept
    monkeypatch.setattr(live_model, "free_memory", lambda: 0)
    free()
    monkeypatch.setattr(live_model, "load_model", lambda *rest: pytest.fail("loaded"))
    with pytest.raises(LabkitError, match=told):
        live(recipe, device="cpu")


def test_what_it_takes_is_said(words, tiny_adapter):
    model = live(Recipe(words, [Term(tiny_adapter, FIRST)], method="ties"), device="cpu")
    assert re.fullmatch(
        r"LiveModel .* on cpu, ties \(density 0.2, convention peft, scale 1.0\) merged in memory, "
        r"\d+ MB of the base's numbers kept",
        repr(model),
    )
    assert "merged in memory" not in repr(live(words, tiny_adapter, device="cpu"))


def test_what_cannot_be_heard(words, tiny_adapter, second_adapter, tmp_path):
    recipe = Recipe(words, [Term(tiny_adapter, FIRST)], method="ties")
    with pytest.raises(LabkitError) as caught:
        live(recipe, tiny_adapter)
    assert str(caught.value) == (
        "a recipe has adapters and the weight outside the layers itself; give it to lk.live alone, "
        "or a base with adapters"
    )
    with pytest.raises(LabkitError, match="^a recipe has adapters and the weight outside"):
        live(recipe, rest=1.0)
    model = live(words, tiny_adapter, device="cpu")
    other = shutil.copytree(words, tmp_path / "other")
    with pytest.raises(LabkitError) as caught:
        model.mix(Recipe(other, [Term(tiny_adapter, FIRST)], method="ties"))
    assert str(caught.value) == (
        "the recipe's base is other, and the live model's tiny-llama; hear it with lk.live(recipe)"
    )
    with pytest.raises(LabkitError) as caught:
        model.mix(Recipe(words, [Term(tiny_adapter, FIRST)], dtype="float16", method="ties"))
    assert str(caught.value) == (
        "the recipe's merge is all in float16, and the live model in float32 has other numbers in "
        "what does not change; load it with dtype='float16', or leave the recipe's dtype at auto"
    )
    # The base's own dtype is no other.
    model.mix(Recipe(words, [Term(tiny_adapter, FIRST)], dtype="bfloat16", method="ties"))
    two = live(Recipe(words, [Term(tiny_adapter, FIRST), Term(second_adapter, FIRST)],
                      method="linear"), device="cpu")  # fmt: skip
    before = two.logits(TEXT)
    with pytest.raises(LabkitError, match="sum of the weights -?0.5, -?0.5, which is 0"):
        two.weights = {0: "0.5x4", 1: "-0.5x4"}
    assert str(two.weights["second"]) == "0,0.5,1,-0.5"  # what was in force still is
    assert torch.equal(two.logits(TEXT), before)
    free()
    with pytest.raises(LabkitError, match="this model was freed"):
        two.mix(recipe)


def test_embedding_and_head_that_the_recipe_unties(tmp_path):
    base = make_letters(make_base(tmp_path / "base", vocab_size=97))
    adapter = make_adapter(tmp_path / "lora", base, target_modules=["q_proj", "embed_tokens"])
    assert Checkpoint(base).tied
    recipe = Recipe(base, [Term(adapter, "1x4")], 1.0, method="ties", untie=True)
    with pytest.raises(LabkitError) as caught:
        live(recipe, device="cpu")
    assert str(caught.value) == (
        "the recipe unties embedding and head, which a live model keeps as one tensor; leave untie "
        "out, or write it (lk.plan)"
    )


def test_another_number_of_tokens_is_refused(words, tiny_adapter, tmp_path):
    larger = make_letters(make_base(tmp_path / "larger", vocab_size=160))
    recipe = Recipe(words, [Term(larger, FIRST)], 1.0)
    model = live(words, tiny_adapter, device="cpu")
    with pytest.raises(LabkitError) as caught:
        model.mix(recipe)
    assert str(caught.value) == (
        "larger changes the number of tokens from 128 to 160, which a live model keeps; leave what "
        "is outside the layers out (rest=0), or merge it instead (lk.plan)"
    )


def test_a_source_that_changes_meanwhile_is_not_read(words, tiny_adapter, tmp_path):
    folder = shutil.copytree(tiny_adapter, tmp_path / "lora")
    model = live(words, tiny_adapter, device="cpu")
    mix = model.mix(Recipe(words, [Term(Adapter(folder), FIRST)], method="ties"))
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(LabkitError, match="adapter_model.safetensors.* changed"):
        model.forward(model.tokens(TEXT), [mix])


def test_what_needs_a_sum_says_so(words, tiny_adapter):
    model = live(Recipe(words, [Term(tiny_adapter, FIRST)], method="ties"), device="cpu")
    with pytest.raises(LabkitError) as caught:
        model.require_sum("a fit")
    assert str(caught.value) == (
        "a fit needs a plain sum, and the model has the method ties in force, through which no "
        "gradient flows; take lk.live(base, adapter), or compare recipes with lk.evaluate"
    )
    live(words, tiny_adapter, device="cpu").require_sum("a fit")
