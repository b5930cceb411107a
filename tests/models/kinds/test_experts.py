"""LoRA on stacks of experts (`target_parameters`), against PEFT and the dense product."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labkit import LabkitError
from tests.models.kinds.helpers import (
    bases,
    compare,
    configured,
    labkits,
    pefts,
    resolve,
    some,
    write_adapter,
)
from tests.models.kinds.test_lora import stacked
from tests.oracle import train

PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
STACK = "model.layers.{}.mlp.experts.{}"


@pytest.mark.parametrize("inner", [16, 32])
@pytest.mark.parametrize("on_disk", ["each", "stacked"])
@pytest.mark.parametrize("parameters", [PARAMETERS, PARAMETERS[:1], PARAMETERS[1:]])
def test_as_peft(made, tmp_path, inner, on_disk, parameters):
    """Also where hidden and expert size coincide (32), and whichever way the files keep them."""
    base = made("qwen3_moe", moe_intermediate_size=inner)
    if on_disk == "stacked":
        base = stacked(tmp_path / "base", base)
    adapter = train(tmp_path / "a", base, target_modules=["q_proj"], target_parameters=parameters)
    found, expected = labkits(resolve(base, adapter)), pefts(base, adapter)
    if on_disk == "each":
        for layer in range(3):
            each = [
                [found.pop(STACK.format(layer, f"{e}.{leaf}_proj.weight")) for e in range(4)]
                for leaf in ("gate", "up", "down")
            ]
            gate, up, down = map(np.stack, each)
            found[STACK.format(layer, "gate_up_proj")] = np.concatenate([gate, up], axis=1)
            found[STACK.format(layer, "down_proj")] = down
    assert STACK.format(2, "down_proj") in expected
    compare(found, expected, expected)


def test_each_experts_product_at_its_place(made, tmp_path):
    """PEFT's layout: A's rows expert by expert, B's columns interleaved."""
    base = stacked(tmp_path / "base", made("qwen3_moe"))
    name = STACK.format(1, "down_proj")
    a, b = some(4 * 2, 16), some(32, 2 * 4)
    wrapped = STACK.format(1, "lora_{}.weight")
    adapter = write_adapter(
        tmp_path / "a",
        {wrapped.format("A"): a, wrapped.format("B"): b},
        target_modules=[],
        target_parameters=PARAMETERS[1:],
    )
    for weight in (1.0, -0.7):
        expected = bases(base)
        for expert in range(4):
            mine = b.reshape(32, 2, 4)[:, :, expert] @ a.reshape(4, 2, 16)[expert]
            expected[name][expert] += weight * 3 * mine
        compare(labkits(resolve(base, adapter, weight)), expected, expected, atol=1e-12)


def test_gpt_oss_stores_its_stacks_transposed(tmp_path):
    import transformers

    for inner in (32, 16):
        torch.manual_seed(1)
        config = transformers.GptOssConfig(
            vocab_size=96, hidden_size=32, intermediate_size=inner, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4,
            num_experts_per_tok=2, pad_token_id=0, tie_word_embeddings=False,
        )  # fmt: skip
        base = tmp_path / f"base-{inner}"
        transformers.GptOssForCausalLM(config).save_pretrained(base)
        adapter = train(
            tmp_path / f"a-{inner}", base, target_modules=["q_proj"], target_parameters=PARAMETERS
        )
        compare(labkits(resolve(base, adapter)), pefts(base, adapter), bases(base))


def test_errors(made, tmp_path):
    base = stacked(tmp_path / "base", made("qwen3_moe"))
    trained = train(tmp_path / "a", base, target_modules=["q_proj"], target_parameters=PARAMETERS)

    def error(**config):
        folder = shutil.copytree(trained, tmp_path / "b", dirs_exist_ok=True)
        with pytest.raises(LabkitError) as caught:
            resolve(base, configured(folder, **config))
        return str(caught.value)

    assert "has factors for 2 parameters, but target_parameters in adapter_config.json names 1" in (
        error(target_parameters=PARAMETERS[:1])
    )
    assert "expected A (experts·3) × in and B out × (3·experts)" in error(
        r=3, rank_pattern={"q_proj": 4}
    )
    other = stacked(tmp_path / "other", made("qwen3_moe", moe_intermediate_size=32))
    with pytest.raises(LabkitError, match="changes a tensor of shape .* for another model"):
        resolve(other, trained)
    each = made("qwen3_moe", moe_intermediate_size=32)
    with pytest.raises(LabkitError, match="changes a tensor of shape .* for another model"):
        resolve(each, trained)
    wrapped = STACK.format(1, "lora_{}.weight")
    half = write_adapter(
        tmp_path / "half",
        {wrapped.format("A"): some(8, 16)},
        target_modules=[],
        target_parameters=PARAMETERS[1:],
    )
    with pytest.raises(LabkitError, match="needs exactly lora_A and lora_B for 'down_proj'"):
        resolve(base, half)


def test_the_innermost_wrapper_is_the_first_parameter_in_any_order_of_the_file(made, tmp_path):
    base = stacked(tmp_path / "base", made("qwen3_moe"))
    adapter = train(tmp_path / "a", base, target_modules=["q_proj"], target_parameters=PARAMETERS)
    expected = labkits(resolve(base, adapter))
    path = adapter / "adapter_model.safetensors"
    stored = load_file(path)
    path.unlink()
    for reverse in (False, True):
        ordered = {name: stored[name] for name in sorted(stored, reverse=reverse)}
        torch.save(ordered, adapter / "adapter_model.bin")
        compare(labkits(resolve(base, adapter)), expected, expected, atol=0)
