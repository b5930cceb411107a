"""Carries out a plan: streams the base through, touches what the plan says, makes one folder.

The folder is built beside its final name, flushed to disk, and renamed once. Until then there is
nothing at the final name; a merge that fails or is interrupted takes away what it had built.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labkit.arithmetic import BLOCK_ELEMENTS
from labkit.atomic_folder import building, check_target, explain, flush_folder, put_in_place
from labkit.errors import LabkitError, shown
from labkit.layout import (
    MERGE_BYTES,
    OutputFile,
    Piece,
    PieceMaker,
    one_thread_each,
    output_files,
    side_files,
)
from labkit.progress import Progress, bar_of
from labkit.receipt import Receipt, TensorReceipt
from labkit.recipe import FILE_NAME as RECIPE_NAME
from labkit.streams import (
    HASH_BYTES,
    Beside,
    copy_range,
    hash_file,
    hash_range,
    linked,
    write_fully,
)

if TYPE_CHECKING:
    from labkit.plan import Plan

MOST_WORKERS = 4
"""Threads that merge. More than this waits for the disk."""
FLUSH_BYTES = 256 << 20
"""Written bytes after which the disk is set to work, so that little is left to flush at the end."""
LARGE_COPY = 16 << 20
"""Bytes from which a run that is only copied goes its own way, beside the merging."""
SPARE_BYTES = 16 << 20
"""Free disk to leave for the small files and the file system's own use."""


def workers() -> int:
    """How many threads merge at once."""
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0))))


def working_memory(plan: Plan) -> int:
    """Bytes of memory that carrying out a plan takes at most, beside Python's and torch's own."""
    # For each element of a block: float64 three times, float32 once, and what looks for ties.
    blocks = BLOCK_ELEMENTS["cpu"] * (3 * 8 + 4 + 16)
    pieces = MERGE_BYTES["cpu"] * 3  # the bytes read, and at most twice as many written
    factors = max(
        (
            sum(contribution.module.memory for contribution in change.contributions)
            for change in plan.changes.values()
        ),
        default=0,
    )  # fmt: skip
    # Factors of as many tensors as pieces under way, and those that are just being read.
    return workers() * (blocks + pieces) + (2 * workers() + 4) * factors + 2 * HASH_BYTES


def choose_device(device: str) -> torch.device:
    """Turn "cpu", "cuda" or "auto" into a device.

    Raises:
        LabkitError: an unknown name, or no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise LabkitError(f"the device {shown(device)!r} is unknown; expected cpu, cuda or auto")
    if device == "cuda" and not torch.cuda.is_available():
        raise LabkitError("there is no CUDA device here; use --device cpu, the bytes are the same")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def write(
    plan: Plan,
    out: Path,
    *,
    device: str,
    link: bool,
    overwrite: bool,
    hashes: bool,
    progress: Progress,
) -> Receipt:
    """Carry out a plan; see `Plan.write`."""
    chosen = choose_device(device)
    out = out.expanduser().absolute()
    _check_target(plan, out, overwrite)
    files = output_files(plan, chosen.type)
    others = side_files(plan)
    began = time.time()
    try:
        with building(out) as folder:
            merge = _Merge(plan, folder, chosen, link, hashes, progress)
            with one_thread_each():
                merge.run(files)
            for name, content in others.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, folder / name)
                else:
                    (folder / name).write_bytes(content)
            plan.base.require_unchanged()
            for term in plan.recipe.terms:
                term.adapter.require_unchanged()
            receipt = merge.receipt(out, began, others)
            _describe(plan, receipt, folder, merge.read_hashes)
            flush_folder(folder)
            put_in_place(folder, out, overwrite)
    except OSError as error:
        raise LabkitError(explain(error, out)) from error
    return receipt


def _check_target(plan: Plan, out: Path, overwrite: bool) -> None:
    parent = out.parent
    base = plan.base.folder.resolve()
    resolved = out.resolve()
    if resolved == base or base in resolved.parents or resolved in base.parents:
        raise LabkitError(
            f"the output {shown(out)} and the base {shown(base)} lie in each other; the base is "
            "never written to: choose another folder"
        )
    for term in plan.recipe.terms:
        adapter = term.adapter.folder.resolve()
        if resolved == adapter or resolved in adapter.parents:
            raise LabkitError(
                f"the output {shown(out)} would replace the adapter {shown(adapter)}; choose "
                "another folder"
            )
    check_target(out, overwrite)
    needed = plan.forecast().bytes_to_write + SPARE_BYTES
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise LabkitError(
            f"the merge writes {needed / 1e9:.2f} GB, and {shown(parent)} has {free / 1e9:.2f} GB "
            "free; make room, or choose a folder on another disk"
        )


class _Target:
    """One output file under way: its pieces are done in any order, and hashed in theirs."""

    def __init__(self, file: OutputFile, source: int, target: int) -> None:
        self.file = file
        self.source, self.target = source, target
        self.waiting = deque(enumerate(file.pieces))
        self.done: set[int] = set()
        self.unflushed = 0
        self.digests: list[Any] = [
            # Read in order only where each of its bytes is read once; else it is read again.
            hashlib.sha256(file.source.header_bytes) if file.sequential else None,
            hashlib.sha256(file.header),
        ]

    def finish(self, number: int) -> Iterator[Piece]:
        """Note that a piece is done; give back those that now are done with all before them."""
        self.done.add(number)
        while self.waiting and self.waiting[0][0] in self.done:
            number, piece = self.waiting.popleft()
            self.done.remove(number)
            yield piece


class _Merge:
    """One run: reads, merges and writes in several threads, and keeps account."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        device: torch.device,
        link: bool,
        hashes: bool,
        progress: Progress,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.link = link
        self.device = device
        self.maker = PieceMaker(plan, device)
        self.squares: dict[str, list[tuple[float, float]]] = {}
        self.asked: dict[str, float] = {}
        self.linked: list[str] = []
        self.read_hashes: dict[str, str] = {}
        self.written_hashes: dict[str, str] = {}
        self.hashes = hashes
        self.progress = progress
        self.stopped = threading.Event()
        self._descriptors: list[int] = []

    def run(self, files: list[OutputFile]) -> None:
        # Two jobs that are done beside the merging, each in order: hashing, and flushing to disk.
        hashers = [Beside(self.stopped), Beside(self.stopped)] if self.hashes else []
        flusher = Beside(self.stopped)
        pool = ThreadPoolExecutor(workers(), thread_name_prefix="labkit")
        try:
            with bar_of(sum(file.size for file in files), self.progress) as bar:
                targets = [self._begin(file, hashers, flusher, bar) for file in files]
                present = [target for target in targets if target is not None]
                for target, number, piece in self._pieces(present, pool):
                    bar.update(piece.nbytes)
                    for ordered in target.finish(number):
                        self._hash_piece(hashers, target, ordered)
                    self._flush(target, piece.nbytes, flusher)
                    if not target.waiting:
                        self._finish(target, hashers, flusher)
                bar.set_description("flush")
                for beside in (*hashers, flusher):
                    beside.finish()
        except BaseException:
            self.stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            for beside in (*hashers, flusher):
                beside.close()
            for descriptor in self._descriptors:
                os.close(descriptor)

    def _begin(
        self, file: OutputFile, hashers: list[Beside], flusher: Beside, bar: Any
    ) -> _Target | None:
        """Make an output file with its header; None if that was all there is to do."""
        source_path, target_path = file.source.path, self.folder / file.name
        if file.untouched and self.link and linked(source_path, target_path):
            self.linked.append(file.name)
            bar.update(file.size)
            if hashers:
                hashers[0].put(lambda: self._hash_untouched(file))
            return None
        source = self._open(source_path, os.O_RDONLY)
        begun = _Target(file, source, self._open(target_path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        write_fully(begun.target, file.header, 0)
        bar.update(len(file.header))
        if not file.pieces:
            self._finish(begun, hashers, flusher)
        return begun

    def _flush(self, target: _Target, nbytes: int, flusher: Beside) -> None:
        target.unflushed += nbytes
        if target.unflushed >= FLUSH_BYTES:
            flusher.put(lambda: os.fdatasync(target.target))
            target.unflushed = 0

    def _finish(self, target: _Target, hashers: list[Beside], flusher: Beside) -> None:
        file, digests = target.file, target.digests
        flusher.put(lambda: os.fsync(target.target))
        if hashers and file.untouched:
            hashers[0].put(lambda: self._hash_untouched(file))
        elif hashers:
            hashers[0].put(lambda: self._note_source(file.source.path, digests[0]))
            hashers[1].put(lambda: self.written_hashes.update({file.name: digests[1].hexdigest()}))

    def _open(self, path: Path, flags: int) -> int:
        # Closed at the end of the run: hashing and flushing need the files after the merging.
        descriptor = os.open(path, flags, 0o644)
        self._descriptors.append(descriptor)
        return descriptor

    def _hash_piece(self, hashers: list[Beside], target: _Target, piece: Piece) -> None:
        if not hashers or target.file.untouched:
            return
        read, written = target.digests
        if read is not None:
            hashers[0].put(
                lambda: hash_range(
                    read, target.source, piece.source, piece.source_bytes, self.stopped
                )
            )
        hashers[1].put(
            lambda: hash_range(written, target.target, piece.target, piece.nbytes, self.stopped)
        )

    def _note_source(self, path: Path, digest: Any) -> None:
        self.read_hashes[str(path)] = (
            digest.hexdigest() if digest else hash_file(path, self.stopped)
        )

    def _hash_untouched(self, file: OutputFile) -> None:
        digest = hash_file(file.source.path, self.stopped)
        self.read_hashes[str(file.source.path)] = digest
        self.written_hashes[file.name] = digest

    def _pieces(
        self, targets: list[_Target], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[_Target, int, Piece]]:
        """Carry out all pieces, a few at once; give back each when it is done.

        Long runs that are only copied and the rest are two queues, so that one processor copies
        while the others merge. Only one run is copied at a time: the kernel lets one thread write
        to a file, and a second one would spin.
        """
        everything = [
            (target, number, piece)
            for target in targets
            for number, piece in enumerate(target.file.pieces)
        ]
        copies = deque(one for one in everything if _only_copied(one[2]))
        others = deque(one for one in everything if not _only_copied(one[2]))
        running: dict[Future[tuple[float, float]], tuple[_Target, int, Piece]] = {}
        copying: Future[tuple[float, float]] | None = None
        update = None
        current: str | None = None
        while copies or others or running:
            if copies and copying not in running:
                target, number, piece = copies.popleft()
                copying = pool.submit(copy_range, target.source, target.target, piece, target.file)
                running[copying] = target, number, piece
            while others and len(running) <= 2 * workers():
                target, number, piece = others.popleft()
                if piece.tensor is None:
                    job = pool.submit(copy_range, target.source, target.target, piece, target.file)
                else:
                    if piece.tensor.name != current:
                        current = piece.tensor.name
                        update = self.maker.update(piece.tensor)
                        if update is not None:
                            self.asked[current] = update.norm()
                    job = pool.submit(self._merge_piece, target, piece, update)
                running[job] = target, number, piece
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                target, number, piece = running.pop(future)
                if piece.tensor and piece.tensor.name in self.plan.changes:
                    self.squares.setdefault(piece.tensor.name, []).append(future.result())
                else:
                    future.result()
                yield target, number, piece

    def _merge_piece(self, target: _Target, piece: Piece, update: Any) -> tuple[float, float]:
        if self.stopped.is_set():
            return 0.0, 0.0
        merged, squared, missing = self.maker.make(target.file, piece, target.source, update)
        write_fully(target.target, merged, piece.target)
        return squared, missing

    def receipt(self, out: Path, began: float, others: dict[str, bytes | Path]) -> Receipt:
        if self.hashes:
            for path in others.values():
                if isinstance(path, Path):
                    self.read_hashes[str(path)] = hash_file(path)
            for term in self.plan.recipe.terms:
                for path in (term.adapter.file.path, term.adapter.folder / "adapter_config.json"):
                    self.read_hashes[str(path)] = hash_file(path)
            for name in others:
                self.written_hashes[name] = hash_file(self.folder / name)
        return Receipt(
            folder=out,
            base=self.plan.base.name,
            adapters=tuple(term.adapter.name for term in self.plan.recipe.terms),
            device=str(self.device),
            seconds=time.time() - began,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            tensors=tuple(
                TensorReceipt(
                    name,
                    change.layer,
                    change.weights,
                    self.asked[name],
                    # Summed exactly, since the pieces come in another order every time.
                    *(math.sqrt(math.fsum(sums)) for sums in zip(*self.squares[name], strict=True)),
                )
                for name, change in self.plan.changes.items()
            ),
            untouched=len(self.plan.base.tensors) - len(self.plan.changes),
            linked=tuple(self.linked),
            files_read=dict(sorted(self.read_hashes.items())),
            files_written=dict(sorted(self.written_hashes.items())),
            notes=(*self.plan.notes, *self.plan.recipe.changed_files(self.read_hashes)),
        )


def _only_copied(piece: Piece) -> bool:
    return piece.tensor is None and piece.nbytes >= LARGE_COPY


def _describe(plan: Plan, receipt: Receipt, folder: Path, read: dict[str, str]) -> None:
    from labkit.card import model_card
    from labkit.figures import gradient_picture, picture_bytes

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
    first = plan.recipe.terms[0]
    picture = gradient_picture(first.weights, plan.base.name, first.adapter.name)
    (folder / "gradient.png").write_bytes(picture_bytes(picture))
    (folder / "README.md").write_text(model_card(plan, receipt), encoding="utf-8")
    (folder / "receipt.json").write_text(
        json.dumps(receipt.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
