"""The kinds of parts that an adapter can have, one file each: all that is to know of a kind.

kind               what it holds                        what it adds at weight w
LoraModule         A, B, scaling                        w·s·B·A
EmbeddingLora      the same, of an embedding            w·s·(B·A)ᵀ
DoraModule         a LoRA and a magnitude               w·(m/‖W+sBA‖·(W + sBA) − W)
ExpertLora         A and B of all experts of a stack    w·s·B_e·A_e to expert e
BiasOfB            the bias of lora_B                   w·s·b
WholeTensor        a parameter that was trained whole   w·(W_adapter − W)
TokenRows          rows of an embedding                 w·(W_adapter − W), in those rows

Each file says by which keys its kind is found in the adapter's file, what it matches in the base
and in which orientation, what it adds, and how a bake scales it: all that `part.py` asks of a kind.
A new kind is a file, its keys in the registry below, and its line in `read_module`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from labkit.models.kinds import bias, dora, embedding, lora, tokens
from labkit.models.kinds.part import ModuleTensors, Part

KEYS = [
    (re.compile(pattern), what)
    for kind in (lora, bias, embedding, dora, tokens)
    for pattern, what in kind.KEYS
]
"""The keys that PEFT writes: a pattern, and what a tensor of that key is in its module."""
MLX_KEYS = [(re.compile(pattern), what) for kind in (lora, dora) for pattern, what in kind.MLX_KEYS]
"""Those of MLX-LM."""


def read_module(found: ModuleTensors) -> Iterator[Part]:
    """Make the parts of one module's tensors.

    Raises:
        LabkitError: tensors that lack another, or do not fit each other or the config.
    """
    rows = tokens.read(found)
    if rows is not None:
        yield rows
    if not found.tensors:
        return
    of_embedding = found.tensors.keys() & {"lora_embedding_A", "lora_embedding_B"}
    factors = embedding.read(found) if of_embedding else lora.read(found)
    yield dora.read(factors, found)
    added = bias.read(factors, found)
    if added is not None:
        yield added
