"""Embedding and head: tied, untied, tied by the adapter, and of one size."""

import json

import numpy as np
import pytest
import torch

from labkit import Adapter, Checkpoint, Gradient, LabkitError, Recipe, Term, plan
from tests.architectures import make_architecture
from tests.models.kinds.helpers import (
    bases,
    changed,
    compare,
    configured,
    factors,
    labkits,
    resolve,
    some,
    write_adapter,
)
from tests.oracle import load, logits, quiet, train

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return make_architecture(tmp_path_factory.mktemp("vocabulary") / "qwen2", "qwen2")


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return make_architecture(tmp_path_factory.mktemp("vocabulary") / "llama", "llama")


def live(base, adapter):
    from peft import PeftModel

    with quiet():
        return PeftModel.from_pretrained(load(base), adapter)


SETTINGS = [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["embedding", "both", "saved"])
@pytest.mark.parametrize("untie", [False, True])
def test_a_tie_that_the_adapter_keeps(tmp_path, tied, settings, untie):
    """ensure_weight_tying trains one change for both uses.

    PEFT's own merge adds it to the shared tensor once for each use; the model that was trained has
    it once in each, and so has labkit's.
    """
    adapter = train(tmp_path / "a", tied, ensure_weight_tying=True, **settings)
    out = tmp_path / "out"
    resolved = resolve(tied, adapter, untie=untie)
    resolved.write(out, progress=False, hashes=False)
    with quiet():
        torch.testing.assert_close(
            logits(load(out)), logits(live(tied, adapter)), atol=2e-5, rtol=0
        )
    found = labkits(resolved)
    assert (HEAD in found) is untie
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is not untie
    if untie:
        np.testing.assert_allclose(found[HEAD], found[EMBEDDING], atol=1e-12)


@pytest.mark.parametrize("rest", [0.3, -1.0])
def test_a_kept_tie_at_weights_between(tmp_path, tied, rest):
    adapter = train(tmp_path / "a", tied, ensure_weight_tying=True, **SETTINGS[0])
    one, part = labkits(resolve(tied, adapter)), labkits(resolve(tied, adapter, 1.0, rest))
    before = bases(tied)[EMBEDDING]
    expected = before + rest * (one[EMBEDDING] - before)
    np.testing.assert_allclose(part[EMBEDDING], expected, atol=1e-12)


def embedding_factors():
    a, b = some(2, 96), some(32, 2)
    named = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
    return named, 3 * (b @ a).T


def test_each_way_to_change_one_use_of_a_tied_tensor_is_said(tmp_path, tied):
    embedding, product = embedding_factors()
    head, other = factors("lm_head", 96, 32)
    for tensors, text in (
        (embedding, "the embedding and not the head"),
        (head, "the head and not the embedding"),
        (embedding | head, "the embedding and the head in different ways"),
    ):
        adapter = write_adapter(tmp_path / "a", tensors, target_modules=["embed_tokens", "lm_head"])
        with pytest.raises(LabkitError, match=f"changes {text}; untie them .untie=True writes"):
            resolve(tied, adapter)
        assert changed(resolve(tied, adapter, 1.0, 0.0)) == set()
        found, before = labkits(resolve(tied, adapter, 1.0, 0.5, untie=True)), bases(tied)
        expected = before[EMBEDDING] + (
            0.5 * product if embedding.items() <= tensors.items() else 0
        )
        np.testing.assert_allclose(found[EMBEDDING], expected, atol=1e-12)
        expected = before[EMBEDDING] + (1.5 * other if head.items() <= tensors.items() else 0)
        np.testing.assert_allclose(found[HEAD], expected, atol=1e-12)


def test_on_an_untied_base_the_wish_to_tie_changes_nothing(tmp_path, untied):
    embedding, product = embedding_factors()
    adapter = write_adapter(
        tmp_path / "a", embedding, target_modules=["embed_tokens"], ensure_weight_tying=True
    )
    expected = bases(untied)
    expected[EMBEDDING] += product
    resolved = resolve(untied, adapter, untie=True)
    compare(labkits(resolved), expected, expected, atol=1e-12)
    assert "untie changes nothing: the base keeps its head apart already" in resolved.notes


def test_vocabularies_that_disagree_are_refused(tmp_path, untied):
    tensors, _ = factors(UP, 48, 32)

    def adapter(name, rows, heads):
        whole = {EMBEDDING: some(rows, 32), HEAD: some(heads, 32)}
        return Adapter(write_adapter(tmp_path / name, tensors | whole, target_modules=["up_proj"]))

    with pytest.raises(LabkitError, match=r"different numbers of tokens .*101.*99.*must hold both"):
        resolve(untied, adapter("a", 101, 99))
    terms = [Term(adapter(name, 101, 101), Gradient([1.0] * 3)) for name in "bc"]
    with pytest.raises(LabkitError, match="several changes of .* disagree about the size"):
        plan(Recipe(Checkpoint(untied), terms, 1.0))


def test_a_config_that_is_not_asked_to_tie_does_not(tmp_path, tied):
    adapter = train(tmp_path / "a", tied, ensure_weight_tying=True, **SETTINGS[0])
    configured(adapter, ensure_weight_tying=False)
    with pytest.raises(LabkitError, match="uses one tensor as embedding and as head"):
        resolve(tied, adapter)


@pytest.mark.parametrize("rows", [96, 101])
def test_the_same_numbers_for_both_uses_keep_the_tie(tmp_path, tied, rows):
    tensors, _ = factors(UP, 48, 32)
    values = some(rows, 32)
    adapter = write_adapter(
        tmp_path / "a", tensors | {EMBEDDING: values, HEAD: values}, target_modules=["up_proj"]
    )
    resolved = resolve(tied, adapter)
    assert resolved.added == ()
    assert changed(resolved) == {f"{UP}.weight", EMBEDDING}
    np.testing.assert_array_equal(labkits(resolved)[EMBEDDING], values)
    apart = resolve(tied, adapter, untie=True)
    assert [tensor.name for tensor in apart.added] == [HEAD]
    np.testing.assert_array_equal(labkits(apart)[HEAD], values)
