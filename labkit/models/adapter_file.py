"""Sorts the tensors of an adapter's file into parts: what each one changes, and how.

A key says which module a tensor belongs to, and what it is there ("lora_A", "magnitude", …). The
files in `kinds/` know the keys, and make parts of a module's tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor, TensorFile
from labkit.machine import many_objects
from labkit.models.adapter_config import AdapterConfig
from labkit.models.kinds import KEYS, MLX_KEYS, dora, experts, read_module, whole
from labkit.models.kinds.part import ModuleTensors, Part
from labkit.models.names import without_training_prefix

OTHER_KINDS = {
    "lora_E": "AdaLoRA (lora_E)", "lora_mobile": "X-LoRA", "internal_xlora_classifier": "X-LoRA",
    "hada_w1_a": "LoHa (hada_w1_a)", "lokr_w1": "LoKr (lokr_w1)", "ia3_l": "IA3 (ia3_l)",
    "prompt_embeddings": "prompt tuning (prompt_embeddings)",
}  # fmt: skip


@many_objects()
def read_parts(file: TensorFile, config: AdapterConfig) -> tuple[Part, ...]:
    """Sort an adapter's tensors into parts, in the order of the file.

    Raises:
        LabkitError: a factor without its other half, two of one kind for one module, shapes that
            fit neither each other nor the config, or tensors of a kind that is refused.
    """
    found: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    wholes: list[whole.WholeTensor] = []
    for tensor in file.tensors:
        key = without_training_prefix(tensor.name)
        words = set(key.split("."))
        if "original_module" in words:
            continue  # whole states hold the base's own module beside the one that was trained
        for mark in OTHER_KINDS.keys() & words:
            raise LabkitError(
                f"tensor {shown(tensor.name)!r} of {shown(file.path)} belongs to "
                f"{OTHER_KINDS[mark]}, which is refused: no layer weight can scale it"
            )
        sorted_as = _sorted_as(key, config)
        if sorted_as is None:
            wholes.append(whole.read(key, tensor))
            continue
        module, what = sorted_as
        if what in found[module]:
            raise LabkitError(
                f"{shown(file.path)} holds two tensors {what} for module {shown(module)!r}; it "
                "seems to hold several adapters; save one by itself"
            )
        found[module][what] = tensor
    return tuple(dora.on_replaced(whole.with_tokens(list(_trained(found, config)), wholes)))


def _sorted_as(key: str, config: AdapterConfig) -> tuple[str, str] | None:
    """The module that a key belongs to, and what the tensor is there."""
    for pattern, what in MLX_KEYS if config.mlx else KEYS:
        match = pattern.fullmatch(key)
        if match:
            return match["module"], what + (match.groupdict().get("factor") or "")
    return None


def _trained(found: dict[str, dict[str, StoredTensor]], config: AdapterConfig) -> Iterator[Part]:
    stacks: dict[str, list[tuple[int, dict[str, StoredTensor]]]] = defaultdict(list)
    for wrapped, tensors in found.items():
        module, depth = wrapped, 0
        while module.endswith(".base_layer"):
            module, depth = module.removesuffix(".base_layer"), depth + 1
        if config.parameters(module) and "lora_A" in tensors:
            stacks[module].append((depth, tensors))
        else:
            yield from read_module(ModuleTensors(module, tensors, config))
    for module, layers in stacks.items():
        yield from experts.read(module, layers, config)
