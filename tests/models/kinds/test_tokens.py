"""Single trained tokens (`trainable_token_indices`), old and new, tied and untied, as PEFT."""

import numpy as np
import pytest
from safetensors.torch import load_file

from labkit import LabkitError
from tests.models.kinds.helpers import (
    bases,
    changed,
    compare,
    configured,
    factors,
    labkits,
    pefts,
    resolve,
    some,
    write_adapter,
)
from tests.oracle import train

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = "model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_old_tokens_as_peft(made, tmp_path, architecture):
    base = made(architecture)
    adapter = train(
        tmp_path / "a",
        base,
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [5, 2, 90]},
    )
    resolved = resolve(base, adapter)
    compare(labkits(resolved), pefts(base, adapter), bases(base))
    assert HEAD not in changed(resolved)  # qwen2's is tied: one tensor


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("rest", [0.0, 0.3, 1.0])
def test_new_tokens(made, tmp_path, architecture, rest):
    base = made(architecture)
    adapter = train(
        tmp_path / "a",
        base,
        resize=101,
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [5, 96, 97, 100]},
    )
    resolved = resolve(base, adapter, 1.0, rest)
    found, peft, before = labkits(resolved), pefts(base, adapter, resize=101), bases(base)
    if rest == 0:
        for name in {EMBEDDING, HEAD} & before.keys():
            np.testing.assert_array_equal(found[name], before[name])
        return
    for name in {EMBEDDING, HEAD} & before.keys():
        assert found[name].shape == (101, 32)
        old = before[name] + rest * (peft[name][:96] - before[name])
        np.testing.assert_allclose(found[name][:96], old, atol=2e-6)
        np.testing.assert_allclose(found[name][96:], peft[name][96:], atol=2e-6)
    stored = load_file(adapter / "adapter_model.safetensors")
    trained = stored[f"base_model.model.{ROWS}"].double().numpy()
    np.testing.assert_array_equal(found[EMBEDDING][[96, 97, 100]], trained[1:])


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("rest", [1.0, -0.5])
def test_untied_the_rows_go_where_peft_puts_them(made, tmp_path, architecture, rest):
    """PEFT carries the rows over to a head that is tied, and to no other."""
    base = made(architecture)
    tensors, _ = factors("model.layers.0.mlp.up_proj", 48, 32)
    rows = some(2, 32)
    adapter = write_adapter(
        tmp_path / "a",
        tensors | {ROWS: rows},
        target_modules=["up_proj"],
        trainable_token_indices={"embed_tokens": [7, 3]},
    )
    found = labkits(resolve(base, adapter, 1.0, rest, untie=True))
    before = bases(base)
    expected = before[EMBEDDING].copy()
    expected[[7, 3]] += rest * (rows - expected[[7, 3]])
    np.testing.assert_allclose(found[EMBEDDING], expected, atol=1e-12)
    head = expected if architecture == "qwen2" else before[HEAD]
    np.testing.assert_allclose(found[HEAD], head, atol=1e-12)


def test_errors(made, tmp_path):
    base = made("llama")
    tensors, _ = factors("model.layers.0.mlp.up_proj", 48, 32)
    adapter = write_adapter(
        tmp_path / "a",
        tensors | {ROWS: some(2, 32)},
        target_modules=["up_proj"],
        trainable_token_indices={"embed_tokens": [7, 3]},
    )

    def error(indices):
        configured(adapter, trainable_token_indices=indices)
        with pytest.raises(LabkitError) as caught:
            resolve(base, adapter)
        return str(caught.value)

    assert "names 3 tokens; the config belongs to another adapter" in error([1, 2, 3])
    assert "trains rows up to 96 of width 32, but the base's" in error({"embed_tokens": [1, 96]})
    for wrong in ({"wte": [1, 2]}, {"embed_tokens": [1, -2]}, [True, 2], "x"):
        assert "which gives no rows for module 'model.embed_tokens'" in error(wrong)
