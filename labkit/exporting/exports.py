"""Exports a merged model: plans, lets the format's own tools convert it, checks, and describes.

Like a merge, an export is built beside its final name and appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown, spelled
from labkit.exporting.calibration import calibration_for, check_texts, domains_of, own_domains
from labkit.exporting.checking import PASSAGES, TOKENS, Checked, Drawn, compare, draw, listen
from labkit.exporting.export_card import export_card
from labkit.exporting.export_receipt import KIND, Export
from labkit.exporting.formats import format_of
from labkit.exporting.job import Answers, Converted, Format, Job, Questions
from labkit.exporting.lora_files import LORA, changes_of
from labkit.exporting.recipe_copy import recipe_for
from labkit.exporting.staging import require_plain_model, stage
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
from labkit.models.model_files import ADAPTER_CONFIG, CONFIG, SINGLE, is_legal
from labkit.probing.texts import Texts
from labkit.publishing.baking import BakeReceipt
from labkit.writing.front_matter import CARD
from labkit.writing.progress import Steps
from labkit.writing.receipt import Receipt
from labkit.writing.side_files import folder_files

if TYPE_CHECKING:
    from labkit.merging.planning import Plan

SPARE_BYTES = 64 << 20
"""Free disk to leave for small files."""
ANSWERS_BYTES = 2 * 4 * PASSAGES * TOKENS
"""Bytes on the disk for each token of the vocabulary while a set of texts is checked: what two
models expect after each token, in float32."""
IN_FLOAT32 = 4
"""How much larger two copies of a LoRA in float32 are than one in 16 bits: the factors, and the
export."""
SECONDS_TO_START = 7
"""Processor time that the tools take to be imported."""
CALIBRATED = 2
"""How much longer it takes to quantise with a count for each column (benchmarks/README.md)."""
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
    progress: Steps = True,
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
        progress: say on standard error what is done, with a forecast; or a function that is told
            it, at the beginning of each step and several times a second until the next one, from
            this thread. What it raises ends the export, and leaves nothing behind. (While a step
            loads the merge into memory, it is not called.)

    Raises:
        LabkitError: an unknown format; tools that are not installed; a model that they do not know;
            an export that its runtime cannot load; a folder that exists; a disk that is too small.
            Nothing is left behind then.
    """
    found = merged.folder if isinstance(merged, (Receipt, BakeReceipt)) else merged
    target = user_path(out).absolute()
    adapter = _adapter_of(found, format, base)
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
    _require_check(check, texts)
    domains = own_domains(model)
    calibrated_on = calibration_for(chosen, model.name, domains, calibration)
    sets = check_texts(domains, texts) if check else []
    inputs = [model, *([adapter] if adapter else [])]
    needed = forecast_disk(chosen, model, len(sets), adapter)
    _check_target(chosen, inputs, target, overwrite, needed)
    steps = _Telling(progress)
    return _make(chosen, target, lambda _: model, calibrated_on, sets, overwrite, steps, adapter)


def _require_check(check: bool, texts: object) -> None:
    if texts is not None and not check:
        raise LabkitError(
            f"the check measures on {spelled('texts', '--texts')}, and "
            f"{spelled('check=False', '--no-check')} leaves it out; leave out one of the two"
        )


def _adapter_of(
    found: Checkpoint | Adapter | str | Path, format: str, base: Checkpoint | str | Path | None
) -> Adapter | None:
    """The LoRA, if it is one: by its kind, by what its folder holds, else by what is asked."""
    if not isinstance(found, (str, Path)):
        return found if isinstance(found, Adapter) else None
    folder = user_path(found)
    if folder.is_dir():
        alone = (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()
    else:
        alone = base is not None or _is_for_loras(format)
    return Adapter(found) if alone else None


def _is_for_loras(format: str) -> bool:
    return format.strip().lower() in ("gguf", LORA.name)


def _lora_format(name: str, adapter: Adapter) -> Format:
    if not _is_for_loras(name):
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
    progress: Steps,
) -> Export:
    """Carry a plan out, export the merge, and keep the export alone; see `Plan.export`."""
    chosen, target = format_of(format), user_path(out).absolute()
    _require_check(check, texts)
    require_plain_model(plan.base)
    domains = domains_of(plan.recipe)
    calibrated_on = calibration_for(chosen, "the merge", domains, calibration)
    sets = check_texts(domains, texts) if check else []
    inputs = [plan.base, *(term.source for term in plan.recipe.terms)]
    needed = forecast_disk(chosen, plan.base, len(sets)) + plan.forecast().bytes_to_write
    _check_target(chosen, inputs, target, overwrite, needed)
    steps = _Telling(progress)

    def write(work: Path) -> Checkpoint:
        # The name of the folder is the model's in file names and card, which add the format's.
        folder = work / "merge" / target.name.removesuffix(f"-{chosen.name}")
        folder.parent.mkdir()
        if callable(progress):
            steps("merges")
            plan.write(folder, progress=lambda done, total: steps.go_on())
        else:
            plan.write(folder, progress=progress)
        # What was merged stays known, though the merge does not stay.
        Recipe.load(folder / RECIPE_NAME).save(work.parent / RECIPE_NAME)
        return Checkpoint(folder)

    return _make(chosen, target, write, calibrated_on, sets, overwrite, steps)


def _make(
    chosen: Format,
    target: Path,
    source: Callable[[Path], Checkpoint],
    calibration: Texts | None,
    sets: Sequence[Texts],
    overwrite: bool,
    steps: _Telling,
    adapter: Adapter | None = None,
) -> Export:
    """Build the folder.

    Args:
        chosen: the format.
        target: the folder's final name.
        source: gives the model, or makes it in a folder that is removed at the end.
        calibration: the texts to calibrate on.
        sets: the texts that the check measures on; none if it is left out.
        overwrite: as `export` takes it.
        steps: is told what is done.
        adapter: the LoRA that is exported; the model is its base then.
    """
    began = time.time()
    try:
        with building(target) as made:
            work = made.folder / WORK
            work.mkdir()
            model = source(work)
            name = adapter.name if adapter else model.name
            folders = work / model.name, made.folder, work
            job = Job(model, name, *folders, calibration, adapter, steps.go_on)
            steps(_forecast(chosen, job))
            stage(model, job.staged)
            reader = _reader(chosen, model, bool(sets))
            heard = None
            if isinstance(reader, Reader):
                # First: what cannot be compared is said before hours of conversion.
                steps("reads the texts with the merge")
                heard = _hear(job, reader, sets)
                steps("converts it")
            converted = chosen.convert(job)
            if heard is not None:
                steps("runs it, and compares it with the merge")
            found = _compare(chosen, job, converted, heard) if heard else str(reader)
            model.require_unchanged()
            job.subject.require_unchanged()
            beside = _files_beside(job)
            receipt = _receipt(chosen, job, converted, found, beside, target, began)
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


def forecast_disk(
    chosen: Format, model: Checkpoint, sets: int, adapter: Adapter | None = None
) -> int:
    """Bytes of disk that an export takes at most while it is made.

    Args:
        chosen: the format.
        model: the model; the base of a LoRA.
        sets: how many sets of texts the check measures on.
        adapter: the LoRA that is exported.
    """
    needed = forecast_bytes(chosen, model) + SPARE_BYTES
    if chosen.calibration == "must":
        needed *= 2  # gptqmodel lays what it has quantised aside
    if adapter is not None:
        needed += IN_FLOAT32 * adapter.nbytes
        if sets:
            needed += 2 * sum(tensor.elements for tensor in model.tensors.values())  # its base
    if sets and chosen.answer is not None and model.embedding is not None:
        needed += (sets + 1) * ANSWERS_BYTES * model.embedding.shape[0]
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
        times = CALIBRATED if job.calibration else 1
        seconds = SECONDS_TO_START + times * chosen.seconds * weights / 1e9
        said += f", {seconds / 60:.0f} min" if seconds > 120 else f", {seconds:.0f} s"
        said += " of processor time"
    return said


class _Telling:
    """Says which step an export is at."""

    def __init__(self, progress: Steps) -> None:
        self._progress, self._at = progress, ""

    def __call__(self, at: str) -> None:
        """Begin a step."""
        self._at = at
        if self._progress is True:
            print(f"labkit: {at}", file=sys.stderr, flush=True)  # noqa: T201
        self.go_on()

    def go_on(self) -> None:
        """Say it again, to whom it may be reason to end the export."""
        if callable(self._progress):
            self._progress(self._at)


@dataclass(frozen=True)
class Reader:
    """Where the merge is read for the check, and in which dtype."""

    device: str
    dtype: str


def _reader(chosen: Format, model: Checkpoint, check: bool) -> Reader | str:
    """Where the merge is read; or why it is not checked, to be said after "not checked"."""
    from labkit.inference.loading import dtype_that_fits, memory_for

    if not check:
        return ", as was asked for"
    if chosen.answer is None:
        return ": what runs this format is not here"
    (first, *others) = model.files
    if not others and first.path.name != SINGLE:
        return f": transformers looks for {SINGLE}, and the weights are in {shown(first.path.name)}"
    if choose_device("auto") == "cuda":
        import torch

        if memory_for(model, (), "float32") <= torch.cuda.mem_get_info()[0]:
            return Reader("cuda", "float32")
    dtype, _ = dtype_that_fits(model, ())
    needed, free = memory_for(model, (), dtype), free_memory()
    if free is not None and needed > free:
        return (
            f": to read the merge takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB "
            "are free"
        )
    return Reader("cpu", dtype)


@dataclass(frozen=True)
class Heard:
    """What the merge said, and to what."""

    drawn: list[Drawn]
    questions: Questions
    answers: Answers
    dtype: str


def _hear(job: Job, reader: Reader, sets: Sequence[Texts]) -> Heard:
    """Ask the merge; it is not in memory any more when the export is."""
    from labkit.inference.live_model import LiveModel

    adapters = (job.adapter,) if job.adapter else ()
    model = LiveModel(job.model, adapters, 1.0, reader.device, reader.dtype)
    try:
        drawn = draw(model, sets, job.calibration)
        return Heard(drawn, *listen(model, drawn, job.work / "merge says", job.go_on), reader.dtype)
    finally:
        model.free()


def _compare(chosen: Format, job: Job, converted: Converted, heard: Heard) -> Checked:
    """Ask the export, and compare."""
    assert chosen.answer is not None  # noqa: S101 - the merge was asked only then
    answers = chosen.answer(job, converted, heard.questions)
    return compare(heard.drawn, heard.questions, heard.answers, answers, heard.dtype)


def _files_beside(job: Job) -> tuple[str, ...]:
    """Copy licences and recipe of what is exported; the recipe of a plan is there already."""
    subject = job.subject
    texts = folder_files(subject.folder, subject.name, [], is_legal)
    for name, path in texts.items():
        shutil.copyfile(path, job.out / name)
    path = job.out / RECIPE_NAME
    recipe = None if path.is_file() or job.adapter else recipe_for(job.out, subject.folder)
    if recipe is not None:
        path.write_text(recipe, encoding="utf-8")
    return *texts, *([RECIPE_NAME] if path.is_file() else [])


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
