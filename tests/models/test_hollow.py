"""Hollow models have the names and shapes of real ones, and take no room."""

from __future__ import annotations

import os

import pytest
import torch

import labkit as lk
from tests.architectures import make_architecture
from tests.tiny import make_adapter, make_base

LLAMA_13B = {
    "model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824,
    "num_hidden_layers": 40, "num_attention_heads": 40, "vocab_size": 32000,
}  # fmt: skip


def described(tensors):
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma2", "phi3"])
def test_names_and_shapes_are_those_of_transformers(architecture, tmp_path):
    real = lk.Checkpoint(make_architecture(tmp_path / "real", architecture))
    hollow = lk.hollow_base(tmp_path / "hollow", real.config, dtype="float32")
    assert described(hollow.tensors.values()) == described(real.tensors.values())
    assert (hollow.layers, hollow.tied) == (real.layers, real.tied)
    assert not any(tensor.read().any() for tensor in list(hollow.tensors.values())[:3])


def test_factors_are_those_of_peft(tmp_path):
    base = make_base(tmp_path / "base", dtype=torch.float16)
    real = lk.Adapter(make_adapter(tmp_path / "real", base, r=3, lora_alpha=6))
    hollow = lk.hollow_adapter(tmp_path / "hollow", base, rank=3, alpha=6, dtype="float32")
    assert described(hollow.file.tensors) == described(real.file.tensors)
    name = next(iter(real.modules))
    assert hollow.modules[name].scaling == real.modules[name].scaling == 2


def test_a_model_of_26_gb_takes_no_room(tmp_path):
    base = lk.hollow_base(tmp_path / "base", LLAMA_13B)
    lora = lk.hollow_adapter(tmp_path / "lora", base, rank=8, alpha=16)
    assert 26.0e9 < base.nbytes < 26.1e9
    for opened in (base, lora):
        used = sum(os.stat(path).st_blocks * 512 for path in opened.folder.iterdir())
        assert used < 300_000
    assert lk.plan(base, lora, lk.Gradient.ramp(40, 18, 20)).forecast().tensors_touched == 21 * 7


def test_errors(tmp_path, tiny_base):
    def fails(message, function, *arguments, **options):
        with pytest.raises(lk.LabkitError, match=message):
            function(*arguments, **options)

    out = tmp_path / "out"
    fails("transformers makes no model of this config: ", lk.hollow_base, out, {})
    fails("transformers makes no model", lk.hollow_base, out, {"model_type": "no such"})
    fails("the dtype 'int8' is unknown; expected one of float16, bfloat16, float32",
          lk.hollow_base, out, LLAMA_13B, dtype="int8")  # fmt: skip
    fails("exists already", lk.hollow_adapter, tmp_path, tiny_base, rank=1, alpha=1)
    assert not out.exists()
