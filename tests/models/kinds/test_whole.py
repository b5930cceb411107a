"""Parameters that were trained whole, against PEFT and `W + w·(W_adapter − W)`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit import Adapter, LabkitError
from labkit.models.kinds.whole import WholeTensor
from tests.models.kinds.helpers import (
    bases,
    changed,
    compare,
    factors,
    labkits,
    pefts,
    resolve,
    retensored,
    some,
    write_adapter,
)
from tests.oracle import train
from tests.tiny import load_file_of

NORM, HEAD = "model.norm.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"modules_to_save": ["lm_head", "norm"]}),
        ("qwen2", {"bias": "all"}),
        ("qwen2", {"bias": "lora_only"}),
    ],
)
def test_as_peft(made, tmp_path, architecture, settings):
    base = made(architecture)
    adapter = train(tmp_path / "a", base, target_modules=["q_proj", "v_proj"], **settings)
    compare(labkits(resolve(base, adapter)), pefts(base, adapter), bases(base))


@pytest.mark.parametrize("rest", [1.0, 0.3, -1.0, 0.0])
def test_it_lies_between_the_bases_and_the_adapters(made, tmp_path, rest):
    base = made("llama")
    tensors, product = factors(UP, 48, 32)
    head, norm = some(96, 32), some(32)
    whole = {
        "lm_head.modules_to_save.weight": head,
        "model.norm.modules_to_save.other.weight": norm,
    }
    adapter = write_adapter(tmp_path / "a", tensors | whole, target_modules=["up_proj"])
    expected = bases(base)
    expected[f"{UP}.weight"] += 3 * product
    for name, values in ((HEAD, head), (NORM, norm)):
        expected[name] = expected[name] + rest * (values - expected[name])
    resolved = resolve(base, adapter, 1.0, rest)
    compare(labkits(resolved), expected, expected, atol=1e-12)
    assert (NORM in changed(resolved)) is (rest != 0)


def test_in_a_layer_its_layers_weight_counts(made, tmp_path):
    base, name = made("llama"), "model.layers.1.input_layernorm.weight"
    values = some(32)
    tensors, _ = factors(UP, 48, 32)
    adapter = write_adapter(tmp_path / "a", tensors | {name: values}, target_modules=["up_proj"])
    found, expected = labkits(resolve(base, adapter, [0.0, 0.25, 1.0])), bases(base)
    mixed = expected[name] + 0.25 * (values - expected[name])
    np.testing.assert_allclose(found[name], mixed, atol=1e-12)


def test_a_whole_state_beside_the_factors_is_the_base(made, tmp_path):
    """FSDP and ZeRO save the base's own weights, wrapped modules' too, into the adapter's file."""
    base = made("llama")
    adapter = train(tmp_path / "a", base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    without = labkits(resolve(base, adapter))
    disk = load_file_of(base)

    def whole(stored):
        for name, values in disk.items():
            wrapped = name.replace("q_proj.weight", "q_proj.base_layer.weight")
            wrapped = wrapped.replace("lm_head.weight", "lm_head.original_module.weight")
            stored[f"base_model.model.{wrapped}"] = values.clone()
        stored["base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        stored["base_model.model.model.rotary_emb.inv_freq"] = torch.ones(4)
        return stored

    resolved = resolve(base, retensored(adapter, whole))
    compare(labkits(resolved), without, without, atol=1e-15)
    compare(labkits(resolved), pefts(base, adapter), without)
    computed = [row for row in resolved.ledger if row.tensor.endswith("inv_freq")]
    assert {row.status for row in computed} == {"skipped"}
    assert {row.reason for row in computed} == {"models compute it by themselves"}
    assert not any("original_module" in row.tensor for row in resolved.ledger)


def test_an_embedding_as_small_as_the_tokenizer(made, tmp_path):
    base = made("llama")
    embedding, head = some(90, 32), some(90, 32)
    tensors, _ = factors(UP, 48, 32)
    whole = {"model.embed_tokens.weight": embedding, HEAD: head}
    adapter = write_adapter(tmp_path / "a", tensors | whole, target_modules=["up_proj"])
    resolved = resolve(base, adapter)
    found = labkits(resolved)
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], embedding)
    np.testing.assert_array_equal(found[HEAD], head)
    assert resolved.vocabulary_size == 90
    assert any("the vocabulary shrinks from 96 to 90 tokens" in note for note in resolved.notes)
    half = labkits(resolve(base, adapter, 1.0, 0.5))[HEAD]
    np.testing.assert_allclose(half, (head + bases(base)[HEAD][:90]) / 2, atol=1e-12)
    none = resolve(base, adapter, 1.0, 0.0)
    assert none.vocabulary_size is None
    assert changed(none) == {f"{UP}.weight"}
    assert not any("vocabulary" in note for note in none.notes)


def test_an_enlarged_vocabulary(made, tmp_path):
    base = made("llama")
    adapter = train(tmp_path / "a", base, resize=101, target_modules=["q_proj"])
    compare(labkits(resolve(base, adapter)), pefts(base, adapter, resize=101), bases(base))
    own = {
        key.removeprefix("base_model.model.").replace(".base_layer", ""): v.double().numpy()
        for key, v in load_file(adapter / "adapter_model.safetensors").items()
    }
    for rest in (0.3, -1.0, 2.0):
        found = labkits(resolve(base, adapter, 1.0, rest))
        for name in ("model.embed_tokens.weight", HEAD):
            before = bases(base)[name]
            mixed = before + rest * (own[name][:96] - before)
            np.testing.assert_allclose(found[name][:96], mixed, atol=1e-12)
            np.testing.assert_array_equal(found[name][96:], own[name][96:])


def test_errors(made, tmp_path):
    tensors, _ = factors(UP, 48, 32)

    def error(rest=1.0, **whole):
        named = {name.replace("__", "."): values for name, values in whole.items()}
        adapter = write_adapter(tmp_path / "a", tensors | named, target_modules=["up_proj"])
        with pytest.raises(LabkitError) as caught:
            resolve(made("llama"), adapter, 1.0, rest)
        return str(caught.value)

    assert "parameter 'lm_head.weight' was saved empty ('base_model.model.lm_head.weight' has" in (
        error(lm_head__weight=np.zeros((0,)))
    )
    assert "changes a tensor of shape (31,), but the base's 'model.norm.weight'" in error(
        model__norm__weight=some(31)
    )
    assert "lies outside the layers" in error(None, model__norm__weight=some(32))
    assert "'base_model.model.something.else': the base has no module" in error(
        something__else=some(2)
    )
    assert "embedding and head would have different numbers of tokens" in error(
        lm_head__weight=some(90, 32)
    )
    assert "NaN or infinite in 'base_model.model.model.norm.weight'" in error(
        model__norm__weight=np.full(32, np.nan)
    )


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda head: head, True),
        (lambda head: head.half(), False),
        (lambda head: head.roll(1), False),
        (lambda head: torch.cat([head[:-1], head[-1:] + 1]), False),
        (lambda head: torch.cat([head, head[:1]]), False),
    ],
    ids=["same", "dtype", "moved", "last row", "longer"],
)
def test_embedding_and_head_are_the_same_if_all_their_numbers_are(tmp_path, change, same):
    embedding, head = parts_of(tmp_path / "a", change)
    assert embedding.equals(head) is same
    assert head.equals(embedding) is same
    assert not head.equals(object())


def test_rows_that_stand_apart_are_part_of_what_is_compared(tmp_path):
    embedding, head = parts_of(tmp_path / "a", lambda head: head)
    rows = parts_of(tmp_path / "b", lambda head: head, rows=[3, 5])[0].tokens
    others = parts_of(tmp_path / "c", lambda head: head, rows=[3, 6])[0].tokens
    numbers = parts_of(tmp_path / "d", lambda head: head, rows=[3, 5], by=2)[0].tokens
    assert replace(embedding, tokens=rows).equals(replace(head, tokens=rows))
    for mine, theirs in ((rows, None), (None, rows), (rows, others), (rows, numbers)):
        assert not replace(embedding, tokens=mine).equals(replace(head, tokens=theirs))


def parts_of(folder, change, rows=None, by=1):
    """Opens an adapter that holds an embedding and a head: two parts."""
    folder.mkdir()
    tensors, _ = factors(UP, 48, 32)
    values = torch.arange(96 * 32).reshape(96, 32).float() / 64
    stored = {name: torch.tensor(v).float() for name, v in tensors.items()}
    stored |= {"model.embed_tokens.weight": values, HEAD: change(values).contiguous().clone()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
    if rows:
        stored["model.embed_tokens.token_adapter.trainable_tokens_delta"] = values[: len(rows)] * by
        config["trainable_token_indices"] = rows
    save_file(stored, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    whole = {part.name: part for part in Adapter(folder).parts if isinstance(part, WholeTensor)}
    return whole["model.embed_tokens"], whole["lm_head"]
