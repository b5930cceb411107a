"""A LoRA, such as a baked one, as a GGUF file for llama.cpp (`--lora`).

llama.cpp scales every module by `adapter.lora.alpha / r` and knows nothing else. So what else
scales a module (`alpha_pattern`, rsLoRA, an alpha of 0) goes into its factor B.
"""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from labkit.deltas.low_rank import LowRank
from labkit.errors import LabkitError, shown
from labkit.exporting.gguf_files import ask_llama, missing, write_model
from labkit.exporting.job import Answers, Converted, Format, Job, Questions
from labkit.exporting.processes import run
from labkit.gradients.gradient import Gradient
from labkit.merging.planning import Change, plan
from labkit.merging.recipe import Recipe, Term
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.kinds.lora import LoraModule


def changes_of(adapter: Adapter, base: Checkpoint) -> list[Change]:
    """What the whole LoRA changes of the base, if llama.cpp can carry it.

    Raises:
        LabkitError: it does something else than to add `s·B·A` to linear modules, each a tensor of
            its own; or whatever a plan refuses.
    """
    adapter.require_plain("an export to llama.cpp")
    changes = plan(Recipe(base, [Term(adapter, Gradient.constant(base.layers))], rest=1.0)).changes
    for change in changes.values():
        for one in change.contributions:
            match = one.match
            alone = (match.block, match.rows, match.expert) == (None, None, None)
            if len(change.contributions) > 1 or not alone or match.transposed:
                raise LabkitError(
                    f"llama.cpp cannot carry what {shown(adapter.name)} does to "
                    f"{shown(change.tensor.name)!r}, whose base keeps it in another form; merge it "
                    "into the base instead, and export the merge"
                )
    return list(changes.values())


def factors_of(changes: list[Change]) -> tuple[float, list[tuple[np.ndarray, np.ndarray]]]:
    """The factors as llama.cpp reads them: `alpha / r · B·A` is the change of each module.

    Returns:
        alpha, and of each module A (r × in) and B (out × r), in float32. Where one alpha does for
        all modules, B is the adapter's own.
    """
    found = []
    for change in changes:
        one = change.contributions[0]
        delta = one.delta()
        assert isinstance(delta, LowRank)  # noqa: S101 - `changes_of` took no others
        assert isinstance(one.part, LoraModule)  # noqa: S101
        found.append((one.part.scaling * delta.rank, delta))
    alphas = {f"{alpha:.9g}" for alpha, _ in found}
    common = found[0][0]
    alpha = common if len(alphas) == 1 and common else float(max(d.rank for _, d in found))
    return alpha, [
        (
            delta.right.astype(np.float32),
            (delta.left * (delta.rank / alpha)).astype(np.float32),
        )
        for _, delta in found
    ]


def convert(job: Job) -> Converted:
    """Write a LoRA's GGUF file.

    Raises:
        LabkitError: llama.cpp cannot carry what the LoRA changes.
    """
    assert job.adapter is not None  # noqa: S101 - this format is for adapters alone
    changes = changes_of(job.adapter, job.model)
    alpha, factors = factors_of(changes)
    path = job.work / "factors.npz"
    arrays: dict[str, Any] = {}
    for number, (a, b) in enumerate(factors):
        arrays |= {f"a{number}": a, f"b{number}": b}
    np.savez(path, **arrays)
    file = f"{job.name}-LoRA-F32.gguf"
    done = run(
        "gguf_convert",
        {
            "kind": "LoRA",
            "source": str(job.staged),
            "out": str(job.out / file),
            "name": job.name,
            "alpha": alpha,
            "factors": str(path),
            "tensors": [change.tensor.name for change in changes],
        },
        job.work / "convert",
        "llama.cpp's conversion",
        job.go_on,
    )
    return Converted.by(
        done,
        files=(file,),
        runs=file,
        usage=shlex.join(["llama-cli", "-m", "BASE.gguf", "--lora", file]),
        notes=(f"{len(changes)} modules, alpha {alpha:g}",),
    )


def answer(job: Job, converted: Converted, questions: Questions) -> Answers:
    """Ask llama.cpp: the base as a bfloat16 file, which is made for it, with the LoRA on it.

    Raises:
        LabkitError: it cannot load one of the two.
    """
    base = job.work / "base.gguf"
    write_model("BF16", job, base, job.work / "base")
    path = job.out / converted.runs
    return ask_llama(base, job.work / "answer", questions, job.go_on, path)


LORA = Format(
    name="gguf-lora",
    what="GGUF of a LoRA, which llama.cpp puts on the base model when it runs",
    needs="labkit[gguf]",
    missing=missing,
    calibration="never",
    bits=0,
    convert=convert,
    answer=answer,
    library="gguf",
    tags=("gguf", "llama.cpp"),
)
"""For adapters, where all others are for models."""
