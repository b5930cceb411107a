"""LoRA on linear modules, wherever and however the base keeps them."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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
    retensored,
    some,
    write_adapter,
)
from tests.oracle import train
from tests.tiny import load_file_of

SQUARE = {"intermediate_size": 32, "num_key_value_heads": 4}
ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"


def test_it_adds_scaled_products_to_its_module_alone(made, tmp_path):
    base = made("llama")
    tensors, product = factors(f"{MLP}.up_proj", 48, 32)
    for weight in (1.0, 0.3, -2.0):
        for rslora, scaling in ((False, 6 / 2), (True, 6 / math.sqrt(2))):
            adapter = write_adapter(
                tmp_path / "a", tensors, target_modules=["up_proj"], use_rslora=rslora
            )
            found, expected = labkits(resolve(base, adapter, weight)), bases(base)
            expected[f"{MLP}.up_proj.weight"] += weight * scaling * product
            compare(found, expected, expected, atol=1e-12)


def test_each_layer_has_its_own_weight(made, tmp_path):
    base, weights = made("llama"), [0.25, -1.0, 0.0]
    adapter = train(tmp_path / "a", base, target_modules="all-linear")
    resolved = resolve(base, adapter, weights)
    compare(labkits(resolved), pefts(base, adapter, weights), bases(base))
    assert {name.split(".")[2] for name in changed(resolved)} == {"0", "1"}


def test_square_matrices_lie_straight_whatever_the_config_says(made, tmp_path):
    base = made("llama", **SQUARE)
    adapter = train(tmp_path / "a", base, target_modules="all-linear")
    configured(adapter, fan_in_fan_out=True)
    compare(labkits(resolve(base, adapter)), pefts(base, adapter), bases(base))


def test_square_matrices_of_gpt2_are_transposed(made, tmp_path):
    base = made("gpt2", n_inner=32)
    modules = ["attn.c_proj", "mlp.c_proj", "c_fc", "c_attn"]
    adapter = train(tmp_path / "a", base, target_modules=modules)
    for said in (True, False):
        configured(adapter, fan_in_fan_out=said)
        found, expected = labkits(resolve(base, adapter)), pefts(base, adapter)
        expected = {name.removeprefix("transformer."): v for name, v in expected.items()}
        found = {name.removeprefix("transformer."): v for name, v in found.items()}
        compare(found, expected)


def phi3_blocks():
    """Where q, k, v, gate and up lie in Phi-3's fused tensors: 4 heads of width 8, 2 groups."""
    q, k, v = (0, 32), (32, 48), (48, 64)
    return {
        f"{ATTENTION}.q_proj": (f"{ATTENTION}.qkv_proj.weight", q),
        f"{ATTENTION}.k_proj": (f"{ATTENTION}.qkv_proj.weight", k),
        f"{ATTENTION}.v_proj": (f"{ATTENTION}.qkv_proj.weight", v),
        f"{MLP}.gate_proj": (f"{MLP}.gate_up_proj.weight", (0, 48)),
        f"{MLP}.up_proj": (f"{MLP}.gate_up_proj.weight", (48, 96)),
    }


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_split_modules_on_a_base_that_fuses_them(made, tmp_path, weight):
    base = made("phi3")
    tensors, expected = {}, bases(base)
    for module, (name, (first, last)) in phi3_blocks().items():
        mine, product = factors(module, last - first, 32)
        tensors |= mine
        expected[name][first:last] += weight * 3 * product
    modules = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=modules)
    compare(labkits(resolve(base, adapter, weight)), expected, expected, atol=1e-12)


def test_fused_modules_on_a_base_that_splits_them(made, tmp_path):
    base = made("llama")
    expected = bases(base)
    qkv, product = factors(f"{ATTENTION}.qkv_proj", 64, 32)
    gate_up, wide = factors(f"{MLP}.gate_up_proj", 96, 32)
    for name, rows in (("q", (0, 32)), ("k", (32, 48)), ("v", (48, 64))):
        expected[f"{ATTENTION}.{name}_proj.weight"] += 3 * product[slice(*rows)]
    expected[f"{MLP}.gate_proj.weight"] += 3 * wide[:48]
    expected[f"{MLP}.up_proj.weight"] += 3 * wide[48:]
    adapter = write_adapter(
        tmp_path / "a", qkv | gate_up, target_modules=["qkv_proj", "gate_up_proj"]
    )
    compare(labkits(resolve(base, adapter)), expected, expected, atol=1e-12)


def test_modules_that_do_not_fill_their_rows_are_refused(made, tmp_path):
    for rows in (16, 40, 64):
        tensors, _ = factors(f"{ATTENTION}.q_proj", rows, 32)
        adapter = write_adapter(tmp_path / "a", tensors, target_modules=["q_proj"])
        with pytest.raises(
            LabkitError,
            match=rf"shape \({rows}, 32\), but the base keeps that module in rows 0 to 31 of "
            r"'model.layers.1.self_attn.qkv_proj.weight', which are 32 rows of width 32",
        ):
            resolve(made("phi3"), adapter)
    for rows in (63, 65):  # fused on split: the sum of the parts
        tensors, _ = factors(f"{ATTENTION}.qkv_proj", rows, 32)
        adapter = write_adapter(tmp_path / "a", tensors, target_modules=["qkv_proj"])
        with pytest.raises(LabkitError, match=r"qkv_proj': the base has no module of that name"):
            resolve(made("llama"), adapter)


def test_two_changes_of_the_same_rows_are_refused(made, tmp_path):
    split, _ = factors(f"{ATTENTION}.k_proj", 16, 32)
    fused, _ = factors(f"{ATTENTION}.qkv_proj", 64, 32)
    adapter = write_adapter(tmp_path / "a", split | fused, target_modules=["k_proj", "qkv_proj"])
    with pytest.raises(LabkitError, match=r"both name the base's .*qkv_proj.*several adapters"):
        resolve(made("phi3"), adapter)


def stacked(folder, base, layers=3, experts=4):
    """The same mixture with its experts stacked on disk, as newer ones are."""
    folder.mkdir()
    shutil.copy(base / "config.json", folder)
    disk = load_file_of(base)
    tensors = {name: values for name, values in disk.items() if ".experts." not in name}
    for layer in range(layers):
        stem = f"model.layers.{layer}.mlp.experts"
        found = [
            [disk[f"{stem}.{e}.{leaf}.weight"] for leaf in ("gate_proj", "up_proj", "down_proj")]
            for e in range(experts)
        ]
        tensors[f"{stem}.gate_up_proj"] = torch.stack([torch.cat(one[:2]) for one in found])
        tensors[f"{stem}.down_proj"] = torch.stack([one[2] for one in found])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("inner", [16, 32])
@pytest.mark.parametrize("style", ["qwen", "mixtral"])
def test_experts_own_factors_on_a_base_that_stacks_them(made, tmp_path, inner, style):
    base = stacked(tmp_path / "base", made("qwen3_moe", moe_intermediate_size=inner))
    expected, tensors = bases(base), {}
    names = {"qwen": ("gate_proj", "up_proj", "down_proj"), "mixtral": ("w1", "w3", "w2")}[style]
    holder = {"qwen": "mlp", "mixtral": "block_sparse_moe"}[style]
    for expert in (0, 3):
        stem = f"model.layers.2.{holder}.experts.{expert}"
        gate, one = factors(f"{stem}.{names[0]}", inner, 32)
        up, two = factors(f"{stem}.{names[1]}", inner, 32)
        down, three = factors(f"{stem}.{names[2]}", 32, inner)
        tensors |= gate | up | down
        expected["model.layers.2.mlp.experts.gate_up_proj"][expert, :inner] += 1.5 * one
        expected["model.layers.2.mlp.experts.gate_up_proj"][expert, inner:] += 1.5 * two
        expected["model.layers.2.mlp.experts.down_proj"][expert] += 1.5 * three
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=list(names))
    compare(labkits(resolve(base, adapter, 0.5)), expected, expected, atol=1e-12)


def test_an_expert_that_the_stack_has_not_is_refused(made, tmp_path):
    base = stacked(tmp_path / "base", made("qwen3_moe"))
    tensors, _ = factors("model.layers.0.mlp.experts.4.up_proj", 16, 32)
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=["up_proj"])
    with pytest.raises(LabkitError, match=r"experts.4.up_proj': the base has no module"):
        resolve(base, adapter)


def test_tinkers_head(made, tmp_path):
    base = made("qwen3", tie_word_embeddings=False)
    tensors, product = factors("model.unembed_tokens", 96, 32)
    adapter = write_adapter(tmp_path / "a", tensors, target_modules="all-linear")
    expected = bases(base)
    expected["lm_head.weight"] += 3 * product
    compare(labkits(resolve(base, adapter)), expected, expected, atol=1e-12)


def test_broken_factors_say_what_and_where(made, tmp_path):
    whole, _ = factors(f"{MLP}.up_proj", 48, 32)
    a, b = whole.values()
    key_a, key_b = whole

    def error(tensors, **config):
        adapter = write_adapter(tmp_path / "a", tensors, target_modules=["up_proj"], **config)
        with pytest.raises(LabkitError) as caught:
            resolve(made("llama"), adapter)
        return str(caught.value)

    assert "has only lora_A; both lora_A and lora_B are needed" in error({key_a: a})
    assert "has only lora_B" in error({key_b: b})
    assert "factors of shape (2, 4, 8) and (48, 2); expected two matrices" in error(
        {key_a: a.reshape(2, 4, 8), key_b: b}
    )
    assert "its rank in adapter_config.json is 3; expected A 3 × in and B out × 3" in error(
        whole, r=3
    )
    empty = error({key_a: np.zeros((0,)), key_b: np.zeros((0,))})
    assert "was saved empty" in empty
    assert "stage3_gather_16bit_weights_on_model_save" in empty
    assert "zero_to_fp32.py" in empty
    wide, _ = factors(f"{MLP}.up_proj", 48, 31)
    assert "changes a tensor of shape (48, 31), but the base's" in error(wide)


def test_a_key_with_an_adapters_name_in_it_counts_once(made, tmp_path):
    tensors, _ = factors(f"{MLP}.up_proj", 48, 32)
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=["up_proj"])
    retensored(
        adapter,
        lambda stored: (
            stored | {key.replace(".weight", ".other.weight"): 2 * v for key, v in stored.items()}
        ),
    )
    with pytest.raises(LabkitError, match="two tensors lora_A for module .*several adapters"):
        resolve(made("llama"), adapter)


def test_a_type_that_is_not_known_is_turned_by_its_shape(made, tmp_path):
    """Models with code of their own store matrices as in × out too, such as Jais."""
    base = shutil.copytree(made("llama"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"model_type": "jais"}
    (base / "config.json").write_text(json.dumps(config))
    tensors, product = factors(f"{MLP}.up_proj", 32, 48)
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=["up_proj"])
    expected = bases(base)
    expected[f"{MLP}.up_proj.weight"] += 3 * product.T
    compare(labkits(resolve(base, adapter)), expected, expected, atol=1e-12)


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_mlx_writes_transposed_factors_and_the_whole_scale(made, tmp_path, weight):
    base, folder = made("llama"), tmp_path / "mlx"
    folder.mkdir()
    a, b = some(32, 2), some(2, 48)
    save_file(
        {
            f"{MLP}.up_proj.lora_a": torch.tensor(a).float(),
            f"{MLP}.up_proj.lora_b": torch.tensor(b).float(),
        },
        folder / "adapters.safetensors",
    )
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 5.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    expected = bases(base)
    expected[f"{MLP}.up_proj.weight"] += weight * 5 * (a @ b).T
    resolved = resolve(base, folder, weight)
    compare(labkits(resolved), expected, expected, atol=1e-12)
    assert [one.part.rank for one in resolved.changes[f"{MLP}.up_proj.weight"].contributions] == [2]
