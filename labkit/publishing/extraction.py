"""A LoRA out of two full models: the largest singular values of the difference of each matrix."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.deltas.low_rank import LowRank
from labkit.deltas.projection import largest_values
from labkit.errors import LabkitError, shown, spelled
from labkit.files.atomic_folder import building, check_target, explain, require_apart
from labkit.files.floats import SIGNIFICAND_BITS, SMALLEST_EXPONENT
from labkit.files.paths import user_path
from labkit.files.tensor_file import FLOATS, StoredTensor
from labkit.machine import in_parallel, standard_arithmetic
from labkit.models.adapter import COMPUTED
from labkit.models.checkpoint import Checkpoint
from labkit.models.full_model import FullModel
from labkit.models.kinds.part import CONV1D_MODELS
from labkit.publishing.made_adapter import (
    KIND,
    AdapterReceipt,
    AdapterWriter,
    even,
    rank_to_keep,
    require_choice,
    require_dtype,
)
from labkit.writing.progress import Progress, bar_of

FIRST_RANK = 64
"""Singular values that are looked at first where no rank is asked for."""
BLOCK_ELEMENTS = 1 << 16

OTHER_SHAPE = "left out, as its shape is another: {names}"
DIFFERS = "left out, though it differs: {names}; {whole} puts it into the adapter"
NOISE = "left out, as the difference looks like rounding alone: {names}"
NOISY = (
    "more than half of the rank is noise of rounding, which a share of the energy counts: {names}; "
    "the gap in the spectrum gives rank {gaps} in place of {ranks}: leave {energy} out to have that"
)
NO_END = (
    f"no end of the spectrum shows among its first {FIRST_RANK} values, as in a full fine-tune, so "
    f"the rank is {FIRST_RANK}: {{names}}; see what is kept, and choose a rank"
)


def extract(
    model: Checkpoint | str | Path,
    base: Checkpoint | str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    whole: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = True,
) -> AdapterReceipt:
    """Make a LoRA of what a model has beyond its base.

    The difference of each matrix of the layers is cut to its largest singular values, by
    randomised projection with 16 directions to spare and two power steps (Halko, Martinsson and
    Tropp, "Finding structure with randomness", 2011, algorithms 4.4 and 5.1). One difference is in
    memory at a time, as float32.

    Args:
        model: the model.
        base: the base model, of the same architecture.
        out: the folder to make. It appears when it is whole.
        rank: of every module; the receipt says which share of the change it keeps.
        energy: in its place: of each module as many singular values as have this share of
            `‖ΔW‖²`; the receipt says where most of them are noise of rounding, which in models of
            16 bits is a part of every difference. Without both, those that stand out of it.
        whole: put embeddings, norms, biases and the head into the adapter whole, where they differ;
            else they are left out, and the receipt says which.
        dtype: of the factors: "float32", "bfloat16" or "float16".
        seed: of the projection.
        overwrite: replace an existing adapter that labkit made.
        progress: show a progress bar; or a function that is told the bytes done and their sum.

    Raises:
        LabkitError: models that do not fit each other, that do not differ, or hold numbers that are
            not finite; or a folder that cannot be made. Nothing is left behind then.
    """
    require_choice(rank, energy)
    require_dtype(dtype)
    opened, source = Checkpoint.open(base), FullModel(model)
    opened.require_unquantised()
    source.require_base(opened)
    target = user_path(out).absolute()
    for folder in (opened.folder, source.folder):
        require_apart(target, folder)
    check_target(target, overwrite, KIND)
    began = time.perf_counter()
    try:
        with building(target) as made, standard_arithmetic():
            writer = AdapterWriter(made.folder, dtype)
            work = _Extraction(opened, source.checkpoint, rank, energy, seed)
            left_out: dict[str, list[str]] = defaultdict(list)
            noisy: dict[str, tuple[int, int]] = {}
            with (
                writer.parts() as parts,
                bar_of(opened.nbytes, progress, "extract") as bar,
                in_parallel(work.difference, [*opened.tensors.values()]) as differences,
            ):
                for tensor, found in zip(opened.tensors.values(), differences, strict=True):
                    name = tensor.name.removesuffix(".weight")
                    layer = opened.layer_of(tensor.name)
                    if found.factors is not None:
                        writer.add(parts, name, layer, found.factors, found.norm)
                        if found.gap is not None and found.factors.rank > 2 * found.gap:
                            noisy[name] = found.gap, found.factors.rank
                    elif whole and found.remark == DIFFERS and found.theirs:
                        writer.add_whole(parts, found.theirs, layer, found.norm)
                        found = NOTHING
                    if found.remark:
                        left_out[found.remark].append(tensor.name)
                    bar.update(tensor.nbytes)
            whole_said = spelled("whole=True", "--whole")
            said = f"{source.name} less {opened.name}"
            receipt = writer.finish(
                target,
                said,
                opened.repository or opened.reference,
                _linear_modules(opened),
                [
                    remark.format(names=_some(names), whole=whole_said)
                    for remark, names in left_out.items()
                ]
                + _noise_in(noisy),
                {"fan_in_fan_out": True} if work.transposed else {},
                began,
                _card(target.name, source.checkpoint, opened),
            )
            opened.require_unchanged()
            source.require_unchanged()
            made.put_in_place(overwrite, KIND)
    except OSError as error:
        raise LabkitError(explain(error, target)) from error
    return receipt


@dataclass(frozen=True)
class _Difference:
    """What a model has beyond one tensor of the base.

    Attributes:
        norm: `‖ΔW‖_F`.
        factors: what is kept of it.
        theirs: the model's tensor, where it differs and is no matrix of a layer.
        remark: what is worth saying of it.
        gap: where a share of the energy was asked for, how many singular values stand out of the
            noise of rounding; None where all that were looked at do.
    """

    norm: float = 0.0
    factors: LowRank | None = None
    theirs: StoredTensor | None = None
    remark: str = ""
    gap: int | None = None


NOTHING = _Difference()


class _Extraction:
    """Takes the difference of single tensors."""

    def __init__(
        self,
        base: Checkpoint,
        model: Checkpoint,
        rank: int | None,
        energy: float | None,
        seed: int,
    ) -> None:
        self.base, self.model = base, model
        self.rank, self.energy, self.seed = rank, energy, seed
        self.transposed = base.config.get("model_type") in CONV1D_MODELS

    def difference(self, tensor: StoredTensor) -> _Difference:
        """What the model has beyond one tensor of the base."""
        theirs = self.model.find(tensor.name)
        if isinstance(theirs, str) or tensor.dtype not in FLOATS:
            return NOTHING
        if tensor.name.rpartition(".")[2] in COMPUTED:
            return NOTHING
        if theirs.shape != tensor.shape:
            return _Difference(remark=OTHER_SHAPE)
        layer = self.base.layer_of(tensor.name)
        is_matrix = len(tensor.shape) == 2 and tensor.name.endswith(".weight")
        if layer is not None and is_matrix:
            return self._factors(tensor, theirs, layer)
        norm = math.sqrt(
            sum(float(np.square(other - mine).sum()) for _, mine, other in _blocks(tensor, theirs))
        )
        return _Difference(norm, theirs=theirs, remark=DIFFERS) if norm else NOTHING

    def _factors(self, tensor: StoredTensor, theirs: StoredTensor, layer: int) -> _Difference:
        delta = np.empty(tensor.shape, np.float32)
        squared = 0.0
        noise = RoundingNoise(theirs) if self.rank is None else None
        with np.errstate(invalid="ignore", over="ignore"):  # refused in words
            for start, mine, other in _blocks(tensor, theirs):
                block = other - mine
                squared += float(np.square(block).sum())
                delta[start : start + len(block)] = block
                if noise:
                    noise.look_at(start, other)
        if not math.isfinite(squared):
            raise LabkitError(
                f"{shown(tensor.name)!r} of {shown(self.base.name)} or {shown(self.model.name)} "
                "holds numbers that are NaN or infinite; get the models again"
            )
        if squared == 0:
            return NOTHING
        if self.transposed:
            delta = np.ascontiguousarray(delta.T)
        rounding = noise.largest_value if noise else 0.0
        dice = np.random.default_rng([self.seed, layer, *tensor.name.encode()])
        wanted, remark = self.rank or FIRST_RANK, ""
        while True:
            left, values, right = largest_values(delta, wanted, dice)
            count = rank_to_keep(values, squared, self.rank, self.energy, rounding)
            if count is not None or wanted >= min(tensor.shape):
                break
            if self.energy is None:
                remark = NO_END
                break
            wanted *= 2
        count = len(values) if count is None else count
        norm = math.sqrt(squared)
        if count == 0:
            return _Difference(norm, remark=NOISE)
        roots = np.sqrt(values[:count])
        kept = even(LowRank(left[:, :count] * roots, roots[:, None] * right[:count]))
        gap = None
        if self.energy is not None:
            gap = rank_to_keep(values, squared, None, None, rounding)
        return _Difference(norm, kept, remark=remark, gap=gap)


class RoundingNoise:
    """What rounding to a model's dtype can have made of its tensor, beside every change.

    An element's rounding is spread evenly over its last place `u`: variance `u²/12`. The largest
    singular value of such noise is about the largest norm of a row's deviations and the largest of
    a column's, together (Bandeira and van Handel, "Sharp nonasymptotic bounds on the norm of random
    matrices with independent entries", 2016, arXiv 1408.6185).
    """

    def __init__(self, tensor: StoredTensor) -> None:
        self._dtype = tensor.dtype
        rows, columns = tensor.matrix_shape
        self._of_rows, self._of_columns = np.zeros(rows), np.zeros(columns)

    def look_at(self, start: int, numbers: np.ndarray) -> None:
        """Add some of the tensor's rows, from `start` on."""
        smallest = SMALLEST_EXPONENT[self._dtype]
        _, exponents = np.frexp(numbers)
        exponents = np.where(numbers == 0, smallest, np.maximum(exponents - 1, smallest))
        places = np.ldexp(1.0, exponents - SIGNIFICAND_BITS[self._dtype] + 1)
        variances = np.square(places) / 12
        self._of_rows[start : start + len(numbers)] = variances.sum(axis=1)
        self._of_columns += variances.sum(axis=0)

    @property
    def largest_value(self) -> float:
        """About the largest singular value that it has."""
        return math.sqrt(self._of_rows.max()) + math.sqrt(self._of_columns.max())


def _blocks(one: StoredTensor, other: StoredTensor) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Two tensors, in blocks of the same rows: the first one's number, and both."""
    for (start, mine), (_, theirs) in zip(
        one.blocks(BLOCK_ELEMENTS), other.blocks(BLOCK_ELEMENTS), strict=True
    ):
        yield start, mine, theirs


def _linear_modules(base: Checkpoint) -> list[str]:
    return [
        name.removesuffix(".weight")
        for name, tensor in base.tensors.items()
        if len(tensor.shape) == 2 and name.endswith(".weight") and name not in base.vocabulary
    ]


def _noise_in(modules: Mapping[str, tuple[int, int]]) -> list[str]:
    """What to say of modules, by name, of which most of the rank is noise: the gap's, and it."""
    if not modules:
        return []
    gaps, ranks = (
        str(min(some)) if min(some) == max(some) else f"{min(some)} to {max(some)}"
        for some in zip(*modules.values(), strict=True)
    )
    energy = spelled("energy", "--energy")
    return [NOISY.format(names=_some([*modules]), gaps=gaps, ranks=ranks, energy=energy)]


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _card(name: str, model: Checkpoint, base: Checkpoint) -> list[str]:
    from labkit.merging.recipe import CardOptions
    from labkit.writing.card import as_text, linked
    from labkit.writing.front_matter import front_matter

    head = front_matter(
        "peft",
        [base],
        "adapter",
        CardOptions(),
        "fill in the license that both models allow",
        ("lora", "extracted"),
    )
    return [
        *head,
        "",
        f"# {as_text(name)}",
        "",
        f"A LoRA of what {linked(model)} has beyond {linked(base)}, cut to the largest singular "
        "values of each matrix. `receipt.json` says which share of each change it keeps.",
    ]
