"""A LoRA that labkit makes: factors written as they come, with config, receipt and card.

The factors of a large model's LoRA take gigabytes together, and their ranks are known only when
each was calculated. So they go into a file of their own first, and behind a header at the end.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from labkit.deltas.low_rank import LowRank
from labkit.errors import LabkitError, shown
from labkit.files.direct_io import hash_file
from labkit.files.floats import round_once, wide
from labkit.files.tensor_file import FLOAT_CODES, FLOATS, StoredTensor, header_for
from labkit.models.adapter_config import CONFIG
from labkit.models.model_files import ADAPTER_WEIGHTS, CARD
from labkit.summary import Summary

DTYPES = ("float32", "bfloat16", "float16")
KIND = "modules"
"""What tells the receipt of an adapter from a merge's."""
RECEIPT = "receipt.json"
NOTHING_LEFT = 1e-7
"""A share of `‖ΔW‖_F²` that is rounding of the arithmetic."""
SMALLEST = 1e-9
"""Of the largest singular value: what is smaller is rounding of the arithmetic."""
COPIED_ELEMENTS = 1 << 20
"""Numbers of a tensor that are copied at a time."""
KEPT_IN_WORDS = 1e-4
"""A share of what is left out from which on it is said."""


@dataclass(frozen=True)
class MadeModule:
    """What an adapter that was made has for one module.

    Attributes:
        name: the module's name in the base model.
        layer: its layer; None outside the layers.
        rank: the rank of its factors; 0 for a tensor that is held whole.
        norm: `‖ΔW‖_F` of the change that was asked for.
        kept: the share of `‖ΔW‖_F²` that the factors have.
    """

    name: str
    layer: int | None
    rank: int
    norm: float
    kept: float


@dataclass(frozen=True, repr=False)
class AdapterReceipt(Summary):
    """What was made.

    Attributes:
        folder: where the adapter is.
        made: what it was made from, in a few words.
        modules: every module, in the order of the file.
        nbytes: size of its file of tensors.
        seconds: how long it took.
        notes: what is worth knowing.
        files_written: name -> SHA-256.
        files: the names of all files in the folder.
    """

    folder: Path
    made: str
    modules: tuple[MadeModule, ...]
    nbytes: int
    seconds: float
    notes: tuple[str, ...]
    files_written: dict[str, str]
    files: tuple[str, ...]

    @property
    def kept(self) -> float:
        """The share of the whole change's `‖ΔW‖_F²` that the adapter has."""
        whole = sum(module.norm**2 for module in self.modules)
        return sum(m.kept * m.norm**2 for m in self.modules) / whole if whole > 0 else 1.0

    def table(self) -> Any:
        """One row for each module, as a table of pandas."""
        import pandas as pd

        return pd.DataFrame([vars(module) for module in self.modules])

    def to_json(self) -> dict[str, Any]:
        """The receipt as `receipt.json` has it."""
        from labkit import __version__

        return {
            "labkit": __version__,
            "made": self.made,
            "kept": self.kept,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "files_written": self.files_written,
            "files": list(self.files),
            "modules": [vars(module) for module in self.modules],
        }

    def summary(self) -> Iterator[tuple[str, str]]:
        """The receipt in a few lines: a label and a text each."""
        yield "written", str(self.folder)
        yield "made", self.made
        ranks = [module.rank for module in self.modules if module.rank]
        if ranks:
            spread = f"{min(ranks)} to {max(ranks)}" if len(set(ranks)) > 1 else str(ranks[0])
            yield "rank", f"{spread}, of {len(ranks)} modules"
        yield "kept", share(self.kept) + " of the change's squared norm"
        for note in self.notes:
            yield "note", note
        yield "took", f"{self.seconds:.1f} s, {self.nbytes / 1e6:.2f} MB"


def share(part: float) -> str:
    """A share in percent, with the digits that tell it from all."""
    return f"{part:.2%}" if part < 1 - KEPT_IN_WORDS else f"{part:.6%}"


class AdapterWriter:
    """Writes the parts of a new adapter, as they come, into a folder that is being built.

    Args:
        folder: the folder.
        dtype: of the tensors: "float32", "bfloat16" or "float16".

    Attributes:
        modules: what was written so far.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self._folder, self._code = folder, FLOAT_CODES[dtype]
        self._parts = folder / f"{ADAPTER_WEIGHTS}.parts"
        self._stored: list[tuple[str, str, tuple[int, ...]]] = []
        self._whole: list[str] = []
        self.modules: list[MadeModule] = []

    def add(
        self, file: IO[bytes], name: str, layer: int | None, factors: LowRank, norm: float
    ) -> None:
        """Write a module's factors, which share the delta's size evenly: `B·√σ` and `√σ·A`.

        Args:
            file: the file of parts.
            name: the module's name in the base.
            layer: its layer.
            factors: `ΔW`, its columns and rows already of even size.
            norm: `‖ΔW‖_F` of what was asked for.

        Raises:
            LabkitError: numbers too large for the dtype.
        """
        left, right = (round_once(each, self._code) for each in (factors.left, factors.right))
        for key, values in (("lora_A", right), ("lora_B", left)):
            if not np.isfinite(wide(values, self._code)).all():
                raise LabkitError(
                    f"module {shown(name)!r} is too large for {FLOATS[self._code]}; choose another "
                    "dtype, such as float32"
                )
            self._stored.append((f"base_model.model.{name}.{key}.weight", self._code, values.shape))
            file.write(np.ascontiguousarray(values).tobytes())
        kept = factors.norm() ** 2 / norm**2 if norm > 0 else 1.0
        self.modules.append(MadeModule(name, layer, factors.rank, norm, min(kept, 1.0)))

    def add_whole(
        self, file: IO[bytes], tensor: StoredTensor, layer: int | None, norm: float
    ) -> None:
        """Write a tensor that the adapter holds whole, as `modules_to_save` does."""
        module, _, parameter = tensor.name.rpartition(".")
        self._stored.append((f"base_model.model.{module}.{parameter}", tensor.dtype, tensor.shape))
        runs = [
            (first, min(first + COPIED_ELEMENTS, tensor.elements))
            for first in range(0, tensor.elements, COPIED_ELEMENTS)
        ]
        for some in tensor.read_runs(runs):
            file.write(some.tobytes())
        self._whole.append(module)
        self.modules.append(MadeModule(module, layer, 0, norm, 1.0))

    def parts(self) -> IO[bytes]:
        """The file that parts are written into; to be closed before `finish`."""
        return self._parts.open("wb")

    def finish(
        self,
        target: Path,
        made: str,
        base_name: str,
        all_modules: Iterable[str],
        notes: Sequence[str],
        settings: Mapping[str, Any],
        began: float,
        card: Sequence[str],
    ) -> AdapterReceipt:
        """Put a header before the parts; write config, receipt and card.

        Args:
            target: the folder's final name.
            made: what it was made from, in a few words.
            base_name: the base's reference, for PEFT.
            all_modules: the names of all modules of the base that a LoRA could change: where a
                short name would select more than was written, modules are named in full.
            notes: what is worth knowing.
            settings: what else the config says.
            began: when the work began, as `time.perf_counter` has it.
            card: the lines of the model card.
        """
        if not self.modules:
            raise LabkitError(f"nothing is changed by {made}: there is no adapter to write")
        path = self._folder / ADAPTER_WEIGHTS
        with path.open("wb") as out, self._parts.open("rb") as parts:
            out.write(header_for(iter(self._stored), {"format": "pt"}))
            shutil.copyfileobj(parts, out)
        self._parts.unlink()
        ranks = {module.name: module.rank for module in self.modules if module.rank}
        config = _config(ranks, self._whole, all_modules, base_name, settings)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (self._folder / CONFIG).write_text(text, encoding="utf-8")
        (self._folder / CARD).write_text("\n".join([*card, ""]), encoding="utf-8")
        receipt = AdapterReceipt(
            target,
            made,
            tuple(self.modules),
            path.stat().st_size,
            time.perf_counter() - began,
            tuple(notes),
            {name: hash_file(self._folder / name) for name in (ADAPTER_WEIGHTS, CONFIG)},
            tuple(sorted((ADAPTER_WEIGHTS, CONFIG, CARD, RECEIPT))),
        )
        content = json.dumps(receipt.to_json(), indent=1, ensure_ascii=False) + "\n"
        (self._folder / RECEIPT).write_text(content, encoding="utf-8")
        return receipt


def _config(
    ranks: Mapping[str, int],
    whole: Sequence[str],
    all_modules: Iterable[str],
    base_name: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """PEFT's config: the scaling of every module is alpha over its own rank, as its code has it.

    Factors are written for a scaling of 1, so that alpha is the rank, of each module its own.
    """
    largest = max(ranks.values(), default=1)
    short = {name.rpartition(".")[2] for name in ranks}
    selected = {name for name in all_modules if name.rpartition(".")[2] in short}
    patterns = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": sorted(short if selected == set(ranks) else ranks),
        "modules_to_save": sorted(set(whole)) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        **settings,
    }


def even(factors: LowRank) -> LowRank:
    """The same product with factors of like size in each rank: `‖b_i‖ = ‖a_i‖`."""
    left = np.linalg.norm(factors.left, axis=0)
    right = np.linalg.norm(factors.right, axis=1)
    sizes = np.sqrt(np.where(left * right > 0, left * right, 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        of_left = np.where(left > 0, sizes / left, 0.0)
        of_right = np.where(right > 0, sizes / right, 0.0)
    return LowRank(factors.left * of_left, factors.right * of_right[:, None])


def rank_to_keep(
    values: np.ndarray, whole: float, rank: int | None, energy: float | None, noise: float = 0.0
) -> int | None:
    """How many of the largest singular values to keep.

    Args:
        values: singular values, largest first; the first ones are enough.
        whole: `‖ΔW‖_F²`.
        rank: so many.
        energy: as many as have this share of `whole`.
        noise: without rank and energy, those that are larger than this.

    Returns:
        the count; None where more values are needed to tell.
    """
    left = whole - np.concatenate([[0.0], np.cumsum(np.square(values))])
    if rank is not None:
        return min(rank, int(np.count_nonzero(values > SMALLEST * values[:1])))
    if energy is not None:
        enough = left <= (1 - energy) * whole + NOTHING_LEFT * whole
    else:
        enough = left <= NOTHING_LEFT * whole
        enough[:-1] |= values <= noise
    return int(enough.argmax()) if enough.any() else None


def require_choice(rank: int | None, energy: float | None) -> None:
    """Check what was asked for of ranks.

    Raises:
        LabkitError: both, a rank below 1, or a share outside 0 to 1.
    """
    if rank is not None and energy is not None:
        raise LabkitError("choose a rank or a share of the energy, and not both")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise LabkitError(f"the rank is {shown(repr(rank))}; expected a whole number from 1 on")
    if energy is not None and not 0 < energy <= 1:
        raise LabkitError(f"the energy to keep is {energy}; expected a share above 0, at most 1")


def require_dtype(dtype: str) -> None:
    """Check the dtype of an adapter's tensors.

    Raises:
        LabkitError: an unknown one.
    """
    if dtype not in DTYPES:
        raise LabkitError(
            f"the dtype {shown(dtype)!r} is unknown; expected one of {', '.join(DTYPES)}"
        )
