"""Adapters written by hand, and what labkit and PEFT make of them, as dense float64 matrices."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from labkit import Checkpoint, Gradient, Recipe, Term, plan
from tests.oracle import merged
from tests.tiny import load_file_of

DICE = np.random.default_rng(5)


def some(*shape):
    """Random numbers that float32 holds exactly."""
    return DICE.standard_normal(shape).astype(np.float32).astype(np.float64)


def write_adapter(folder, tensors, **config):
    """Write an adapter: its tensors without PEFT's prefix, and what its config says."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        f"base_model.model.{name}": torch.tensor(values, dtype=torch.float32)
        for name, values in tensors.items()
    }
    save_file(stored, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def factors(module, out, into, rank=2):
    """Random factors of a module: its tensors, and B·A."""
    a, b = some(rank, into), some(out, rank)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, b @ a


def configured(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def retensored(folder, change):
    """Rewrite an adapter's tensors."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


def resolve(base, adapter, weights=1.0, rest=1.0, **options):
    checkpoint = Checkpoint(base)
    if isinstance(weights, float):
        weights = [weights] * checkpoint.layers
    return plan(Recipe(checkpoint, [Term(adapter, Gradient(weights))], rest, **options))


def labkits(resolved):
    """The merged tensors by name, unrounded; only the plan, the deltas and the base's numbers."""
    made = {}
    tensors = {tensor.name: tensor for tensor in resolved.added} | resolved.base.tensors
    for name, tensor in tensors.items():
        values = tensor.read()
        change = resolved.changes.get(name)
        if change is not None:
            rows = np.zeros((change.row_count, tensor.matrix_shape[1]))
            kept = values.reshape(tensor.matrix_shape)[: change.row_count]
            rows[: len(kept)] = kept
            total = rows.copy()
            change.update().add_rows_to(total, 0, rows)
            values = total.reshape(change.shape)
        made[name] = values
    return made


def pefts(base, adapter, weights=None, resize=None):
    """The merged tensors of PEFT by name, in float64."""
    state = merged(base, adapter, weights, resize).state_dict()
    return {name: values.double().numpy() for name, values in state.items()}


def bases(base):
    return {name: values.double().numpy() for name, values in load_file_of(base).items()}


def compare(found, expected, names=None, atol=2e-6):
    """Check that tensors are equal, those of one name for the other's."""
    shared = found.keys() & expected.keys() if names is None else names
    assert shared
    for name in shared:
        assert found[name].shape == expected[name].shape, name
        np.testing.assert_allclose(found[name], expected[name], atol=atol, rtol=0, err_msg=name)


def changed(resolved):
    return set(resolved.changes)
