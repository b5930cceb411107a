"""Texts that a model wrote itself, so that the layer weights that suit them are known.

And merges that labkit wrote.
"""

import torch
from transformers import AutoModelForCausalLM

from labkit.gradients.gradient import Gradient
from labkit.merging.planning import plan
from labkit.probing.texts import Texts


def written(model, name, weights, passages=24, tokens=40, seed=0):
    """Passages drawn from the live model at some layer weights."""
    dice = torch.Generator().manual_seed(seed)
    rows = model.tokens("A").expand(passages, -1)
    mix = model.mix(Gradient(weights))
    for _ in range(tokens):
        shares = model.forward(rows, [mix]).logits[:, -1, 1:95].softmax(-1)
        rows = torch.cat([rows, 1 + torch.multinomial(shares, 1, generator=dice)], dim=1)
    return Texts(name, [model.tokenizer.decode(row[1:]) for row in rows])


def merged(recipe, folder):
    """Plain transformers' model, in float32, of the merge that a recipe writes."""
    plan(recipe).write(folder, progress=False, hashes=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
