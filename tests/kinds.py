"""The kinds of adapter that PEFT trains, as settings for one model, and what PEFT makes of them."""

from __future__ import annotations

import random

import torch

from labkit import Adapter, Checkpoint, Gradient, Recipe, Term, plan
from tests.architectures import ARCHITECTURES, make_architecture
from tests.oracle import load, logits, merged, quiet, train

LAYERS = 3
KINDS = (
    "plain", "rslora", "patterns", "layers", "regex", "dora", "dora and rslora", "embedding",
    "dora embedding", "head", "lora_bias", "bias all", "bias lora_only", "modules_to_save",
    "embedding saved", "tokens",
)  # fmt: skip
TIED = {"qwen2", "qwen3", "gemma2", "gemma3", "starcoder2", "gpt2", "opt", "bloom", "falcon",
        "cohere"}  # fmt: skip
WITH_BIASES = {"qwen2", "starcoder2", "gpt2", "gpt_neox", "opt", "bloom"}
EXPERTS = {"mixtral", "qwen2_moe", "qwen3_moe"}
PARTS = {"embedding", "dora embedding", "head", "modules_to_save", "embedding saved"}
"""Kinds that change only one use of a tied embedding, or both in different ways."""


def makes_sense(architecture, kind):
    """Whether the architecture has what the kind trains."""
    biases = ("lora_bias", "bias all", "bias lora_only")
    return kind not in biases or architecture in WITH_BIASES


def names_of(folder):
    with quiet():
        model = load(folder)
    by_module = {module: name for name, module in model.named_modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and "lm_head" not in name
    ]
    return {
        "linear": sorted({name.rsplit(".", 1)[-1] for name in linear}),
        "embedding": by_module[model.get_input_embeddings()],
        "head": by_module[model.get_output_embeddings()],
        "norm": [n for n, m in model.named_modules() if "Norm" in type(m).__name__][-1],
    }


def settings_of(kind, names):
    linear = names["linear"]
    embedding, head, norm = names["embedding"], names["head"], names["norm"]
    return {
        "plain": {"target_modules": "all-linear"},
        "rslora": {"target_modules": linear, "use_rslora": True},
        "patterns": {
            "target_modules": linear,
            "rank_pattern": {linear[0]: 2, rf".*\.1\..*{linear[-1]}": 3},
            "alpha_pattern": {linear[-1]: 11},
        },
        "layers": {"target_modules": linear, "layers_to_transform": [1]},
        "regex": {"target_modules": rf".*\.[02]\..*({'|'.join(linear[:2])})"},
        "dora": {"target_modules": linear, "use_dora": True},
        "dora and rslora": {"target_modules": linear, "use_dora": True, "use_rslora": True},
        "embedding": {"target_modules": [*linear, embedding]},
        "dora embedding": {"target_modules": [embedding], "use_dora": True},
        "head": {"target_modules": [*linear, head]},
        "lora_bias": {"target_modules": _with_bias(linear), "lora_bias": True},
        "bias all": {"target_modules": linear, "bias": "all"},
        "bias lora_only": {"target_modules": linear, "bias": "lora_only"},
        "modules_to_save": {"target_modules": linear, "modules_to_save": [head, norm]},
        "embedding saved": {"target_modules": linear, "modules_to_save": [embedding, head]},
        "tokens": {"target_modules": linear, "trainable_token_indices": {embedding: [5, 2, 90]}},
    }[kind]


def _with_bias(linear):
    # Qwen2's linear modules have biases in the attention's q, k and v only.
    return [name for name in linear if name in ("q_proj", "k_proj", "v_proj")] or linear


def untied(base, folder):
    """The same model with a head of its own, for PEFT: it then changes one and not the other."""
    if not folder.exists():
        with quiet():
            model = load(base)
            model.config.tie_word_embeddings = False
            head = model.get_output_embeddings()
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
            model._tied_weights_keys = None
            model.all_tied_weights_keys = {}
            model.save_pretrained(folder)
    return folder


def check(root, architecture, kind):
    """Compare labkit's merges with PEFT's, at 0, 1 and between; give back the largest difference.

    At weights between, the rule of the design is `W + w·(W_adapter − W)`: what PEFT makes of
    weight 1, as far from the base as the weight says. For a plain LoRA that is PEFT's own scaling.
    """
    base = root / architecture
    if not base.exists():
        make_architecture(base, architecture)
    ties = architecture in TIED and kind in PARTS
    trained_on = untied(base, root / f"{architecture}-untied") if ties else base
    adapter = train(
        root / f"{architecture}-{kind}", trained_on, **settings_of(kind, names_of(base))
    )
    checkpoint, opened = Checkpoint(base), Adapter(adapter)
    reference = load(trained_on).state_dict()
    whole = merged(trained_on, adapter)
    peft = whole.state_dict()
    generator = random.Random(f"{architecture} {kind}")
    weights = [round(generator.uniform(-0.5, 1.5), 2) for _ in range(LAYERS)]
    worst = 0.0
    for gradient, rest in (([1.0] * LAYERS, 1.0), (weights, 0.25), ([0.0] * LAYERS, 0.0)):
        out = root / f"{architecture}-{kind}-{rest}"
        recipe = Recipe(checkpoint, [Term(opened, Gradient(gradient))], rest, untie=ties)
        plan(recipe).write(out, progress=False, hashes=False)
        model = load(out)
        found = model.state_dict()
        assert found.keys() == reference.keys(), found.keys() ^ reference.keys()
        for name, values in found.items():
            layer = checkpoint.layer_of(name)
            weight = rest if layer is None else gradient[layer]
            expected = reference[name] + weight * (peft[name] - reference[name])
            difference = float((values - expected).abs().max())
            assert difference < 2e-6, (name, weight, difference)
            if weight == 0:
                assert torch.equal(values, reference[name]), name
            worst = max(worst, difference)
        if rest == 1:
            with quiet():
                assert float((logits(model) - logits(whole)).abs().max()) < 2e-5
    return worst


__all__ = ["ARCHITECTURES", "KINDS", "check", "makes_sense"]
