"""Names of modules: as they lie on disk, as transformers loads them, as adapters write them.

One weight has several names. A checkpoint on disk may say `layers.0…`, `model.layers.0…` or
`language_model.model.layers.0…`; transformers 5 renames some weights when it loads them; trainers
put the names of their wrappers in front. The canonical name leaves all of that out. It keeps every
other word, so that a vision tower's layer never passes for one of the language model's.
"""

from __future__ import annotations

import re

WRAPPERS = frozenset(
    "base_model model language_model text_model transformer decoder gpt_neox llm module _orig_mod "
    "_fsdp_wrapped_module _checkpoint_wrapped_module".split()
)
"""Names that hold the decoder and say nothing about which weight is meant."""
RENAMED = {"embed_out": "lm_head", "unembed_tokens": "lm_head", "block_sparse_moe": "mlp"}
"""Names of GPT-NeoX, Tinker and Mixtral, and what transformers 5 calls them in memory."""
EXPERT_RENAMED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""Mixtral's names for the matrices of one expert."""
STACKS = frozenset({"layers", "h", "blocks", "layer", "block"})
"""What architectures call their stack of decoder layers."""
NUMBER = re.compile(r"(?<![^.])[0-9]{1,6}(?![^.])")
"""A number between dots. Longer numbers are no layers; int() would refuse the longest."""
ADAPTER_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)*(?:base_model\.model\.|base_model\.)?")
TRAINING_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\."
)


def split_layer(name: str) -> tuple[str, int | None, str]:
    """Split a name at its first number: what is before, the number, what is behind."""
    match = NUMBER.search(name)
    if match is None:
        return name, None, ""
    return name[: max(match.start() - 1, 0)], int(match[0]), name[match.end() + 1 :]


def without_wrappers(name: str) -> str:
    """Leave out the parts of a name that only say what holds the decoder."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def canonical(name: str) -> str:
    """The name of a module or tensor that all its spellings share."""
    before, number, behind = split_layer(name)
    start = ".".join(RENAMED.get(part, part) for part in without_wrappers(before).split("."))
    if number is None:
        return start
    parts = [RENAMED.get(part, part) for part in behind.split(".")]
    if "experts" in parts:
        parts = [EXPERT_RENAMED.get(part, part) for part in parts]
    return ".".join([start, str(number), *parts])


def without_training_prefix(key: str) -> str:
    """A key of an adapter's file without what PEFT and trainers put around the base's names."""
    return TRAINING_WRAPPERS.sub("", ADAPTER_PREFIX.sub("", key, count=1))
