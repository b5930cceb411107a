"""Bases, LoRAs and their merges as dense float64 matrices, read without labkit."""

from __future__ import annotations

import json
import re

import numpy as np
import torch
from safetensors.torch import load_file

import labkit as lk
from tests.architectures import make_architecture
from tests.oracle import train
from tests.tiny import load_file_of

TARGETS = {
    "llama": ["q_proj", "k_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
}


def make_pair(folder, name):
    """A base of an architecture in float32 and two LoRAs for it; the second on fewer modules."""
    base = make_architecture(folder / "base", name)
    fewer = TARGETS[name][:-1]
    return (
        base,
        train(folder / "first", base, seed=3, target_modules=TARGETS[name]),
        train(folder / "second", base, seed=4, target_modules=fewer, r=2, lora_alpha=5),
    )


def numbers_of(folder):
    """A model's tensors by name, in float64."""
    return {name: values.double().numpy() for name, values in load_file_of(folder).items()}


def deltas_of(adapter, base):
    """`ΔW` of each tensor of the base that a LoRA changes."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]
    stored = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for key, a in stored.items():
        if ".lora_A." in key:
            b = stored[key.replace(".lora_A.", ".lora_B.")]
            product = scaling * (b.double() @ a.double()).numpy()
            name = key.removeprefix("base_model.model.").replace(".lora_A.", ".")
            name = name if name in base else name.removeprefix("transformer.")
            found[name] = product.T if base[name].shape != product.shape else product
            if ".c_" in name:  # Conv1D holds in × out, whatever the shape
                found[name] = product.T
    return found


def layer_of(name):
    return int(re.search(r"(?:layers|h)\.(\d+)\.", name)[1])


def merge(base, terms, method, out, **options):
    """Merge with labkit into float32, verify, and read the result."""
    recipe = lk.Recipe(
        lk.Checkpoint(base),
        [lk.Term(source, lk.Gradient(weights)) for source, weights in terms],
        dtype="float32",
        method=method,
        **options,
    )
    resolved = lk.plan(recipe)
    resolved.write(out, progress=False)
    assert lk.verify(out, progress=False).tensors_computed == len(resolved.changes)
    assert lk.Recipe.load(out / "recipe.yaml").method == recipe.method
    return load_file_of(out)


def assert_merged(found, base, changes):
    """Check a merge in float32 against float64 changes by name: to the last bit, but for few."""
    assert set(found) == set(base)
    unequal = elements = 0
    for name, values in base.items():
        exact = values + changes.get(name, 0.0)
        expected = torch.tensor(exact).float()
        np.testing.assert_allclose(found[name].numpy(), expected.numpy(), rtol=2e-7, atol=1e-12)
        unequal += int((found[name] != expected).sum())
        elements += values.size
    # A float64 so near to halfway that its own last bit decides is seldom.
    assert unequal <= 1 + 1e-5 * elements
