"""What is merged in memory is what a merge writes, bit for bit, for every kind of change."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from labkit import Gradient, LabkitError, Recipe, Term, plan
from labkit.inference import live_model
from labkit.inference.live_model import free, live
from labkit.inference.merged_tensors import MergedTensor
from labkit.merging.rounding import BlockMerger
from tests.inference.helpers import source_of
from tests.oracle import quiet
from tests.tiny import make_adapter, make_base, make_letters

KINDS = (
    ("llama", "patterns", 21), ("llama", "dora and rslora", 0), ("llama", "embedding", 21),
    ("llama", "dora embedding", 0), ("llama", "head", 21), ("llama", "modules_to_save", 21),
    ("llama", "embedding saved", 21), ("llama", "tokens", 21), ("qwen2", "lora_bias", 9),
    ("qwen2", "bias all", 21), ("gpt2", "dora", 0), ("qwen3_moe", "experts", 3),
    ("qwen3_moe", "each expert", 0), ("phi3", "in a fused matrix", 0), ("llama", "a model", 0),
    ("qwen3_moe", "a model", 0),
)  # fmt: skip
"""An architecture, a kind of change, and how many modules are turned; the others are merged."""


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    """Drawing it takes longer than the rest of a tiny merge."""
    monkeypatch.setattr("labkit.writing.write.picture_of", lambda resolved: b"")


def numbers_of(model):
    """A live model's own tensors, by the names that transformers gave them."""
    return {
        name.replace(".base_layer", ""): values
        for name, values in model._model.state_dict().items()
        if ".lora_" not in name
    }


def written(base, source, gradient, rest, folder, dtype):
    """Plain transformers' model of the merge that labkit writes."""
    recipe = Recipe(base, [Term(source, gradient)], rest, dtype)
    plan(recipe).write(folder, progress=False, hashes=False)
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


@pytest.mark.parametrize(("architecture", "kind", "count"), KINDS)
def test_numbers_are_those_of_the_written_merge(made, tmp_path, architecture, kind, count):
    base = made(architecture)
    source = source_of(kind, base, tmp_path / "source")
    generator = random.Random(f"{architecture} {kind}")
    gradient = Gradient([round(generator.uniform(-0.5, 1.5), 2) for _ in range(3)])
    dtype = generator.choice(["float32", "bfloat16"])
    model = live(base, source, rest=0.3, device="cpu", dtype=dtype)
    before = {name: values.clone() for name, values in numbers_of(model).items()}
    model.weights = gradient
    found = model.logits("In the beginning")
    plain = written(base, source, gradient, 0.3, tmp_path / "merged", dtype)
    turned = {module for module, *_ in model.loras[0].values()}
    names = {name for name, module in model._model.named_modules() if module in turned}
    assert len(turned) == count
    for name, values in plain.state_dict().items():
        if name.removesuffix(".weight") in names:
            assert torch.equal(numbers_of(model)[name], before[name])  # its LoRA is turned
        else:
            assert torch.equal(numbers_of(model)[name], values), name
    with torch.inference_mode():
        expected = plain(model.tokens("In the beginning")).logits[0].float()
    tolerance = 1e-4 if dtype == "float32" else 0.02
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    inside = numbers_of(model)
    assert kind == "patterns" or any(not torch.equal(inside[name], before[name]) for name in before)
    free()
    assert all(torch.equal(inside[name], before[name]) for name in before)


@pytest.fixture(scope="module")
def dora(words, tmp_path_factory):
    """A DoRA on the attention of `words`, as a folder."""
    folder = tmp_path_factory.mktemp("dora") / "dora"
    return make_adapter(folder, words, 0.3, use_dora=True, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def model(words, dora, tiny_adapter):
    """The DoRA beside a plain LoRA, which is merged where the DoRA is, and turned elsewhere."""
    yield live(words, dora, tiny_adapter, device="cpu")
    free()


def mixes_of(model):
    gradients = [Gradient.parse(text) for text in ("0,0.5,1,1", "1x4", "-0.5,0,0.25,2")]
    return [model.mix(0), *map(model.mix, gradients), model.mix(0)]


def test_mixtures_in_one_batch_answer_as_each_alone(model):
    mixes = mixes_of(model)
    tokens = model.tokens("In the beginning").expand(5, -1)
    together = model.forward(tokens, mixes)
    alone = [model.forward(tokens[:1], [mix]) for mix in mixes]
    for row, one in enumerate(alone):
        torch.testing.assert_close(together.logits[row], one.logits[0], atol=1e-6, rtol=0)
    assert len(torch.unique(together.logits[:, -1, 0])) == 4
    # What one pass leaves behind is that of its own mixture.
    new = torch.tensor([[40]] * 5)
    later = model.forward(new, mixes, together.past_key_values).logits
    for row, mix in enumerate(mixes):
        one = model.forward(new[:1], [mix], alone[row].past_key_values).logits[0]
        torch.testing.assert_close(later[row], one, atol=1e-6, rtol=0)
    texts = ["In the beginning", "light"]
    found = model.nll_of(texts, mixes)
    assert found == pytest.approx([model.nll_of(texts, [mix])[0] for mix in mixes], rel=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_come_one_after_the_other_from_the_same_dice(model, temperature):
    mixes = mixes_of(model)
    steps = list(model.stream("In the", mixes, 6, temperature, seed=2))
    for row, mix in enumerate(mixes):
        alone = [step[0] for step in model.stream("In the", [mix], 6, temperature, seed=2)]
        assert [step[row] for step in steps if step[row] is not None] == alone
    assert all(len(step) == 5 for step in steps)
    begun = [min(n for n, step in enumerate(steps) if step[row] is not None) for row in range(5)]
    assert begun == [0, 6, 12, 18, 0]  # the two of one mixture side by side


def test_only_what_changed_is_merged_and_at_the_next_token(model, monkeypatch):
    model.weights = {0: "0x4", 1: "0x4"}
    pieces = model.generate("In the", max_tokens=12)
    next(pieces)
    merged = []
    monkeypatch.setattr(
        MergedTensor, "_put", lambda one, update, dtype, merger: merged.append(one.tensor.name)
    )
    model.weights = {0: "0,0,0.5,0", 1: "0x4"}
    next(pieces)
    names = [f"model.layers.2.self_attn.{leaf}_proj.weight" for leaf in "qv"]
    assert sorted(merged) == names
    model.logits("light")
    model.weights = {0: "0x4", 1: "0x4"}  # the base's numbers are put back
    model.logits("light")
    assert sorted(merged) == names


def test_weights_are_those_of_the_written_merge_with_several_sources(model, words, tmp_path):
    terms = [
        Term(model.adapters[0], "0,0.5,1,-1"),
        Term(model.adapters[1], "1,0,0.3,0.3", {"q_proj": "0.1x4"}),
    ]
    plan(Recipe(words, terms, dtype="float32")).write(tmp_path / "merged", progress=False)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    model.use(terms)
    found = model.logits("light")
    inside = numbers_of(model)
    for layer in range(4):
        for leaf in "qv":
            name = f"model.layers.{layer}.self_attn.{leaf}_proj.weight"
            assert torch.equal(inside[name], plain.state_dict()[name])
    with torch.inference_mode():
        expected = plain(model.tokens("light")).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    # The weights of a pass that are given as a tensor are merged as the same numbers.
    before = {name: values.clone() for name, values in inside.items()}
    flat = torch.tensor(model.mix(terms).flat(), dtype=torch.float32)
    model.logits("other")
    tokens = model.tokens("light")
    again = model.forward_weighted(tokens, torch.ones_like(tokens), flat)
    torch.testing.assert_close(again[0], expected[:-1], atol=1e-4, rtol=0)
    assert all(torch.equal(inside[name], values) for name, values in before.items())
    rows = torch.stack([flat, flat * 0.5])
    with pytest.raises(ValueError, match="rows of different weights"):
        model.forward_weighted(tokens.expand(2, -1), torch.ones(2, tokens.shape[1]), rows)


def test_a_pickled_adapter_is_heard_and_nothing_of_it_is_run(words, tiny_adapter, tmp_path):
    usual = live(words, tiny_adapter, device="cpu").logits("light")
    folder = shutil.copytree(tiny_adapter, tmp_path / "pickled")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert torch.equal(live(words, folder, device="cpu").logits("light"), usual)
    ran = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    torch.save({"base_model.model.lora_A.weight": Code()}, folder / "adapter_model.bin")
    with pytest.raises(LabkitError):
        live(words, folder, device="cpu")
    assert not ran.exists()
    free()


def test_what_was_broken_off_is_merged_again(model, monkeypatch):
    expected = model.logits("light")
    model.weights = {0: "0x4", 1: "0x4"}
    model.logits("light")
    whole = BlockMerger.merge

    def half(merger, base, *arguments):
        whole(merger, base, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(BlockMerger, "merge", half)
    model.weights = {0: "1x4", 1: "1x4"}
    with pytest.raises(KeyboardInterrupt):
        model.logits("light")
    monkeypatch.setattr(BlockMerger, "merge", whole)
    assert torch.equal(model.logits("light"), expected)


def test_files_that_change_meanwhile_are_not_read(model, words, dora, tmp_path):
    folder = shutil.copytree(dora, tmp_path / "dora")
    mine = live(words, folder, device="cpu")
    mine.weights = "0.5x4"
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(LabkitError, match="adapter_model.safetensors.* changed"):
        mine.logits("light")


def test_numbers_that_become_too_large(words, dora):
    model = live(words, dora, device="cpu", dtype="float16")
    model.weights = "1e9x4"
    with pytest.raises(LabkitError) as caught:
        model.logits("light")
    assert "numbers of 'model.layers." in str(caught.value)
    assert str(caught.value).endswith(
        "become too large for float16 (its largest is 65504); choose another dtype for the live "
        "model, such as bfloat16 or float32, or smaller weights"
    )
    model.weights = "0x4"
    assert bool(model.logits("light").isfinite().all())
    free()


def test_another_number_of_tokens_is_refused(words, tmp_path):
    base = shutil.copytree(words, tmp_path / "base")
    larger = make_letters(make_base(tmp_path / "larger", vocab_size=160))
    with pytest.raises(LabkitError) as caught:
        live(base, larger, rest=1.0, device="cpu")
    assert str(caught.value) == (
        "larger changes the number of tokens from 128 to 160, which a live model keeps; leave what "
        "is outside the layers out (rest=0), or merge it instead (lk.plan)"
    )
    model = live(base, larger, rest=0.0, device="cpu")
    assert model.mix(1).weights[0]["model.layers.0.mlp.up_proj"] == 1
    free()


def test_a_model_that_is_not_as_its_file_is_refused(words, dora, monkeypatch):
    """A model that transformers changes when it loads it would be merged wrongly."""
    whole = live_model.load_model
    name = "model.layers.1.self_attn.v_proj"

    def told(change):
        def changed(*arguments):
            model = whole(*arguments)
            change(model.get_submodule(name))
            return model

        monkeypatch.setattr(live_model, "load_model", changed)
        with pytest.raises(LabkitError) as caught:
            live(words, dora, device="cpu")
        said = str(caught.value)
        assert said.startswith(
            f"transformers holds '{name}.weight' of tiny-llama in another form than the file does: "
            "its model "
        )
        assert said.endswith("; a live model cannot merge there, so merge it instead (lk.plan)")
        return said.split("its model ")[1].split(";")[0]

    assert told(lambda module: module.weight.data.mul_(2)) == "has other numbers there"
    turned = told(lambda module: setattr(module.weight, "data", module.weight.data.T))
    assert turned == "has the shape (32, 16) there"
    other = told(
        lambda module: module.register_parameter("other", module._parameters.pop("weight"))
    )
    assert other == "has no such parameter"
    free()
