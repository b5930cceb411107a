"""The bias of `lora_B` (`lora_bias`), against PEFT and by hand."""

import pytest

from labkit import LabkitError
from tests.models.kinds.helpers import (
    bases,
    compare,
    factors,
    labkits,
    pefts,
    resolve,
    some,
    write_adapter,
)
from tests.oracle import train

MODULE = "model.layers.1.self_attn.k_proj"


@pytest.mark.parametrize("rslora", [False, True])
def test_as_peft(made, tmp_path, rslora):
    base = made("qwen2")
    adapter = train(
        tmp_path / "a", base, target_modules=["k_proj"], lora_bias=True, use_rslora=rslora
    )
    compare(labkits(resolve(base, adapter)), pefts(base, adapter), bases(base))


@pytest.mark.parametrize("weight", [1.0, 0.4, -1.0])
def test_it_is_scaled_as_its_module_is(made, tmp_path, weight):
    base = made("qwen2")
    tensors, product = factors(MODULE, 16, 32)
    bias = some(16)
    adapter = write_adapter(
        tmp_path / "a",
        tensors | {f"{MODULE}.lora_B.bias": bias},
        target_modules=["k_proj"],
        lora_bias=True,
    )
    expected = bases(base)
    expected[f"{MODULE}.weight"] += weight * 3 * product
    expected[f"{MODULE}.bias"] += weight * 3 * bias
    compare(labkits(resolve(base, adapter, weight)), expected, expected, atol=1e-12)


def test_errors(made, tmp_path):
    tensors, _ = factors(MODULE, 16, 32)
    for count, base, text in (
        (15, "qwen2", r"has a lora_B.bias of shape \(15,\); expected \(16,\)"),
        (16, "llama", "k_proj': the base has no bias there, which lora_bias adds to; "),
        (
            16,
            "phi3",
            "k_proj': the base keeps it in model.layers.1.self_attn.qkv_proj.weight, "
            "where labkit merges plain LoRA only; ",
        ),
    ):
        adapter = write_adapter(
            tmp_path / "a",
            tensors | {f"{MODULE}.lora_B.bias": some(count)},
            target_modules=["k_proj"],
            lora_bias=True,
        )
        with pytest.raises(LabkitError, match=text):
            resolve(made(base), adapter)
