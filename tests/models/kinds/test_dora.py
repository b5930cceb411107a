"""DoRA against PEFT, and against its formula written out."""

import numpy as np
import pytest
import torch

from labkit import LabkitError
from tests.models.kinds.helpers import (
    bases,
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

MODULE = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("architecture", "modules"),
    [
        ("llama", "all-linear"), ("llama", ["up_proj", "embed_tokens"]),
        ("gpt2", ["c_attn", "c_fc", "attn.c_proj"]),
    ],
    ids=["linear", "embedding", "gpt2"],
)  # fmt: skip
@pytest.mark.parametrize("rslora", [False, True])
def test_as_peft(made, tmp_path, architecture, modules, rslora):
    base = made(architecture)
    adapter = train(tmp_path / "a", base, target_modules=modules, use_dora=True, use_rslora=rslora)
    found, expected = labkits(resolve(base, adapter)), pefts(base, adapter)
    prefix = "transformer." if architecture == "gpt2" else ""
    compare(
        {name.removeprefix(prefix): values for name, values in found.items()},
        {name.removeprefix(prefix): values for name, values in expected.items()},
    )


@pytest.mark.parametrize("weight", [1.0, 0.35, -1.5])
def test_the_formula(made, tmp_path, weight):
    base = made("llama")
    tensors, product = factors(MODULE, 48, 32)
    magnitude = (np.abs(some(48)) + 0.5).astype(np.float32)
    adapter = write_adapter(
        tmp_path / "a",
        tensors | {f"{MODULE}.lora_magnitude_vector": magnitude},
        target_modules=["up_proj"],
        use_dora=True,
    )
    expected = bases(base)
    before = expected[f"{MODULE}.weight"]
    direction = before + 3 * product
    # Equation 5 of the paper: the norm of each output's row.
    after = magnitude[:, None] * direction / np.sqrt((direction**2).sum(1))[:, None]
    expected[f"{MODULE}.weight"] = before + weight * (after - before)
    compare(labkits(resolve(base, adapter, weight)), expected, expected, atol=1e-12)


WHOLE = {"llama": ["model.embed_tokens", MODULE], "gpt2": ["transformer.h.1.mlp.c_fc"]}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_weights_that_the_adapter_holds_whole_are_those_that_it_scales(
    made, tmp_path, architecture
):
    """PEFT loads them in place of the base's, and takes the norms of them."""
    base, names = made(architecture), WHOLE[architecture]
    modules = [name.rsplit(".", 1)[-1] for name in names]
    adapter = train(tmp_path / "a", base, target_modules=modules, use_dora=True)
    before = bases(base)

    def with_wholes(tensors):
        for name in names:
            shape = before[f"{name}.weight"].shape
            key = f"base_model.model.{name}.base_layer.weight"
            tensors[key] = torch.tensor(some(*shape), dtype=torch.float32)
        return tensors

    without = pefts(base, adapter)
    retensored(adapter, with_wholes)
    after = {name: values for name, values in pefts(base, adapter).items() if name in before}
    for name in names:
        assert np.abs(after[f"{name}.weight"] - without[f"{name}.weight"]).max() > 0.01
    for weight in (1.0, 0.35):
        expected = {name: before[name] + weight * (after[name] - before[name]) for name in after}
        compare(labkits(resolve(base, adapter, weight, weight)), expected, expected)


def test_new_tokens_are_refused(made, tmp_path):
    """The norms run over rows that the base has not."""
    base = made("llama")
    adapter = train(
        tmp_path / "a", base, resize=101, target_modules=["embed_tokens", "lm_head"], use_dora=True
    )
    with pytest.raises(LabkitError, match=r"changes a tensor of shape .*101.*another model"):
        resolve(base, adapter)


def test_errors(made, tmp_path):
    tensors, _ = factors(MODULE, 48, 32)

    def error(count, **config):
        magnitude = {f"{MODULE}.lora_magnitude_vector": np.ones(count)} if count else {}
        adapter = write_adapter(
            tmp_path / "a", tensors | magnitude, target_modules=["up_proj"], **config
        )
        with pytest.raises(LabkitError) as caught:
            resolve(made("llama"), adapter)
        return str(caught.value)

    assert "has no magnitude, though adapter_config.json says DoRA" in error(0, use_dora=True)
    assert "has a magnitude of DoRA, but adapter_config.json does not say DoRA" in error(48)
    assert "a magnitude of shape (47,); expected 48 numbers, one for each output" in error(
        47, use_dora=True
    )


@pytest.mark.parametrize(
    ("architecture", "module", "out", "places"),
    [
        ("phi3", "self_attn.k_proj", 16, ["qkv_proj"]),
        ("phi3", "mlp.up_proj", 48, ["gate_up_proj"]),
        ("llama", "self_attn.qkv_proj", 64, ["q_proj", "k_proj", "v_proj"]),
    ],
)
def test_parts_of_tensors_are_refused(made, tmp_path, architecture, module, out, places):
    name = f"model.layers.1.{module}"
    tensors, _ = factors(name, out, 32)
    adapter = write_adapter(
        tmp_path / "a",
        tensors | {f"{name}.lora_magnitude_vector": np.ones(out)},
        target_modules=[module.split(".")[1]],
        use_dora=True,
    )
    parent = name.rpartition(".")[0]
    said = ", ".join(f"{parent}.{place}.weight" for place in places)
    with pytest.raises(LabkitError) as caught:
        resolve(made(architecture), adapter)
    assert f"{name!r}: the base keeps it in {said}, where labkit merges plain LoRA only; " in str(
        caught.value
    )
