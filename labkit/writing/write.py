"""Carries out a plan: streams the base through, touches what the plan says, makes one folder.

The folder is built beside its final name, flushed to disk, and renamed once. Until then there is
nothing at the final name; a merge that fails or is interrupted takes away what it had built.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, shown, spelled
from labkit.files.atomic_folder import (
    building,
    check_target,
    explain,
    is_or_lies_in,
    require_apart,
)
from labkit.files.direct_io import hash_file
from labkit.files.paths import user_path
from labkit.files.references import require_as_on_hub
from labkit.machine import choose_device, workers
from labkit.merging.recipe import FILE_NAME as RECIPE_NAME
from labkit.merging.rounding import BUFFER_BYTES
from labkit.writing.earlier import Earlier, Sums, made_of
from labkit.writing.engine import FILES_AT_ONCE, Engine, ModelWriter, pieces_at_once, slot_bytes
from labkit.writing.layout import output_files
from labkit.writing.progress import Progress, bar_of
from labkit.writing.receipt import MadeOf, Receipt, TakenOver, TensorReceipt
from labkit.writing.side_files import OWN_FILES, side_files

if TYPE_CHECKING:
    from labkit.merging.planning import Plan

SECONDS_TO_DRAW = 10.0
"""How long an interrupted merge waits for its picture's thread."""
THREADS_BYTES = 8 << 20
"""Memory of the threads themselves, and of what they allocate for a moment."""
SPARE_BYTES = 16 << 20
"""Free disk to leave for the small files and the file system's own use."""
PICTURE = "gradient.png"
KIND = "tensors"
"""What tells a merge's receipt from a baked adapter's."""


def working_memory(plan: Plan) -> int:
    """Bytes of memory that carrying out a plan takes at most, beside what Python starts with."""
    pieces = pieces_at_once("cpu")
    factors = max(
        (
            sum(contribution.part.memory for contribution in change.contributions)
            for change in plan.changes.values()
        ),
        default=0,
    )  # fmt: skip
    slots = pieces * slot_bytes(output_files(plan, "cpu"))
    # A method's blocks lie in memory of the threads' own, which keep it: those of the pieces, and
    # those of the files, in which the method looks through a tensor first.
    method, terms = plan.recipe.method, len(plan.recipe.terms)
    of_method = method.working_memory(terms)
    blocks = workers() * BUFFER_BYTES + (pieces + FILES_AT_ONCE) * of_method
    # Of the tensors that are being written, and of those that are looked through.
    largest = max((change.tensor.elements for change in plan.changes.values()), default=0)
    blocks += 2 * FILES_AT_ONCE * method.held_memory(terms, largest)
    # Factors of as many tensors as pieces under way, and those that are just being read.
    return slots + blocks + (pieces + 4) * factors + THREADS_BYTES


def write(
    plan: Plan,
    out: Path,
    *,
    device: str,
    link: bool,
    overwrite: bool,
    hashes: bool,
    reuse: str | Path | None,
    progress: Progress,
) -> Receipt:
    """Carry out a plan; see `Plan.write`."""
    chosen = choose_device(device)
    out = user_path(out).absolute()
    if reuse is not None and not hashes:
        raise LabkitError(
            "what is taken over from an earlier merge is proven by SHA-256 sums; leave out "
            f"{spelled('hashes=False', '--no-hash')}, or {spelled('reuse=', '--from')}"
        )
    earlier = None if reuse is None else Earlier.open(reuse)
    _check_target(plan, out, overwrite)
    sums = Sums()
    files = output_files(plan, chosen)
    beside = side_files(plan)
    began = time.time()
    try:
        if earlier is not None:
            files = earlier.offer(plan, files, sums)
        with building(out) as made, _drawing(plan) as picture:
            folder = made.folder
            with bar_of(sum(file.size for file in files), progress) as bar:
                engine = Engine(plan, chosen, bar)
                writer = ModelWriter(engine, folder, link, hashes)
                engine.run(files, writer.write)
            for name, content in beside.files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, folder / name)
                else:
                    (folder / name).write_bytes(content)
            plan.base.require_unchanged()
            for term in plan.recipe.terms:
                term.source.require_unchanged()
            for file in files:
                if file.earlier is not None and file.name not in writer.made_anew:
                    file.earlier.file.require_unchanged()
            read, written = _hashes(writer, beside.files, sums) if hashes else ({}, {})
            for path, digest in read.items():
                require_as_on_hub(Path(path), digest)
            receipt = replace(
                _receipt(writer, out, began, read, written, beside.notes, earlier),
                made_of=_made_of(writer, sums) if hashes else None,
                files=tuple(sorted({*(file.name for file in files), *beside.files, *OWN_FILES})),
            )
            _describe(plan, receipt, folder, read)
            (folder / PICTURE).write_bytes(picture.result())
            made.put_in_place(overwrite, KIND)
    except OSError as error:
        raise LabkitError(explain(error, out)) from error
    return receipt


def _check_target(plan: Plan, out: Path, overwrite: bool) -> None:
    parent = out.parent
    base = plan.base.folder
    # A folder inside the base may be mounted elsewhere by itself.
    of_base = (base, *(Path(where) for where, _, _ in os.walk(base)))
    if any(is_or_lies_in(out, one) for one in of_base) or is_or_lies_in(base, out):
        raise LabkitError(
            f"the output {shown(out.resolve())} and the base {shown(base.resolve())} lie in each "
            "other; the base is never written to: choose another folder"
        )
    for term in plan.recipe.terms:
        require_apart(out, term.source.folder)
    check_target(out, overwrite, KIND)
    needed = plan.forecast().bytes_to_write + SPARE_BYTES
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise LabkitError(
            f"the merge writes {needed / 1e9:.2f} GB, and {shown(parent)} has {free / 1e9:.2f} GB "
            "free; make room, or choose a folder on another disk"
        )


@contextmanager
def _drawing(plan: Plan) -> Iterator[Future[bytes]]:
    """Draw the picture in a thread of its own: it takes a second that the merging has to spare.

    If the merge is interrupted, this waits for the thread for a while only: Ctrl-C in the midst of
    an import can leave Python's lock of imports taken for good, and the thread then waits for ever.
    """
    picture: Future[bytes] = Future()

    def draw() -> None:
        try:
            picture.set_result(picture_of(plan))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            picture.set_exception(error)

    thread = threading.Thread(target=draw, name="labkit-picture", daemon=True)
    thread.start()
    try:
        yield picture
    finally:
        thread.join(SECONDS_TO_DRAW)


def picture_of(plan: Plan) -> bytes:
    """The picture of a merge, as the bytes of its file."""
    from labkit.figures import picture_bytes, recipe_picture

    return picture_bytes(recipe_picture(plan.recipe, dark=False))


def _hashes(
    writer: ModelWriter, others: dict[str, bytes | Path], sums: Sums
) -> tuple[dict[str, str], dict[str, str]]:
    """The SHA-256 of all files that were read, by path, and of those that were written, by name."""
    # Sorted: the engine finishes files in an order that differs from run to run.
    read = dict(sorted(writer.read_hashes.items()))
    inputs = [path for path in others.values() if isinstance(path, Path)]
    for term in writer.engine.plan.recipe.terms:
        inputs += term.source.read_files
    read |= {str(path): sums.of(path) for path in inputs}
    written = {name: hash_file(writer.folder / name) for name in others}
    return read, writer.written_hashes | written


def _made_of(writer: ModelWriter, sums: Sums) -> MadeOf:
    plan = writer.engine.plan
    base = {file.path.name: writer.read_hashes[str(file.path)] for file in plan.base.files}
    return made_of(plan, sums, base)


def _receipt(
    writer: ModelWriter,
    out: Path,
    began: float,
    read: dict[str, str],
    written: dict[str, str],
    notes: tuple[str, ...],
    earlier: Earlier | None,
) -> Receipt:
    plan = writer.engine.plan
    taken = {
        name: one
        for name, one in (earlier.tensors if earlier else {}).items()
        if name in writer.taken_over
    }
    return Receipt(
        folder=out,
        base=plan.base.name,
        adapters=tuple(term.source.name for term in plan.recipe.terms),
        device=writer.engine.device,
        seconds=time.time() - began,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        tensors=tuple(
            taken.get(name)
            or TensorReceipt(name, change.layer, change.weights, *writer.norms(name))
            for name, change in plan.changes.items()
        ),
        untouched=len(plan.base.tensors) - len(plan.changes),
        linked=tuple(sorted(writer.linked)),
        files_read=dict(sorted(read.items())),
        files_written=dict(sorted(written.items())),
        notes=(
            *plan.notes,
            *notes,
            *_broken(writer),
            *_made_anew(writer),
            *plan.recipe.changed_files(read),
        ),
        taken_over=TakenOver(
            earlier.folder,
            tuple(name for name in plan.changes if name in taken),
            tuple(sorted(writer.linked_earlier)),
        )
        if earlier
        else None,
    )


def _made_anew(writer: ModelWriter) -> Iterator[str]:
    """Note files of which an earlier merge's receipt says what is not so any more."""
    for name, path in sorted(writer.made_anew.items()):
        yield (
            f"{shown(name)} is computed anew: {shown(path)} has other bytes than when the earlier "
            "merge was written"
        )


def _broken(writer: ModelWriter) -> Iterator[str]:
    """Note numbers of the base that are none, in what changes."""
    if writer.broken:
        yield (
            f"{writer.broken.total()} numbers of the base are NaN or infinite, and stay so "
            f"({len(writer.broken)} of the tensors that change, such as "
            f"{shown(min(writer.broken))!r}); get the base again if it should be whole"
        )


def _describe(plan: Plan, receipt: Receipt, folder: Path, read: dict[str, str]) -> None:
    from labkit.writing.card import model_card

    sha256 = {
        source.reference: {
            Path(path).name: digest
            for path, digest in read.items()
            if Path(path).parent == source.folder and Path(path).name != "README.md"
        }
        for source in plan.recipe.sources
    }
    recipe = replace(plan.recipe, sha256={name: files for name, files in sha256.items() if files})
    recipe.save(folder / RECIPE_NAME)
    (folder / "README.md").write_text(model_card(plan, receipt), encoding="utf-8")
    (folder / "receipt.json").write_text(
        json.dumps(receipt.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
