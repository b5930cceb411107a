"""Puts a gradient into an adapter itself: the merge that costs milliseconds and megabytes.

The factor B of each module is scaled by its layer's weight. What else gives a module a scaling of
its own (`alpha_pattern`, rsLoRA's `alpha / √r`, an alpha of 0) goes into B as well: every program
that knows LoRA scales by `lora_alpha / r`, and many by nothing else. llama.cpp's converter passes
over `alpha_pattern`, and takes an alpha of 0 for 1.

peft reads `alpha_pattern`, which gives a module an alpha of its own. An alpha times the layer
weight is the gradient too, and then no tensor has to change: that form is there for peft alone.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown, spelled
from labkit.files.atomic_folder import (
    building,
    check_target,
    explain,
    require_apart,
)
from labkit.files.paths import user_path
from labkit.gradients.gradient import Gradient, plain
from labkit.machine import standard_arithmetic
from labkit.merging.recipe import FILE_NAME as RECIPE_NAME
from labkit.merging.recipe import Term
from labkit.models.adapter import Adapter
from labkit.models.adapter_config import CONFIG
from labkit.models.kinds.part import Part
from labkit.publishing.module_weights import LAYER, layer_and_weight
from labkit.summary import Summary

ALPHA, FACTORS = "alpha_pattern", "lora_B"
PLAIN_SCALING = {"use_rslora": False, "alpha_pattern": {}}
"""What the config of an adapter says whose modules all have the scaling `lora_alpha / r`."""
KIND = "modules"
"""What tells a baked adapter's receipt from a merge's."""


@dataclass(frozen=True)
class BakedModule:
    """What was done to one module.

    Attributes:
        name: the module's name in the base model.
        layer: its layer; None outside the layers.
        weight: its layer weight.
        alpha: the alpha it had.
        baked: the alpha it has now.
        into: "alpha_pattern", or "lora_B" if the factor B was scaled.
    """

    name: str
    layer: int | None
    weight: float
    alpha: float
    baked: float
    into: str


@dataclass(frozen=True, repr=False)
class BakeReceipt(Summary):
    """What a bake did.

    Attributes:
        folder: where the baked adapter is.
        adapter: the adapter's name.
        gradient: the layer weights.
        modules: every module, in the order of the file.
        files_written: name -> SHA-256 of the tensors' file and the config.
        nbytes: size of the two in bytes.
        seconds: how long it took, card and picture not counted.
        notes: what is worth knowing of the files beside the tensors.
        files: the names of all files in the folder.
    """

    folder: Path
    adapter: str
    gradient: Gradient
    modules: tuple[BakedModule, ...]
    files_written: dict[str, str]
    nbytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def how(self) -> str:
        """What carries the gradient: alpha_pattern, lora_B, or both."""
        return " and ".join(sorted({module.into for module in self.modules}))

    def to_json(self) -> dict[str, Any]:
        """The receipt as `receipt.json` has it."""
        from labkit import __version__

        return {
            "labkit": __version__,
            "adapter": self.adapter,
            "weights": list(self.gradient),
            "baked_into": self.how,
            "seconds": round(self.seconds, 3),
            "files_written": self.files_written,
            "files": list(self.files),
            "modules": [vars(module) for module in self.modules],
        }

    def summary(self) -> Iterator[tuple[str, str]]:
        """The receipt in a few lines: a label and a text each."""
        yield "written", str(self.folder)
        yield "baked", f"{self.adapter}, mean weight {self.gradient.mean:.2f}"
        for into, what in ((ALPHA, "scales"), (FACTORS, "is scaled, and rounded, in")):
            chosen = [module.weight for module in self.modules if module.into == into]
            if chosen:
                changed = sum(weight != 1 for weight in chosen)
                yield "how", f"{into} {what} {changed} of {len(chosen)} modules"
        for note in self.notes:
            yield "note", note
        yield "took", f"{self.seconds * 1e3:.0f} ms, {self.nbytes / 1e6:.2f} MB"


def bake(
    adapter: Adapter | str | Path,
    weights: Gradient | str | Mapping[str, Any],
    out: str | Path,
    *,
    weights_for: Mapping[str, Any] | None = None,
    rest: float | None = None,
    alpha_pattern: bool = False,
    overwrite: bool = False,
) -> BakeReceipt:
    """Write an adapter that has the gradient inside it.

    Args:
        adapter: the adapter.
        weights: the gradient, one weight for each layer of the base model.
        out: the folder to make. It appears when it is whole.
        weights_for: module pattern -> the gradient of the modules it selects.
        rest: the weight of modules outside the layers; None refuses adapters that have such.
        alpha_pattern: leave every tensor as it is, and let `alpha_pattern` of the config carry the
            gradient. peft reads it; llama.cpp and others pass over it, and would apply the whole
            LoRA to every layer. Without it the factor B of each module is scaled, and each number
            rounded once, to the file's dtype.
        overwrite: replace an existing folder that labkit made.

    Raises:
        LabkitError: weights that do not fit the adapter's layers, an adapter with tensors that are
            no LoRA factors, a tokenizer or licence that is a link out of its folder, or a folder
            that cannot be made. Nothing is left behind then.
    """
    began = time.perf_counter()
    opened = Adapter.open(adapter)
    term = Term(opened, weights, weights_for or {})  # type: ignore[arg-type] # Term reads each kind
    target = user_path(out).absolute()
    require_apart(target, opened.folder)
    check_target(target, overwrite, KIND)
    folded = not alpha_pattern and _can_be_folded(opened)
    modules = tuple(_modules(term, rest, alpha_pattern, folded))
    try:
        with building(target) as made:
            receipt = _write(term, modules, folded, made.folder, target, began)
            opened.require_unchanged()
            made.put_in_place(overwrite, KIND)
    except OSError as error:
        raise LabkitError(explain(error, target)) from error
    return receipt


def _modules(
    term: Term, rest: float | None, alpha_pattern: bool, folded: bool
) -> Iterator[tuple[BakedModule, Part]]:
    """What to do to each part; the parts that a module's alpha scales with it are left out."""
    adapter, layers = term.adapter, len(term.weights)
    for pattern, gradient in term.weights_for.items():
        gradient.require(layers, f"modules {shown(pattern)}")
    found = [LAYER.fullmatch(part.name) for part in adapter.parts]
    stacks = sorted({match["stack"] for match in found if match})
    if len(stacks) > 1:
        raise LabkitError(
            f"the adapter {shown(adapter.name)} changes several stacks of layers "
            f"({shown(', '.join(stacks))}), and the weights are those of one; merge it into the "
            "base model instead"
        )
    for part in adapter.parts:
        layer, weight = layer_and_weight(term, part.name, rest)
        yield _baked(part, layer, weight, adapter, alpha_pattern, folded), part


def _baked(
    part: Part,
    layer: int | None,
    weight: float,
    adapter: Adapter,
    alpha_pattern: bool,
    folded: bool,
) -> BakedModule:
    where = adapter.describe(part)
    into = part.bakes_into(not alpha_pattern)
    if into is None and weight != 1:
        raise LabkitError(
            f"{where} holds {shown(part.tensors[-1].name)!r}, which no alpha scales (DoRA, or a "
            "tensor that was trained whole); give it weight 1, or merge it into the base model"
        )
    carrier = into or ALPHA
    alpha = _alpha(part, adapter) if part.factors else 1.0
    baked = alpha * weight
    if not math.isfinite(baked):
        raise LabkitError(
            f"{where} would have alpha {baked}; expected a finite number; choose a smaller weight"
        )
    if carrier == FACTORS:
        baked = _common_alpha(adapter) if folded else alpha
    return BakedModule(part.name, layer, weight, alpha, baked, carrier)


def _can_be_folded(adapter: Adapter) -> bool:
    """Whether its factors can take over all that scales a module other than `lora_alpha / r`."""
    in_factors = all(part.bakes_into(True) == FACTORS for part in adapter.parts)
    return in_factors and "lora_alpha" in adapter.config


def _common_alpha(adapter: Adapter) -> float:
    """The `lora_alpha` of an adapter whose factors took over what else scales its modules."""
    return float(adapter.config["lora_alpha"]) or float(adapter.rank)


def _scale(module: BakedModule, part: Part, adapter: Adapter, folded: bool) -> float:
    """What the factor B of a part is multiplied by."""
    if not folded:
        return module.weight
    rank = part.rank or adapter.modules[part.name].rank
    return module.weight * (part.scaling / (_common_alpha(adapter) / rank))


def _alpha(part: Part, adapter: Adapter) -> float:
    """The alpha that gives a part its scaling."""
    divisor = math.sqrt(part.rank) if adapter.config.get("use_rslora") else part.rank
    alpha = part.scaling * divisor
    # √r does not divide evenly: the alpha that was written is the short number nearby.
    written = float(f"{alpha:.12g}")
    return written if written / divisor == part.scaling else alpha


def _write(
    term: Term,
    modules: tuple[tuple[BakedModule, Part], ...],
    folded: bool,
    folder: Path,
    target: Path,
    began: float,
) -> BakeReceipt:
    from labkit.figures import gradient_picture, picture_bytes
    from labkit.files.direct_io import hash_file
    from labkit.models.model_files import is_legal, is_of_tokenizer
    from labkit.writing.side_files import OWN_FILES, folder_files

    adapter = term.adapter
    tensors = folder / adapter.file.path.name
    shutil.copyfile(adapter.file.path, tensors)
    config = dict(adapter.config)
    _scale_factors(adapter, modules, folded, tensors)
    default, before = config.get("lora_alpha", 8), config.get("alpha_pattern") or {}
    # Each module is named in full, and the first pattern that fits counts: those that were there
    # are left for what is baked otherwise. peft warns of patterns for modules that target_modules
    # does not name, so those have none.
    patterns = {
        f"^{re.escape(adapter.asked_as(module.name))}": json.loads(plain(module.baked))
        for module, part in modules
        if part.factors and (before or module.baked != default) and adapter.targets(module.name)
    }
    if any(module.into == ALPHA for module, _ in modules):
        config["alpha_pattern"] = patterns | before
    elif folded:
        config["lora_alpha"] = json.loads(plain(_common_alpha(adapter)))
        config |= {key: value for key, value in PLAIN_SCALING.items() if key in config}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    notes: list[str] = []
    beside = folder_files(
        adapter.folder, adapter.name, notes, lambda name: is_of_tokenizer(name) or is_legal(name)
    )
    for name, path in beside.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
    seconds = time.perf_counter() - began
    receipt = BakeReceipt(
        folder=target,
        adapter=adapter.name,
        gradient=term.weights,
        modules=tuple(module for module, _ in modules),
        files_written={path.name: hash_file(path) for path in (tensors, folder / CONFIG)},
        nbytes=tensors.stat().st_size + len(text.encode()),
        seconds=seconds,
        notes=tuple(notes),
        files=tuple(sorted({tensors.name, CONFIG, *beside, *OWN_FILES} - {RECIPE_NAME})),
    )
    (folder / "receipt.json").write_text(
        json.dumps(receipt.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    names = "base model", adapter.name
    picture = gradient_picture(term.weights, *names, term.weights_for, dark=False)
    (folder / "gradient.png").write_bytes(picture_bytes(picture))
    (folder / "README.md").write_text(_card(term, receipt), encoding="utf-8")
    return receipt


def _scale_factors(
    adapter: Adapter,
    modules: tuple[tuple[BakedModule, Part], ...],
    folded: bool,
    path: Path,
) -> None:
    """In a copy of the adapter's file, scale the factor B of what is baked into it."""
    import numpy as np

    from labkit.files.floats import round_once, wide
    from labkit.files.tensor_file import FLOATS

    scales = [
        (m, part, _scale(m, part, adapter, folded)) for m, part in modules if m.into == FACTORS
    ]
    chosen = [(m, part, by) for m, part, by in scales if by != 1]
    if chosen and path.suffix != ".safetensors":
        raise LabkitError(
            f"{shown(adapter.file.path)} is no safetensors file, and its tensors cannot be changed "
            "in place; convert it first, or let the config carry the gradient, for peft alone "
            f"({spelled('alpha_pattern=True', '--alpha-pattern')})"
        )
    with path.open("r+b") as file, standard_arithmetic():
        for module, part, by in chosen:
            factor = part.baked_factor
            # What is too large becomes infinite, and is refused in words.
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = round_once(factor.read() * by, factor.dtype)
            if not np.isfinite(wide(scaled, factor.dtype)).all():
                raise LabkitError(
                    f"module {shown(module.name)!r} times {plain(by)} is too large for "
                    f"{FLOATS[factor.dtype]}; choose a smaller weight"
                )
            file.seek(factor.start)
            file.write(scaled.tobytes())


def _card(term: Term, receipt: BakeReceipt) -> str:
    from labkit.figures.gradient_figure import description
    from labkit.files.references import HUB_ID
    from labkit.writing.card import as_text, fenced, linked
    from labkit.writing.front_matter import front_matter, own_card

    adapter = term.adapter
    base: Any = adapter.config.get("base_model_name_or_path")
    known = isinstance(base, str) and HUB_ID.fullmatch(base) is not None
    gradient = term.weights
    snippet = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = {shown(base) if base else 'the base model'!r}",
        'model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")',
        f"model = PeftModel.from_pretrained(model, {shown(receipt.folder.name)!r})",
    ]
    if receipt.how == ALPHA:
        how = (
            "The tensors are the LoRA's own, byte for byte: `alpha_pattern` in "
            "`adapter_config.json` scales each module by its layer's weight. A program that reads "
            "`lora_alpha` alone would apply the whole LoRA to every layer."
        )
    else:
        how = "The factor B of each module was scaled by its layer's weight, and rounded once."
    lines = [
        *front_matter("peft", [base] if known else [], "adapter", own_card(adapter.folder),
                      "fill in the license that the LoRA allows"),
        "",
        f"# {as_text(receipt.folder.name)}",
        "",
        f"The LoRA {linked(adapter)} with a gradient inside it: each layer gets its own share.",
        "",
        *fenced(str(gradient)),
        "",
        f"The mean weight is {gradient.mean:.2f}. {how}",
        "",
        f"![{as_text(description(gradient, 'the base model', adapter.name))}](gradient.png)",
        "",
        *fenced("\n".join(snippet), "python"),
        "",
    ]  # fmt: skip
    return "\n".join(lines)
