"""LoRA on an embedding, against PEFT and the dense product."""

import numpy as np
import pytest

from labkit import LabkitError
from tests.models.kinds.helpers import bases, compare, labkits, pefts, resolve, some, write_adapter
from tests.oracle import train

EMBEDDING = "model.embed_tokens"


def embedding_factors(tokens=96, width=32, rank=2):
    a, b = some(rank, tokens), some(width, rank)
    return {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}, (b @ a).T


def test_as_peft(made, tmp_path):
    base = made("llama")
    adapter = train(tmp_path / "a", base, target_modules=["q_proj", "embed_tokens"])
    compare(labkits(resolve(base, adapter)), pefts(base, adapter), bases(base))


@pytest.mark.parametrize("rest", [1.0, 0.3, 0.0])
def test_it_adds_the_transposed_product_times_the_rest(made, tmp_path, rest):
    base = made("llama")
    tensors, product = embedding_factors()
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=["embed_tokens"])
    expected = bases(base)
    expected[f"{EMBEDDING}.weight"] += rest * 3 * product
    compare(labkits(resolve(base, adapter, 1.0, rest)), expected, expected, atol=1e-12)


def test_as_many_tokens_as_the_width_are_still_transposed(made, tmp_path):
    base = made("llama", vocab_size=32)
    tensors, product = embedding_factors(tokens=32)
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=["embed_tokens"])
    expected = bases(base)
    expected[f"{EMBEDDING}.weight"] += 3 * product
    compare(labkits(resolve(base, adapter)), expected, expected, atol=1e-12)


def test_new_tokens_with_the_embedding_they_belong_to(made, tmp_path):
    """PEFT saves an enlarged embedding whole, beside the factors that are added to it."""
    base = made("llama")
    adapter = train(tmp_path / "a", base, resize=101, target_modules=["embed_tokens", "lm_head"])
    found = labkits(resolve(base, adapter))
    assert found[f"{EMBEDDING}.weight"].shape == (101, 32)
    compare(found, pefts(base, adapter, resize=101), bases(base))


def test_other_sizes_are_refused(made, tmp_path):
    tensors, _ = embedding_factors(tokens=101)
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=["embed_tokens"])
    with pytest.raises(LabkitError, match=r"has 101 tokens and the base 96.*save_embedding_layers"):
        resolve(made("llama"), adapter)
    for tokens, width in ((90, 32), (96, 31)):
        tensors, _ = embedding_factors(tokens, width)
        adapter = write_adapter(tmp_path / "a", tensors, target_modules=["embed_tokens"])
        with pytest.raises(
            LabkitError, match=r"changes a tensor of shape .*made for another model"
        ):
            resolve(made("llama"), adapter)
    half = {f"{EMBEDDING}.lora_embedding_A": np.ones((2, 96))}
    adapter = write_adapter(tmp_path / "a", half, target_modules=["embed_tokens"])
    with pytest.raises(LabkitError, match="has only lora_embedding_A; both"):
        resolve(made("llama"), adapter)
