"""Adapters of every kind, and full models, for tiny bases."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.architectures import make_architecture
from tests.kinds import names_of, settings_of
from tests.models.kinds.helpers import write_adapter
from tests.oracle import train
from tests.tiny import make_letters

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tiny bases in 16 bits, each made once; vocabularies that a tokenizer of letters fits."""
    root = tmp_path_factory.mktemp("bases")

    def base(architecture):
        folder = root / architecture
        if not folder.exists():
            # Every expert is asked, so that nothing jumps when a weight changes a little.
            more = {"num_experts_per_tok": 4} if architecture == "qwen3_moe" else {}
            make_architecture(folder, architecture, torch.bfloat16, vocab_size=97, **more)
            make_letters(folder)
        return folder

    return base


def source_of(kind, base, folder):
    """An adapter of a kind, or a full model."""
    if kind == "a model":
        return noisy(base, folder)
    if kind == "experts":
        return train(folder, base, target_modules=["q_proj"], target_parameters=EXPERTS)
    if kind in ("each expert", "in a fused matrix"):
        return renamed(kind, base, folder)
    return train(folder, base, **settings_of(kind, names_of(base)))


def noisy(base, folder, seed=7, scale=0.02):
    """A full model: the base with noise in every tensor."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    for path in folder.glob("*.safetensors"):
        tensors = {
            name: (values.float() + scale * torch.randn(values.shape, generator=generator)).to(
                values.dtype
            )
            for name, values in load_file(path).items()
        }
        save_file(tensors, path, {"format": "pt"})
    return folder


def renamed(kind, base, folder):
    """LoRAs on modules that transformers keeps within others, as other trainers name them."""
    leaf, shape = {
        "each expert": ("mlp.experts.2.up_proj", (16, 32)),
        "in a fused matrix": ("self_attn.k_proj", (16, 32)),
    }[kind]
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(3):
        name = f"model.layers.{layer}.{leaf}"
        for factor, size in (("A", (4, shape[1])), ("B", (shape[0], 4))):
            drawn = torch.randn(size, generator=generator) * 0.3
            tensors[f"{name}.lora_{factor}.weight"] = drawn.numpy()
    return write_adapter(folder, tensors, target_modules=[leaf.rsplit(".", 1)[-1]], r=4)
