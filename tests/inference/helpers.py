"""Adapters of every kind, and full models, for tiny bases."""

from __future__ import annotations

import shutil

import torch
from safetensors.torch import load_file, save_file

from tests.kinds import names_of, settings_of
from tests.models.kinds.helpers import write_adapter
from tests.oracle import train

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


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
