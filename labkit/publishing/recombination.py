"""LoRAs out of LoRAs: another rank, or several with their gradients as one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from labkit.deltas.low_rank import LowRank
from labkit.errors import LabkitError, shown
from labkit.files.atomic_folder import building, check_target, explain, require_apart
from labkit.files.paths import user_path
from labkit.machine import standard_arithmetic
from labkit.merging.recipe import Term
from labkit.models.adapter import Adapter
from labkit.publishing.made_adapter import (
    KIND,
    AdapterReceipt,
    AdapterWriter,
    even,
    rank_to_keep,
    require_choice,
    require_dtype,
)
from labkit.publishing.module_weights import LAYER, layer_and_weight


def resize(
    adapter: Adapter | str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> AdapterReceipt:
    """Write a LoRA again with a smaller rank: of each module its largest singular values.

    No product of that rank is nearer to `ΔW` (Eckart and Young, "The approximation of one matrix by
    another of lower rank", 1936). The values come from the factors, never from the product.

    Args:
        adapter: the adapter.
        out: the folder to make. It appears when it is whole.
        rank: of every module, at most.
        energy: in its place: of each module as many singular values as have this share of
            `‖ΔW‖²`.
        dtype: of the factors: "float32", "bfloat16" or "float16".
        overwrite: replace an existing adapter that labkit made.

    Raises:
        LabkitError: neither rank nor energy, or both; an adapter that does more than add `s·B·A`;
            or a folder that cannot be made. Nothing is left behind then.
    """
    require_choice(rank, energy)
    if rank is None and energy is None:
        raise LabkitError(
            "to resize takes a rank, or the share of the energy to keep (such as 0.95)"
        )
    opened = Adapter.open(adapter)
    modules = {name: [(1.0, opened)] for name in opened.modules}
    made = f"{opened.name}, resized"
    return _make([opened], "resize", modules, made, out, rank, energy, dtype, overwrite)


def combine(
    terms: Sequence[Term],
    out: str | Path,
    *,
    rest: float | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> AdapterReceipt:
    """Write several LoRAs, each with its gradient, as one LoRA: `Σ_t w_t·s_t·B_t·A_t`.

    Their ranks stand beside each other, so that nothing is lost but the rounding of `w·s·B` to
    `dtype`; merged with weight 1, it makes the model that a recipe of the terms makes.

    Args:
        terms: adapters and their layer weights.
        out: the folder to make. It appears when it is whole.
        rest: the weight of modules outside the layers; None refuses adapters that have such.
        rank: cut each module to this rank, by its largest singular values; None keeps all.
        energy: in its place: of each module as many as have this share of `‖ΔW‖²`.
        dtype: of the factors: "float32", "bfloat16" or "float16".
        overwrite: replace an existing adapter that labkit made.

    Raises:
        LabkitError: no terms; gradients of different lengths or shorter than the adapters' layers;
            an adapter that does more than add `s·B·A`; adapters of different bases; or a folder
            that cannot be made. Nothing is left behind then.
    """
    require_choice(rank, energy)
    if not terms:
        raise LabkitError("to combine takes at least one term: an adapter and its weights")
    layers = len(terms[0].weights)
    modules: dict[str, list[tuple[float, Adapter]]] = {}
    for term in terms:
        for gradient in (term.weights, *term.weights_for.values()):
            gradient.require(layers, f"adapter {shown(term.adapter.name)}")
        for name in term.adapter.modules:
            _, weight = layer_and_weight(term, name, rest)
            modules.setdefault(name, []).append((weight, term.adapter))
    made = " + ".join(f"{term.weights.mean:.2f} × {term.adapter.name}" for term in terms)
    adapters = [term.adapter for term in terms]
    return _make(adapters, "combine", modules, made, out, rank, energy, dtype, overwrite)


def _make(
    adapters: Sequence[Adapter],
    verb: str,
    modules: Mapping[str, Sequence[tuple[float, Adapter]]],
    made_from: str,
    out: str | Path,
    rank: int | None,
    energy: float | None,
    dtype: str,
    overwrite: bool,
) -> AdapterReceipt:
    require_dtype(dtype)
    target = user_path(out).absolute()
    for adapter in adapters:
        adapter.require_plain(verb)
        require_apart(target, adapter.folder)
    transposed = {bool(adapter.config.get("fan_in_fan_out")) for adapter in adapters}
    if len(transposed) > 1:
        raise LabkitError(
            "the adapters are of different kinds of models: some say fan_in_fan_out, others do not"
        )
    check_target(target, overwrite, KIND)
    began = time.perf_counter()
    known = {str(adapter.config.get("base_model_name_or_path") or "") for adapter in adapters}
    notes = []
    if len(known) > 1:
        notes.append(f"the adapters name different bases: {', '.join(map(shown, sorted(known)))}")
    base = str(adapters[0].config.get("base_model_name_or_path") or "")
    try:
        with building(target) as folder, standard_arithmetic():
            writer = AdapterWriter(folder.folder, dtype)
            with writer.parts() as parts:
                for name, weighted in modules.items():
                    chosen = [(weight, adapter) for weight, adapter in weighted if weight != 0]
                    if not chosen:
                        continue
                    whole = LowRank.weighted_sum(
                        [(weight, adapter.delta(name)) for weight, adapter in chosen]
                    )
                    factors = _cut(whole, rank, energy)
                    if factors.rank:
                        layer = LAYER.fullmatch(name)
                        number = int(layer["layer"]) if layer else None
                        writer.add(parts, name, number, factors, whole.norm())
            every = [name for adapter in adapters for name in adapter.modules]
            settings = {"fan_in_fan_out": True} if True in transposed else {}
            receipt = writer.finish(
                target,
                made_from,
                base,
                dict.fromkeys(every),
                notes,
                settings,
                began,
                _card(target.name, made_from, adapters, base),
            )
            for adapter in adapters:
                adapter.require_unchanged()
            folder.put_in_place(overwrite, KIND)
    except OSError as error:
        raise LabkitError(explain(error, target)) from error
    return receipt


def _cut(whole: LowRank, rank: int | None, energy: float | None) -> LowRank:
    if (rank is None and energy is None) or (rank is not None and whole.rank <= rank):
        return whole
    u, values, v = whole.svd()
    squared = float(np.square(values).sum())
    count = rank_to_keep(values, squared, rank, energy) if squared > 0 else 0
    count = len(values) if count is None else count
    roots = np.sqrt(values[:count])
    return even(LowRank(u[:, :count] * roots, roots[:, None] * v[:, :count].T))


def _card(name: str, made: str, adapters: Sequence[Adapter], base: str) -> list[str]:
    from labkit.files.references import HUB_ID
    from labkit.writing.card import as_text, linked
    from labkit.writing.front_matter import front_matter, own_card

    known = [base] if HUB_ID.fullmatch(base) else []
    head = front_matter(
        "peft",
        known,
        "adapter",
        own_card(adapters[0].folder),
        "fill in the license that the LoRAs allow",
        ("lora",),
    )
    return [
        *head,
        "",
        f"# {as_text(name)}",
        "",
        f"A LoRA made of {' and '.join(linked(adapter) for adapter in adapters)}: {as_text(made)}. "
        "`receipt.json` says the rank of each module, and which share of its change it keeps.",
    ]
