"""One run of a merge: reads, merges, writes, hashes and flushes, in several threads."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labkit.delta import Delta
from labkit.layout import OutputFile, Piece, PieceMaker
from labkit.progress import Progress, bar_of
from labkit.receipt import Receipt, TensorReceipt
from labkit.streams import Beside, copy_range, hash_file, hash_range, linked, write_fully
from labkit.tensor_file import StoredTensor

if TYPE_CHECKING:
    from labkit.plan import Plan

MOST_WORKERS = 4
"""Threads that merge. More than this waits for the disk."""
FLUSH_BYTES = 256 << 20
"""Written bytes after which the disk is set to work, so that little is left to flush at the end."""
LARGE_COPY = 16 << 20
"""Bytes from which a run that is only copied goes its own way, beside the merging."""


def workers() -> int:
    """How many threads merge at once."""
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0))))


class OpenOutput:
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
            first, piece = self.waiting.popleft()
            self.done.remove(first)
            yield piece


class MergeRun:
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
        self._current: str | None = None
        self._added: Delta | None = None

    def run(self, files: list[OutputFile]) -> None:
        """Make the output files, flushed to disk; what goes wrong ends every thread, and raises."""
        # Two jobs that are done beside the merging, each in order: hashing, and flushing to disk.
        hashers = [Beside(self.stopped), Beside(self.stopped)] if self.hashes else []
        flusher = Beside(self.stopped)
        pool = ThreadPoolExecutor(workers(), thread_name_prefix="labkit")
        try:
            with bar_of(sum(file.size for file in files), self.progress) as bar:
                begun = [self._begin(file, hashers, flusher, bar) for file in files]
                outputs = [output for output in begun if output is not None]
                for output, number, piece in self._pieces(outputs, pool):
                    bar.update(piece.nbytes)
                    for ordered in output.finish(number):
                        self._hash_piece(hashers, output, ordered)
                    self._flush(output, piece.nbytes, flusher)
                    if not output.waiting:
                        self._finish(output, hashers, flusher)
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
    ) -> OpenOutput | None:
        """Make an output file with its header; None if that was all there is to do."""
        source_path, target_path = file.source.path, self.folder / file.name
        if file.untouched and self.link and linked(source_path, target_path):
            self.linked.append(file.name)
            bar.update(file.size)
            if hashers:
                hashers[0].put(lambda: self._hash_untouched(file))
            return None
        source = self._open(source_path, os.O_RDONLY)
        target = self._open(target_path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        output = OpenOutput(file, source, target)
        write_fully(output.target, file.header, 0)
        bar.update(len(file.header))
        if not file.pieces:
            self._finish(output, hashers, flusher)
        return output

    def _flush(self, output: OpenOutput, nbytes: int, flusher: Beside) -> None:
        output.unflushed += nbytes
        if output.unflushed >= FLUSH_BYTES:
            flusher.put(lambda: os.fdatasync(output.target))
            output.unflushed = 0

    def _finish(self, output: OpenOutput, hashers: list[Beside], flusher: Beside) -> None:
        file, digests = output.file, output.digests
        flusher.put(lambda: os.fsync(output.target))
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

    def _hash_piece(self, hashers: list[Beside], output: OpenOutput, piece: Piece) -> None:
        if not hashers or output.file.untouched:
            return
        read, written = output.digests
        if read is not None:
            hashers[0].put(
                lambda: hash_range(
                    read, output.source, piece.source, piece.source_bytes, self.stopped
                )
            )
        hashers[1].put(
            lambda: hash_range(written, output.target, piece.target, piece.nbytes, self.stopped)
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
        self, outputs: list[OpenOutput], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[OpenOutput, int, Piece]]:
        """Carry out all pieces, a few at once; give back each when it is done.

        Long runs that are only copied and the rest are two queues, so that one processor copies
        while the others merge. Only one run is copied at a time: the kernel lets one thread write
        to a file, and a second one would spin.
        """
        everything = [
            (output, number, piece)
            for output in outputs
            for number, piece in enumerate(output.file.pieces)
        ]
        copies = deque(one for one in everything if _only_copied(one[2]))
        others = deque(one for one in everything if not _only_copied(one[2]))
        running: dict[Future[tuple[float, float]], tuple[OpenOutput, int, Piece]] = {}
        copying: Future[tuple[float, float]] | None = None

        def start(one: tuple[OpenOutput, int, Piece]) -> Future[tuple[float, float]]:
            output, _, piece = one
            if piece.tensor is None:
                job = pool.submit(copy_range, output.source, output.target, piece, output.file)
            else:
                job = pool.submit(self._merge_piece, output, piece, self._update(piece.tensor))
            running[job] = one
            return job

        while copies or others or running:
            if copies and copying not in running:
                copying = start(copies.popleft())
            while others and len(running) <= 2 * workers():
                start(others.popleft())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                output, number, piece = running.pop(future)
                squares = future.result()
                if piece.tensor and piece.tensor.name in self.plan.changes:
                    self.squares.setdefault(piece.tensor.name, []).append(squares)
                yield output, number, piece

    def _update(self, tensor: StoredTensor) -> Delta | None:
        """What is added to a tensor, read once for all its pieces, which come one after another."""
        if tensor.name != self._current:
            self._current, self._added = tensor.name, self.maker.update(tensor)
            if self._added is not None:
                self.asked[tensor.name] = self._added.norm()
        return self._added

    def _merge_piece(
        self, output: OpenOutput, piece: Piece, update: Delta | None
    ) -> tuple[float, float]:
        if self.stopped.is_set():
            return 0.0, 0.0
        merged, squared, missing = self.maker.make(output.file, piece, output.source, update)
        write_fully(output.target, merged, piece.target)
        return squared, missing

    def receipt(self, out: Path, began: float, others: dict[str, bytes | Path]) -> Receipt:
        """What the run did, and the hashes of the small files that were read and written too."""
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
