"""The norms behind the bars, against numpy on the files themselves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.surveys.delta_survey import layer_norms
from tests.tiny import load_file_of

ALL = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
ALL += MLP


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


def expected(base, adapter, modules, layers=4):
    weights = {name: value.double().numpy() for name, value in load_file_of(base).items()}
    factors = {name: value.double().numpy() for name, value in load_file_of(adapter).items()}
    config = json.loads((adapter / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]
    norms = []
    for layer in range(layers):
        changed = whole = 0.0
        for module in modules:
            name = f"model.layers.{layer}.{module}"
            a = factors[f"base_model.model.{name}.lora_A.weight"]
            b = factors[f"base_model.model.{name}.lora_B.weight"]
            changed += np.sum((scaling * b @ a) ** 2)
            whole += np.sum(weights[f"{name}.weight"] ** 2)
        norms.append(math.sqrt(changed) / math.sqrt(whole))
    return norms


def test_all_modules_of_each_layer(tiny_base, tiny_adapter):
    found = layer_norms(Checkpoint(tiny_base), Adapter(tiny_adapter))
    assert found == pytest.approx(expected(tiny_base, tiny_adapter, ALL), rel=1e-9)
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("pattern", "modules"), [("mlp", MLP), ("self_attn", ALL[:4]), ("up_proj", MLP[1:2])]
)
def test_the_modules_of_a_pattern(tiny_base, tiny_adapter, pattern, modules):
    found = layer_norms(Checkpoint(tiny_base), Adapter(tiny_adapter), pattern)
    assert found == pytest.approx(expected(tiny_base, tiny_adapter, modules), rel=1e-9)


def test_a_pattern_that_selects_nothing(tiny_base, tiny_adapter):
    assert layer_norms(Checkpoint(tiny_base), Adapter(tiny_adapter), "experts") == [0.0] * 4
