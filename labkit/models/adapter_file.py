"""Sorts the tensors of an adapter's file into parts: what each one changes, and how."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor, TensorFile
from labkit.models.adapter_config import CONFIG, AdapterConfig, MlxConfig
from labkit.models.names import without_training_prefix
from labkit.models.parts import BiasOfB, ExpertLora, LoraModule, Part, TokenRows, WholeTensor

# Adapters saved from memory carry the adapter's name in the key: lora_A.default.weight. Of PEFT's
# keys each kind is written in one of these ways; MLX-LM's are the last.
KEYS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.[^.]+)?\.weight", "factor"),
        (r"(?P<module>.+)\.lora_B(?:\.[^.]+)?\.bias", "bias of B"),
        (r"(?P<module>.+)\.lora_embedding_(?P<factor>[AB])(?:\.[^.]+)?", "embedding"),
        (r"(?P<module>.+)\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?", "magnitude"),
        (r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?", "rows"),
    )
)
MLX_KEYS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"(?P<module>.+)\.lora_(?P<factor>[ab])", "factor"),
        (r"(?P<module>.+)\.m", "magnitude"),
    )
)
SAVED = re.compile(
    r"(?P<module>.+?)\.modules_to_save\.(?:(?P<last>[^.]+)|[^.]+\.(?P<inside>.+\.)?(?P<leaf>[^.]+))"
)
OTHER_KINDS = {
    "lora_E": "AdaLoRA (lora_E)", "lora_mobile": "X-LoRA", "internal_xlora_classifier": "X-LoRA",
    "hada_w1_a": "LoHa (hada_w1_a)", "lokr_w1": "LoKr (lokr_w1)", "ia3_l": "IA3 (ia3_l)",
    "prompt_embeddings": "prompt tuning (prompt_embeddings)",
    "original_module": "a copy of the base's module (original_module)",
}  # fmt: skip


def read_parts(file: TensorFile, config: AdapterConfig) -> tuple[Part, ...]:
    """Sort an adapter's tensors into parts, in the order of the file.

    Raises:
        LabkitError: a factor without its other half, two of one kind for one module, shapes that
            fit neither each other nor the config, or tensors of a kind that is refused.
    """
    found: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    wholes: list[WholeTensor] = []
    for tensor in file.tensors:
        key = without_training_prefix(tensor.name)
        for mark, what in OTHER_KINDS.items():
            if mark in key.split("."):
                raise LabkitError(
                    f"tensor {shown(tensor.name)!r} of {shown(file.path)} belongs to {what}, which "
                    "is refused: no layer weight can scale it"
                )
        module, kind = _kind_of(key, config)
        if kind == "whole":
            wholes.append(_whole(key, tensor))
            continue
        if kind in found[module]:
            raise LabkitError(
                f"{shown(file.path)} holds two tensors {kind} for module {shown(module)!r}; it "
                "seems to hold several adapters; save one by itself"
            )
        found[module][kind] = tensor
    return (*_trained(found, config), *wholes)


def _kind_of(key: str, config: AdapterConfig) -> tuple[str, str]:
    for pattern, kind in MLX_KEYS if isinstance(config, MlxConfig) else KEYS:
        match = pattern.fullmatch(key)
        if match:
            factor = match.groupdict().get("factor")
            prefix = "lora_embedding_" if kind == "embedding" else "lora_"
            return match["module"], f"{prefix}{factor}" if factor else kind
    return key, "whole"


def _whole(key: str, tensor: StoredTensor) -> WholeTensor:
    saved = SAVED.fullmatch(key)
    if saved:
        # modules_to_save.weight, modules_to_save.default.weight, …default.inner.weight
        inside = f".{saved['inside']}".rstrip(".") if saved["inside"] else ""
        return WholeTensor(saved["module"] + inside, saved["last"] or saved["leaf"], tensor)
    module, _, parameter = key.rpartition(".")
    while module.endswith(".base_layer"):  # the module itself, inside the LoRA that wraps it
        module = module.removesuffix(".base_layer")
    return WholeTensor(module, parameter, tensor)


def _trained(found: dict[str, dict[str, StoredTensor]], config: AdapterConfig) -> Iterator[Part]:
    stacks: dict[str, list[tuple[int, dict[str, StoredTensor]]]] = defaultdict(list)
    for wrapped, tensors in found.items():
        module, depth = wrapped, 0
        while module.endswith(".base_layer"):
            module, depth = module.removesuffix(".base_layer"), depth + 1
        if config.parameters(module) and "lora_A" in tensors:
            stacks[module].append((depth, tensors))
            continue
        where = f"module {shown(wrapped)!r} of {shown(config.name)}"
        if "rows" in tensors:
            rows = tensors.pop("rows")
            indices = config.token_indices(module)
            if len(rows.shape) != 2 or rows.shape[0] != len(indices):
                raise LabkitError(
                    f"{where} has trained token rows of shape {rows.shape}, but {CONFIG} names "
                    f"{len(indices)} tokens; the config belongs to another adapter"
                )
            yield TokenRows(module, rows, indices)
        if tensors:
            yield from _lora(module, tensors, config, where)
    for module, layers in stacks.items():
        yield from _experts(module, layers, config)


def _lora(
    module: str, tensors: dict[str, StoredTensor], config: AdapterConfig, where: str
) -> Iterator[Part]:
    embedding = "lora_embedding_A" in tensors or "lora_embedding_B" in tensors
    prefix = "lora_embedding_" if embedding else "lora_"
    mlx = isinstance(config, MlxConfig)
    names = ("lora_a", "lora_b") if mlx else (f"{prefix}A", f"{prefix}B")
    a, b = (tensors.get(name) for name in names)
    if a is None or b is None:
        raise LabkitError(
            f"{where} has only {next(iter(tensors))}; both {names[0]} and {names[1]} are needed; "
            "get the adapter's file again"
        )
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise LabkitError(
            f"{where} has factors of shape {a.shape} and {b.shape}; expected two matrices: only "
            "linear modules, embeddings and target_parameters are merged"
        )
    rank = config.rank_of(module)
    mine = (a.shape[1], b.shape[0]) if mlx else (a.shape[0], b.shape[1])
    if mine != (rank, rank):
        expected = f"A {rank} × in and B out × {rank}"
        if mlx:
            expected = f"A in × {rank} and B {rank} × out"
        raise LabkitError(
            f"{where} has factors A {a.shape} and B {b.shape}, but its rank in {CONFIG} is "
            f"{rank}; expected {expected}; the config belongs to another adapter, or its "
            "rank_pattern is incomplete"
        )
    magnitude = tensors.get("magnitude")
    uses_dora = bool(config.get("use_dora")) or config.get("fine_tune_type") == "dora"
    if uses_dora and magnitude is None:
        raise LabkitError(
            f"{where} has no magnitude, though {CONFIG} says DoRA; get the adapter's file again"
        )
    if magnitude is not None and not uses_dora:
        raise LabkitError(
            f"{where} has a magnitude of DoRA, but {CONFIG} does not say DoRA (use_dora), and "
            "would be merged without it; correct the config"
        )
    scaling = config.scaling_of(module, rank)
    lora = LoraModule(module, a, b, scaling, magnitude, embedding, mlx)
    if magnitude is not None and magnitude.elements != lora.shape[0]:
        raise LabkitError(
            f"{where} has a magnitude of shape {magnitude.shape}; expected {lora.shape[0]} "
            "numbers, one for each output"
        )
    yield lora
    bias = tensors.get("bias of B")
    if bias is not None:
        if bias.shape != (lora.shape[0],):
            raise LabkitError(
                f"{where} has a lora_B.bias of shape {bias.shape}; expected ({lora.shape[0]},)"
            )
        yield BiasOfB(module, bias, scaling)


def _experts(
    module: str, layers: list[tuple[int, dict[str, StoredTensor]]], config: AdapterConfig
) -> Iterator[Part]:
    parameters = config.parameters(module)
    where = f"module {shown(module)!r} of {shown(config.name)}"
    if len(parameters) != len(layers):
        raise LabkitError(
            f"{where} has factors for {len(layers)} parameters, but target_parameters in {CONFIG} "
            f"names {len(parameters)} of it; the config belongs to another adapter"
        )
    # Of nested wrappers the innermost holds the first parameter.
    for parameter, (_, tensors) in zip(
        parameters, sorted(layers, key=lambda layer: -layer[0]), strict=True
    ):
        name = f"{module}.{parameter}"
        rank = config.rank_of(name)
        a, b = tensors.get("lora_A"), tensors.get("lora_B")
        if a is None or b is None or set(tensors) != {"lora_A", "lora_B"}:
            raise LabkitError(f"{where} needs exactly lora_A and lora_B for {shown(parameter)!r}")
        shapes = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
        if not shapes or a.shape[0] % rank or not a.shape[0]:
            raise LabkitError(
                f"{where} has factors A {a.shape} and B {b.shape} for {shown(parameter)!r}; "
                f"expected A (experts·{rank}) × in and B out × ({rank}·experts)"
            )
        yield ExpertLora(module, parameter, a, b, config.scaling_of(name, rank), rank)
