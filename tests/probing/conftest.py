"""A live model, and the same models without labkit."""

from __future__ import annotations

import pytest
import torch

from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import free, live
from tests.tiny import merged_by_peft


@pytest.fixture
def loud(loud_base, loud_adapter):
    yield live(loud_base, loud_adapter, device="cpu")
    free()


@pytest.fixture(scope="session")
def plain_models(loud_base, loud_adapter):
    """Base, a merge at the weights 0, 0.5, 1, -0.5, and the full LoRA: as PEFT merges them."""
    from transformers import AutoModelForCausalLM

    models = {}
    gradients = {"base": "0x4", "merged": "0,0.5,1,-0.5", "full": "1x4"}
    for name, weights in gradients.items():
        model = AutoModelForCausalLM.from_pretrained(loud_base, dtype=torch.float32)
        model.load_state_dict(merged_by_peft(loud_base, loud_adapter, Gradient.parse(weights)))
        models[name] = model.eval()
    return models
