"""Exports a merged model: plans, lets the format's own tools convert it, checks, and describes.

Like a merge, an export is built beside its final name and appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown, spelled
from labkit.exporting.calibration import calibration_for, check_texts, refuse_calibration
from labkit.exporting.checking import PASSAGES, TOKENS, Checked, compare, draw, listen
from labkit.exporting.export_card import export_card
from labkit.exporting.export_receipt import KIND, Export
from labkit.exporting.formats import format_of
from labkit.exporting.job import Converted, Format, Job
from labkit.exporting.lora_files import LORA, changes_of
from labkit.exporting.staging import stage
from labkit.files.atomic_folder import (
    RECEIPT,
    building,
    check_target,
    explain,
    is_or_lies_in,
)
from labkit.files.direct_io import hash_file
from labkit.files.paths import user_path
from labkit.files.references import Opened
from labkit.machine import choose_device, free_memory
from labkit.merging.recipe import FILE_NAME as RECIPE_NAME
from labkit.merging.recipe import Recipe
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.model_files import ADAPTER_CONFIG, CONFIG, is_legal
from labkit.probing.texts import Texts
from labkit.publishing.baking import BakeReceipt
from labkit.writing.front_matter import CARD
from labkit.writing.receipt import Receipt
from labkit.writing.side_files import folder_files

if TYPE_CHECKING:
    from labkit.merging.planning import Plan

SPARE_BYTES = 64 << 20
"""Free disk to leave for small files."""
ANSWERS_BYTES = 2 * 4 * 3 * PASSAGES * TOKENS
"""Bytes on the disk for each token of the vocabulary while three sets of texts are checked: what
two models expect after each token, in float32."""
SECONDS_TO_START = 7
"""Processor time that the tools take to be imported."""
WORK = ".work"
WIDE = 256
"""The width of the blocks of K-quants; rows of other widths take more bits."""


def export(
    merged: Checkpoint | Adapter | Receipt | BakeReceipt | str | Path,
    out: str | Path,
    format: str,
    *,
    base: Checkpoint | str | Path | None = None,
    calibration: Texts | str | Path | None = None,
    texts: Texts | Sequence[Texts] | None = None,
    check: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Export:
    """Convert a merged model for the programs that run models, and check it by one of them.

    The tools of the format do the work. What they made is run, and compared with the merge on
    texts: the KL of the next token, how often the most probable token is the same, the NLL. All of
    it stands in the receipt and in the card.

    Args:
        merged: the merged model's folder, or its receipt; any model in safetensors will do. Or a
            LoRA, such as a baked one: as "gguf" it becomes a file that llama.cpp puts on the base.
        out: the folder to make. It appears when it is whole, and not before.
        format: "gguf-q4_k_m" or another one; a name that is unknown lists them.
        base: the base model of a LoRA, if not the one that its config names.
        calibration: what a format of few bits is calibrated on: texts, a file of texts (`.txt`,
            `.jsonl`), "kjv" or "stepwise" for what an adapter of the demo was trained on, or
            "none". Left out, a merge of the demo's adapters is calibrated on their training texts,
            and others not at all, where the format allows that.
        texts: what the check measures on, that of the merge's domain first; passages that were
            calibrated on are left out. By default the demo's texts: those of the domain, where the
            merge is of the demo's adapters, and plain prose.
        check: whether to run it and compare.
        overwrite: replace an existing export, once the new one is whole.
        progress: say on standard error what is done, with a forecast.

    Raises:
        LabkitError: an unknown format; tools that are not installed; a model that they do not know;
            an export that its runtime cannot load; a folder that exists; a disk that is too small.
            Nothing is left behind then.
    """
    found = merged.folder if isinstance(merged, (Receipt, BakeReceipt)) else merged
    target = user_path(out).absolute()
    adapter = _adapter_of(found)
    if adapter is not None:
        chosen, model = _lora_format(format, adapter), _base_of(adapter, base)
        changes_of(adapter, model)
    elif base is not None:
        raise LabkitError(
            f"{spelled('base', '--base')} is that of a LoRA, and a model is exported; leave it out"
        )
    else:
        chosen = format_of(format)
        model = Checkpoint.open(found)  # type: ignore[arg-type] # adapters are dealt with
    refuse_calibration(chosen, calibration)
    inputs = [model, *([adapter] if adapter else [])]
    _check_target(chosen, inputs, target, overwrite, forecast_disk(chosen, model, check))
    return _make(
        chosen,
        target,
        lambda _: model,
        calibration,
        texts,
        check,
        overwrite,
        _teller(progress),
        adapter,
    )


def _adapter_of(found: Checkpoint | Adapter | str | Path) -> Adapter | None:
    """The LoRA, if it is one, or a folder here that holds one and no model."""
    if not isinstance(found, (str, Path)):
        return found if isinstance(found, Adapter) else None
    folder = user_path(found)
    alone = (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()
    return Adapter(found) if alone else None


def _lora_format(name: str, adapter: Adapter) -> Format:
    if name.strip().lower() not in ("gguf", LORA.name):
        raise LabkitError(
            f"{shown(adapter.name)} is a LoRA, and is exported as gguf; {shown(name)!r} is for "
            "models: merge it into its base first"
        )
    return LORA


def _base_of(adapter: Adapter, given: Checkpoint | str | Path | None) -> Checkpoint:
    named = adapter.config.get("base_model_name_or_path")
    if given is None and not named:
        raise LabkitError(
            f"{shown(adapter.name)} does not say which base model it is for; name it with "
            f"{spelled('base', '--base')}"
        )
    try:
        return Checkpoint.open(given or str(named))
    except LabkitError as error:
        if given is not None:
            raise
        raise LabkitError(
            f"the base model that {shown(adapter.name)} names cannot be opened ({error}); say "
            f"where it is here with {spelled('base', '--base')}"
        ) from error


def export_plan(
    plan: Plan,
    out: str | Path,
    format: str,
    *,
    calibration: Texts | str | Path | None,
    texts: Texts | Sequence[Texts] | None,
    check: bool,
    overwrite: bool,
    progress: bool,
) -> Export:
    """Carry a plan out, export the merge, and keep the export alone; see `Plan.export`."""
    chosen, target = format_of(format), user_path(out).absolute()
    refuse_calibration(chosen, calibration)
    inputs = [plan.base, *(term.source for term in plan.recipe.terms)]
    needed = forecast_disk(chosen, plan.base, check) + plan.forecast().bytes_to_write
    _check_target(chosen, inputs, target, overwrite, needed)

    def write(work: Path) -> Checkpoint:
        # The name of the folder is the model's in file names and card.
        folder = work / "merge" / target.name
        folder.parent.mkdir()
        plan.write(folder, progress=progress)
        # What was merged stays known, though the merge does not stay.
        Recipe.load(folder / RECIPE_NAME).save(work.parent / RECIPE_NAME)
        return Checkpoint(folder)

    return _make(chosen, target, write, calibration, texts, check, overwrite, _teller(progress))


def _make(
    chosen: Format,
    target: Path,
    source: Callable[[Path], Checkpoint],
    calibration: Texts | str | Path | None,
    texts: Texts | Sequence[Texts] | None,
    check: bool,
    overwrite: bool,
    say: Callable[[str], None],
    adapter: Adapter | None = None,
) -> Export:
    """Build the folder.

    Args:
        chosen: the format.
        target: the folder's final name.
        source: gives the model, or makes it in a folder that is removed at the end.
        calibration: as `export` takes it.
        texts: likewise.
        check: likewise.
        overwrite: likewise.
        say: is told what is done.
        adapter: the LoRA that is exported; the model is its base then.
    """
    began = time.time()
    try:
        with building(target) as made:
            work = made.folder / WORK
            work.mkdir()
            model = source(work)
            calibrated_on = calibration_for(chosen, model, calibration)
            name = adapter.name if adapter else model.name
            job = Job(model, name, work / model.name, made.folder, work, calibrated_on, adapter)
            say(_forecast(chosen, job))
            stage(model, job.staged)
            converted = chosen.convert(job)
            checked = None
            unchecked = _why_not_checked(chosen, model, check)
            if not unchecked:
                say("runs it, and compares it with the merge")
                checked = _check(chosen, job, converted, check_texts(model, texts))
            model.require_unchanged()
            job.subject.require_unchanged()
            beside = _files_beside(job)
            receipt = _receipt(
                chosen, job, converted, checked if checked else unchecked, beside, target, began
            )
            (made.folder / CARD).write_text(export_card(chosen, job, receipt), encoding="utf-8")
            (made.folder / RECEIPT).write_text(
                json.dumps(receipt.to_json(), indent=1, ensure_ascii=False) + "\n",
                encoding="utf-8",
            )
            shutil.rmtree(work)
            made.put_in_place(overwrite, KIND)
    except OSError as error:
        raise LabkitError(explain(error, target)) from error
    return receipt


def _check_target(
    chosen: Format, inputs: Sequence[Opened], target: Path, overwrite: bool, needed: int
) -> None:
    """Check all that can be checked before anything starts."""
    lacks = chosen.missing()
    if lacks:
        raise LabkitError(f"{chosen.name} needs {chosen.needs}: {lacks}")
    for one in inputs:
        if is_or_lies_in(target, one.folder) or is_or_lies_in(one.folder, target):
            raise LabkitError(
                f"the output {shown(target)} and the model {shown(one.folder.resolve())} lie in "
                "each other; the model is never written to: choose another folder"
            )
    check_target(target, overwrite, KIND)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise LabkitError(
            f"the export needs {needed / 1e9:.2f} GB, and {shown(target.parent)} has "
            f"{free / 1e9:.2f} GB free; make room, or choose a folder on another disk"
        )


def forecast_disk(chosen: Format, model: Checkpoint, check: bool) -> int:
    """Bytes of disk that an export takes at most while it is made."""
    needed = forecast_bytes(chosen, model) + SPARE_BYTES
    if check and chosen is LORA:
        needed += 2 * sum(tensor.elements for tensor in model.tensors.values())  # its base
    if check and model.embedding is not None:
        needed += ANSWERS_BYTES * model.embedding.shape[0]
    return needed


def forecast_bytes(chosen: Format, model: Checkpoint) -> int:
    """The size of an export in bytes, about."""
    matrices = [tensor for tensor in model.tensors.values() if len(tensor.shape) > 1]
    narrow = any(tensor.shape[-1] % WIDE for tensor in matrices)
    bits = chosen.narrow_bits if narrow and chosen.narrow_bits else chosen.bits
    outside = chosen.bits_outside or bits
    sizes = (
        tensor.elements * (outside if model.layer_of(name) is None else bits)
        for name, tensor in model.tensors.items()
    )
    return int(sum(sizes) / 8)


def _forecast(chosen: Format, job: Job) -> str:
    """What the export will take, for whoever waits."""
    size = job.adapter.nbytes if job.adapter else forecast_bytes(chosen, job.model)
    said = f"exports {shown(job.subject.name)} to {chosen.name}: about {size / 1e9:.2f} GB"
    weights = sum(tensor.elements for tensor in job.model.tensors.values())
    if chosen.seconds and not job.adapter:
        seconds = SECONDS_TO_START + chosen.seconds * weights / 1e9
        said += f", {seconds / 60:.0f} min" if seconds > 120 else f", {seconds:.0f} s"
        said += " of processor time"
    return said


def _teller(progress: bool) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if progress:
            print(f"labkit: {text}", file=sys.stderr, flush=True)  # noqa: T201

    return tell


def _why_not_checked(chosen: Format, model: Checkpoint, check: bool) -> str:
    """Why an export is not checked, to be said after "not checked"; empty if it is."""
    from labkit.inference.loading import dtype_that_fits, memory_for

    if not check:
        return ", as was asked for"
    if chosen.answer is None:
        return ": what runs this format is not here"
    free = free_memory()
    needed = memory_for(model, (), dtype_that_fits(model, ())[0])
    if choose_device("auto") == "cpu" and free is not None and needed > free:
        return (
            f": to read the merge takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB "
            "are free"
        )
    return ""


def _check(chosen: Format, job: Job, converted: Converted, sets: Sequence[Texts]) -> Checked:
    """Ask the merge, and then the export; only one of them is in memory at a time."""
    from labkit.inference.live_model import LiveModel
    from labkit.inference.loading import dtype_that_fits

    assert chosen.answer is not None  # noqa: S101 - asked for only then
    device = choose_device("auto")
    dtype = "float32" if device != "cpu" else dtype_that_fits(job.model, ())[0]
    adapters = (job.adapter,) if job.adapter else ()
    model = LiveModel(job.model, adapters, 1.0, device, dtype)
    try:
        drawn = draw(model, sets, job.calibration)
        questions, merge = listen(model, drawn, job.work / "merge says")
    finally:
        model.free()
    return compare(drawn, questions, merge, chosen.answer(job, converted, questions), dtype)


def _files_beside(job: Job) -> tuple[str, ...]:
    """Copy the licences of what is exported; the recipe of a plan is there already."""
    subject = job.subject
    texts = folder_files(subject.folder, subject.name, [], is_legal)
    for name, path in texts.items():
        shutil.copyfile(path, job.out / name)
    recipe = [RECIPE_NAME] if (job.out / RECIPE_NAME).is_file() else []
    return *texts, *recipe


def _receipt(
    chosen: Format,
    job: Job,
    converted: Converted,
    found: Checked | str,
    beside: tuple[str, ...],
    target: Path,
    began: float,
) -> Export:
    checked = found if isinstance(found, Checked) else None
    notes = [*converted.notes, *(checked.notes if checked else [f"not checked{found}"])]
    if checked and checked.reference != "float32":
        notes.append(
            f"the merge was read in {checked.reference}, as float32 does not fit in memory"
        )
    calibration = job.calibration if converted.calibrated else None
    return Export(
        folder=target,
        format=chosen.name,
        merged=job.subject.name,
        files={name: (job.out / name).stat().st_size for name in converted.files},
        sha256={name: hash_file(job.out / name) for name in converted.files},
        beside=beside,
        runs=converted.runs,
        usage=converted.usage,
        calibration=calibration.name if calibration else "",
        calibration_sha256=calibration.sha256 if calibration else "",
        calibrated=converted.calibrated,
        checked=checked,
        tools=converted.tools,
        peak_memory=converted.peak_memory,
        processor_seconds=converted.processor_seconds,
        seconds=time.time() - began,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        notes=tuple(notes),
    )
