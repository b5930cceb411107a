"""The merge that labkit began with, on a tiny model of its 40 layers.

The oracle is the arithmetic of the tool that made it (apply-lora-weight-ltl.py of zaraki-tools,
2023, with --cpu_mode): everything in float32, `W += (B @ A) * (alpha / r) * weight`, then float16.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import labkit as lk
from tests.tiny import ALL_LINEAR, make_adapter, make_base, pickled

RECIPE = Path(__file__).parents[1] / "recipes" / "pygmalion-2-13b-supercot-weighted.yaml"
CARD_LIST = "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0.5,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    base = make_base(
        folder / "base", dtype=torch.float16, layers=40, shard="500KB", tie_word_embeddings=False
    )
    # The SuperCOT LoRA's kind: rank 8, alpha 16, and here every linear module.
    adapter = make_adapter(folder / "lora", base, r=8, lora_alpha=16, target_modules=ALL_LINEAR)
    return base, adapter


@pytest.fixture(scope="module")
def merged(files, tmp_path_factory):
    """The recipe itself, with the tiny files in the places of the hub's."""
    base, adapter = files
    recipe = lk.Recipe.load(RECIPE, base, [adapter])
    out = tmp_path_factory.mktemp("merged") / "merged"
    lk.plan(recipe).write(out, progress=False)
    return out


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def factors(adapter, name):
    module = f"base_model.model.{name.removesuffix('.weight')}"
    return adapter.get(f"{module}.lora_A.weight"), adapter.get(f"{module}.lora_B.weight")


def test_the_recipe_is_the_cards(files):
    recipe = lk.Recipe.load(RECIPE, files[0], [files[1]])
    assert str(recipe.terms[0].weights) == CARD_LIST
    assert recipe.terms[0].weights.mean == 0.5125
    assert recipe.dtype == "float16"
    text = RECIPE.read_text()
    assert "base: PygmalionAI/pygmalion-2-13b\n" in text
    assert "adapter: ausboss/llama2-13b-supercot-loras\n" in text


def test_against_the_2023_tool_and_float64(files, merged):
    base, adapter = tensors(files[0]), load_file(files[1] / "adapter_model.safetensors")
    weights = lk.Gradient.ramp(40, 18, 20)
    places = []  # how far apart, in units of the last place
    changed = 0
    for name, ours in tensors(merged).items():
        a, b = factors(adapter, name)
        if a is None:
            assert torch.equal(ours, base[name])
            continue
        weight = weights[int(name.split(".")[2])]
        single = base[name].float()
        single += (b @ a) * (16 / 8) * weight
        theirs = single.half()
        exact = base[name].double() + weight * ((b.double() * 2) @ a.double())
        # NumPy rounds float64 to float16 once; torch goes by way of float32.
        assert np.array_equal(ours.numpy(), exact.numpy().astype(np.float16))
        if weight == 0:
            assert torch.equal(ours, base[name])
        places.append((ordered(ours) - ordered(theirs)).abs().max())
        changed += int((ours != base[name]).sum())
    assert len(places) == 7 * 40
    assert max(places) <= 1
    assert changed > 100_000


def ordered(values):
    """Each float16 as an integer, so that neighbours differ by 1."""
    bits = values.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def test_it_can_be_verified(files, merged):
    verified = lk.verify(merged, base=files[0], adapters=[files[1]], progress=False)
    assert verified.tensors_computed == 7 * 21


def test_its_card_is_the_seeds(merged):
    card = (merged / "README.md").read_text()
    assert "license: llama2\n" in card
    assert "language:\n- en\n" in card
    assert "# Pygmalion-2-13b-SuperCOT-weighted\n" in card
    assert "is 0.51." in card
    assert "Metharme:" in card
    assert "Alpaca:" in card
    assert "0–18: 0; 19: 0.5; 20–39: 1](gradient.png)" in card


def test_the_files_of_that_year_give_the_same_merge(files, merged, tmp_path):
    """Pickled shards, a pickled adapter, and a config with fields that PEFT has since dropped."""
    base, adapter = pickled(files[0], tmp_path / "base", 2), tmp_path / "lora"
    adapter.mkdir()
    torch.save(load_file(files[1] / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    config = json.loads((files[1] / "adapter_config.json").read_text())
    kept = ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "fan_in_fan_out",
            "peft_type", "task_type", "base_model_name_or_path", "inference_mode")  # fmt: skip
    old = {name: config[name] for name in kept}
    old |= {"enable_lora": None, "merge_weights": False, "modules_to_save": None}
    (adapter / "adapter_config.json").write_text(json.dumps(old))

    out = tmp_path / "out"
    lk.plan(lk.Recipe.load(RECIPE, base, [adapter])).write(out, progress=False)
    found = lk.Checkpoint(out)
    expected = lk.Checkpoint(merged)
    assert found.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors:
        assert torch.equal(found.read(name), expected.read(name)), name
