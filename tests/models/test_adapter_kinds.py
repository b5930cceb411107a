"""Keys and files of adapters as trainers write them, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit import Adapter, Checkpoint, Gradient, LabkitError, Recipe, Term, plan, verify
from tests.architectures import make_architecture
from tests.oracle import largest_difference, load, merged, quiet, train
from tests.tiny import load_file_of, pickled

ONES = Gradient([1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_architecture(tmp_path_factory.mktemp("kinds") / "llama", "llama")


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory):
    return make_architecture(tmp_path_factory.mktemp("kinds") / "qwen2", "qwen2")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    return train(tmp_path_factory.mktemp("kinds") / "lora", base, target_modules="all-linear")


@pytest.fixture
def copy(tmp_path, adapter):
    return shutil.copytree(adapter, tmp_path / "copy")


def renamed(folder, rename):
    """Rewrite an adapter's keys."""
    path = folder / "adapter_model.safetensors"
    save_file({rename(key): value for key, value in load_file(path).items()}, path)
    return folder


def configured(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def updates(base, folder, rest=None):
    """What the plan adds to each tensor, dense."""
    resolved = plan(Recipe(base, [Term(folder, ONES)], rest))
    return {name: change.update().dense() for name, change in resolved.changes.items()}


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.removeprefix("base_model."),
        lambda key: key.removeprefix("base_model.model.model."),
        lambda key: key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.mine."),
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.{key}",
        lambda key: key.replace("model.layers", "_fsdp_wrapped_module.model.layers"),
        lambda key: key.replace("model.model.layers", "model.model.language_model.layers"),
    ],
    ids=["bare", "model", "no model", "adapter name", "ddp", "compiled", "fsdp", "vlm"],
)
def test_keys_with_and_without_prefixes_mean_the_same(base, adapter, copy, rename):
    expected = updates(base, adapter)
    found = updates(base, renamed(copy, rename))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values)


def test_a_vision_towers_layer_is_never_taken_for_the_language_models(base, copy):
    prefix = "base_model.model.vision_tower.vision_model.encoder.layers"
    renamed(copy, lambda key: key.replace("base_model.model.model.layers", prefix))
    with pytest.raises(LabkitError, match=r"match nothing in the base .*vision_tower"):
        plan(base, copy, ONES)


def test_a_vision_language_base_is_matched_in_its_language_layers_only(tmp_path, base, copy):
    tensors = {}
    for name, values in load_file_of(base).items():
        tensors[f"language_model.{name}"] = values
        if ".layers." in name:  # a vision tower with the very same names behind its prefix
            tensors[name.replace("model.layers", "vision_tower.vision_model.encoder.layers")] = (
                values.clone()
            )
    folder = tmp_path / "vlm"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": config}))
    checkpoint = Checkpoint(folder)
    assert checkpoint.layer_prefix == "language_model.model.layers"
    resolved = plan(checkpoint, copy, ONES)
    assert len(resolved.changes) == 21
    assert all(name.startswith("language_model.model.layers.") for name in resolved.changes)


def test_reads_mlx_adapters(tmp_path, base, adapter):
    expected = updates(base, adapter)
    folder = tmp_path / "mlx"
    folder.mkdir()
    tensors = {}
    for key, values in load_file(adapter / "adapter_model.safetensors").items():
        name = key.removeprefix("base_model.model.").removesuffix(".weight")
        name = name.replace("lora_A", "lora_a").replace("lora_B", "lora_b")
        tensors[name] = values.T.contiguous()
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "num_layers": 3,
        "lora_parameters": {"rank": 4, "scale": 1.5, "dropout": 0.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = updates(base, folder)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values)
    config["lora_parameters"]["alpha"] = 16
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(LabkitError, match="both alpha and scale"):
        Adapter(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full"}))
    with pytest.raises(LabkitError, match="MLX-LM's kind 'full', which is refused"):
        Adapter(folder)


def test_reads_adapter_model_bin(base, adapter, copy):
    expected = updates(base, adapter)
    path = copy / "adapter_model.safetensors"
    torch.save(load_file(path), copy / "adapter_model.bin")
    path.unlink()
    found = updates(base, copy)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], values) for name, values in expected.items())


class Harm:
    def __reduce__(self):
        import os

        return os.mkdir, ("executed",)


def test_runs_nothing_from_adapter_model_bin(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (copy / "adapter_model.safetensors").unlink()
    torch.save({"harm": Harm()}, copy / "adapter_model.bin")
    with pytest.raises(LabkitError, match="is refused by torch's restricted reader"):
        Adapter(copy)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("shards", [1, 2])
def test_reads_a_base_in_pytorch_bins(tmp_path, base, adapter, shards):
    folder = pickled(base, tmp_path / "bins", shards)
    out = tmp_path / "out"
    receipt = plan(folder, adapter, ONES).write(out, progress=False)
    assert not list(out.glob("*.bin*"))
    assert largest_difference(load(out), merged(base, adapter))[0] < 1e-7
    assert verify(out, progress=False).tensors_computed == 21
    assert len(receipt.files_read) >= shards + 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-3), (torch.float16, 2e-4)])
def test_short_dtypes_round_what_peft_makes_in_float32(tmp_path, adapter, dtype, tolerance):
    folder = make_architecture(tmp_path / "short", "llama", dtype=dtype)
    out = tmp_path / "out"
    plan(folder, adapter, ONES).write(out, progress=False)
    expected = merged(folder, adapter).to(dtype).float()
    assert largest_difference(load(out), expected)[0] <= tolerance
    assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]


def test_a_base_of_mixed_dtypes_keeps_each(tmp_path, base, adapter):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(base / "config.json", folder)
    tensors = load_file_of(base)
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    tensors = {name: v.to(dtypes[i % 3]) for i, (name, v) in enumerate(sorted(tensors.items()))}
    save_file(tensors, folder / "model.safetensors")
    out = tmp_path / "out"
    plan(folder, adapter, ONES).write(out, progress=False)
    found = load_file(out / "model.safetensors")
    assert {name: v.dtype for name, v in found.items()} == {n: v.dtype for n, v in tensors.items()}


# Tied embeddings.


def test_a_change_of_one_use_of_tied_embeddings_is_refused_and_untied(tmp_path, tied_base):
    adapter = train(tmp_path / "a", tied_base, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(LabkitError, match=r"one tensor as embedding and as head .tied.*untie=True"):
        plan(Recipe(tied_base, [Term(adapter, ONES)], 1.0))
    assert plan(Recipe(tied_base, [Term(adapter, ONES)], 0.0)).changes  # weight 0 changes no use
    out = tmp_path / "out"
    plan(Recipe(tied_base, [Term(adapter, ONES)], 1.0, untie=True)).write(out, progress=False)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    before, after = load(tied_base).state_dict(), load(out).state_dict()
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    assert not torch.equal(after["model.embed_tokens.weight"], before["lm_head.weight"])
    assert verify(out, progress=False).tensors_computed == 4
    # PEFT's merge adds to the tensor that both share, so that the head changes with it, although
    # the adapter's own forward pass has an unchanged head. That is why labkit asks.
    peft = merged(tied_base, adapter).state_dict()
    assert torch.equal(peft["lm_head.weight"], peft["model.embed_tokens.weight"])


def test_the_same_change_of_both_uses_keeps_them_tied(tmp_path, tied_base):
    def same(model):
        embedding = model.get_input_embeddings().modules_to_save["default"].weight
        model.get_output_embeddings().modules_to_save["default"].weight.data.copy_(embedding)

    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = train(tmp_path / "a", tied_base, tweak=same, **settings)
    out = tmp_path / "out"
    plan(Recipe(tied_base, [Term(adapter, ONES)], 1.0)).write(out, progress=False)
    assert largest_difference(load(out), merged(tied_base, adapter))[0] < 1e-7
    assert "lm_head.weight" not in load_file_of(out)


# A vocabulary that the adapter enlarged.


@pytest.mark.parametrize("which", ["untied", "tied"])
def test_an_enlarged_vocabulary_gives_a_model_of_the_new_size(tmp_path, request, which):
    base = request.getfixturevalue("base" if which == "untied" else "tied_base")
    with quiet():
        adapter = train(tmp_path / "a", base, resize=101, target_modules=["q_proj"])
    for name in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        (adapter / name).write_text("{}")
    if "model.embed_tokens.weight" not in " ".join(
        load_file(adapter / "adapter_model.safetensors")
    ):
        pytest.fail("PEFT did not save the enlarged embedding")
    out = tmp_path / "out"
    plan(Recipe(base, [Term(adapter, ONES)], 1.0)).write(out, progress=False)
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == 101
    assert largest_difference(load(out), merged(base, adapter, resize=101))[0] < 1e-7
    assert (out / "chat_template.jinja").read_text() == "{}"
    assert verify(out, progress=False)
    # At weight 0 the vocabulary is the base's.
    none = tmp_path / "none"
    plan(Recipe(base, [Term(adapter, Gradient([0.0] * 3))], 0.0)).write(none, progress=False)
    assert largest_difference(load(none), load(base))[0] == 0


def test_new_tokens_in_only_one_of_embedding_and_head_are_refused(tmp_path, base):
    with quiet():
        adapter = train(tmp_path / "a", base, resize=101, target_modules=["q_proj"])
    path = adapter / "adapter_model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if "lm_head" not in k}
    save_file(tensors, path)
    with pytest.raises(LabkitError, match=r"different numbers of tokens .*101.*96"):
        plan(Recipe(base, [Term(adapter, ONES)], 1.0))


def test_several_adapters_of_different_kinds_add_up(tmp_path, base, adapter):
    dora = train(tmp_path / "dora", base, seed=9, target_modules=["q_proj"], use_dora=True)
    first, second = Gradient([0.5, 1.0, 0.25]), Gradient([1.0, 0.0, -0.5])
    out = tmp_path / "out"
    recipe = Recipe(base, [Term(adapter, first), Term(dora, second, {"q_proj": second})])
    plan(recipe).write(out, progress=False)
    reference, one, two = (
        model.state_dict() for model in (load(base), merged(base, adapter), merged(base, dora))
    )
    checkpoint = Checkpoint(base)
    for name, values in load(out).state_dict().items():
        layer = checkpoint.layer_of(name)
        if layer is not None:
            expected = (
                reference[name]
                + first[layer] * (one[name] - reference[name])
                + second[layer] * (two[name] - reference[name])
            )
            assert float((values - expected).abs().max()) < 1e-6


# What is refused, by name, with one line of why.


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("PROMPT_TUNING", "virtual tokens"), ("PREFIX_TUNING", "keys and values"),
        ("IA3", "multiplies activations"), ("LOHA", "Hadamard"), ("LOKR", "Kronecker"),
        ("ADALORA", "third factor"), ("OFT", "rotates"), ("VERA", "random matrices"),
        ("XLORA", "gate for each token"), ("SOMETHING", "whose change a layer weight can scale"),
        (None, "whose change a layer weight can scale"), (["LORA"], "labkit merges LORA"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(copy, kind, why):
    configured(copy, peft_type=kind)
    with pytest.raises(LabkitError, match=rf"is of the kind .*{why}"):
        Adapter(copy)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("layer_replication", [[0, 2], [1, 3]], "layer_replication.*other layers than the base"),
        ("alora_invocation_tokens", [1, 2], "aLoRA.*begins at a token"),
        ("use_qalora", True, "QALoRA.*quantised base"),
        ("arrow_config", {"top_k": 3}, "Arrow routing"),
        ("velora_config", {"num_groups": 3}, "VeLoRA"),
        ("init_lora_weights", "pissa_niter_16", "initialised with 'pissa_niter_16'.*convert it"),
        ("init_lora_weights", "olora", "initialised with 'olora'.*convert it"),
        ("init_lora_weights", "corda", "initialised with 'corda'.*convert it"),
        ("use_dora", True, "has no magnitude, though"),
        ("bias", "some", "expected none, all or lora_only"),
        ("brand_new_field", 3, "unknown field 'brand_new_field'"),
    ],
)
def test_fields_without_meaning_are_refused_by_name(copy, field, value, name):
    configured(copy, **{field: value})
    with pytest.raises(LabkitError, match=name):
        Adapter(copy)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4"])
def test_quantised_bases_are_refused_with_the_way_out(tmp_path, base, adapter, method):
    folder = shutil.copytree(base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LabkitError, match=f"is quantised .{method}.*unquantised model"):
        plan(folder, adapter, ONES)


def test_a_gguf_base_is_refused_with_the_way_out(tmp_path, base):
    shutil.copy(base / "config.json", tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(LabkitError, match=r"holds a GGUF model.*original model"):
        Checkpoint(tmp_path)


def test_a_converted_pissa_is_a_plain_lora(tmp_path, base):
    """PEFT's conversion doubles the rank and sets init_lora_weights to True."""
    adapter = train(tmp_path / "a", base, r=8, target_modules=["q_proj"], init_lora_weights=True)
    assert plan(base, adapter, ONES).changes


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_base_that_peft_makes_again_is_a_way_out(tmp_path, base, start):
    from peft import PeftModel

    adapter = train(tmp_path / "a", base, target_modules=["q_proj"], init_lora_weights=start)
    with pytest.raises(LabkitError, match=r"unload\(\) is that base"):
        plan(base, adapter, ONES)
    expected = merged(base, adapter).state_dict()
    with quiet():
        PeftModel.from_pretrained(load(base), adapter).unload().save_pretrained(tmp_path / "again")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": True}))
    plan(tmp_path / "again", adapter, ONES).write(tmp_path / "out", progress=False)
    found = load(tmp_path / "out").state_dict()
    changed = load(base).state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (expected[name] - changed[name]).abs().max() > 0.01
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=2e-6, rtol=0)
