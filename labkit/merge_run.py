"""One run of a merge: reads, merges, writes, hashes and flushes, in several threads.

The thread that runs it hands out jobs and takes in their results; all else is done by a pool. The
pieces of a file are begun in their order and done in any; a hash takes them in their order, out of
the memory they were merged in. Two files are under way at once: the one with the most merging in
it, which the processor is busy with, and the one with the least, which keeps the disk busy.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from labkit.delta import Delta
from labkit.layout import PIECE_BYTES, OutputFile, Piece, PieceMaker
from labkit.open_output import Hash, Held, OpenOutput
from labkit.progress import Progress, bar_of
from labkit.receipt import Receipt, TensorReceipt
from labkit.streams import (
    PAGE,
    hash_file,
    hash_range,
    linked,
    page_buffer,
    place,
)
from labkit.tensor_file import StoredTensor

if TYPE_CHECKING:
    from labkit.plan import Plan

MOST_WORKERS = 4
"""Processors that a merge uses. More than this wait for the disk."""


def workers() -> int:
    """How many processors a merge uses."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, there or 1))


def pieces_under_way() -> int:
    """How many pieces are in memory at most: two for each processor, one of them on its way."""
    return 2 * workers()


@dataclass
class Lane:
    """Pieces that are begun one after the other: the pieces, and how many are in memory."""

    pieces: Iterator[tuple[OpenOutput, int]]
    held: int = 0
    ended: bool = False
    tensor: str | None = None
    update: Delta | None = None


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
        self._files: deque[OutputFile] = deque()
        self._open: list[OpenOutput] = []
        self._free: list[memoryview] = []
        self._under_way = 0
        self._done: SimpleQueue[tuple[Future[Any], Callable[[Any], None]]] = SimpleQueue()
        self._bar: Any = None

    def run(self, files: list[OutputFile]) -> None:
        """Make the output files, flushed to disk; what goes wrong ends every thread, and raises."""
        self._files.extend(sorted(files, key=lambda file: file.merged_bytes))
        lanes = [Lane(self._pieces(self._files.pop)), Lane(self._pieces(self._files.popleft))]
        # Those that calculate, one for each processor, and those that wait for the disk: more that
        # calculate would wait for each other, at each of their many short steps in Python.
        self._calculating = ThreadPoolExecutor(workers(), thread_name_prefix="labkit")
        self._moving = ThreadPoolExecutor(workers(), thread_name_prefix="labkit-disk")
        try:
            with bar_of(sum(file.size for file in files), self.progress) as self._bar:
                self._start(lanes)
                while self._under_way:
                    future, then = self._done.get()
                    self._under_way -= 1
                    then(future.result())
                    self._start(lanes)
        except BaseException:
            self.stopped.set()
            raise
        finally:
            for pool in (self._calculating, self._moving):
                pool.shutdown(cancel_futures=True)
            for output in self._open:
                output.close()

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        job: Callable[..., Any],
        *args: Any,
        then: Callable[[Any], None],
    ) -> None:
        """Have a job done, and then, in the thread that runs all this, what its result is for."""
        self._under_way += 1
        future = pool.submit(job, *args)
        future.add_done_callback(lambda done: self._done.put((done, then)))

    def _start(self, lanes: list[Lane]) -> None:
        busy = [lane for lane in lanes if lane.held or not lane.ended]
        for lane in busy:
            while not lane.ended and lane.held < pieces_under_way() // len(busy):
                following = next(lane.pieces, None)
                if following is None:
                    lane.ended = True
                    break
                self._start_piece(lane, *following)

    def _pieces(self, take: Callable[[], OutputFile]) -> Iterator[tuple[OpenOutput, int]]:
        """Open one file after the other, and give its pieces."""
        while self._files:
            output = self._begin(take())
            if output is None:
                continue
            for number in range(len(output.file.pieces)):
                yield output, number

    def _begin(self, file: OutputFile) -> OpenOutput | None:
        """Make an output file with its header; None if that was all there is to do."""
        source_path, target_path = file.source.path, self.folder / file.name
        if file.untouched and self.link and linked(source_path, target_path):
            self.linked.append(file.name)
            self._bar.update(file.size)
            if self.hashes:
                self._submit(
                    self._calculating,
                    hash_file,
                    source_path,
                    self.stopped,
                    then=lambda digest: self._note(file, digest, digest),
                )
            return None
        output = OpenOutput(file, target_path, self.hashes)
        self._open.append(output)
        output.target.write(file.header, 0)
        self._bar.update(len(file.header))
        if not file.pieces:
            self._finish(output)
        return output

    def _start_piece(self, lane: Lane, output: OpenOutput, number: int) -> None:
        """Read a piece, merge it if it is merged, write it and hash it."""
        piece = output.file.pieces[number]
        lane.held += 1

        def stored(_: None) -> None:
            output.held[number].stored = True
            self._bar.update(piece.nbytes)
            self._advance(lane, output)

        def made(held: Held) -> None:
            output.held[number] = held
            self._submit(self._moving, output.target.write, held.written, piece.target, then=stored)
            self._advance(lane, output)

        if piece.tensor is None and (output.target.shares or not output.target.direct):
            output.held[number] = Held([], None, None)
            copied = piece.source, piece.nbytes, piece.target
            self._submit(self._moving, output.target.copy, output.source, *copied, then=stored)
            return
        buffer = self._buffer(piece.source_bytes)
        reading = buffer, piece.source, piece.source_bytes
        if piece.tensor is None:
            self._submit(
                self._moving,
                output.source.read,
                *reading,
                then=lambda data: made(Held([buffer], data, data)),
            )
            return
        update = self._update(lane, piece.tensor)
        target = self._buffer(piece.nbytes)

        def read(source: memoryview) -> None:
            held = Held([buffer, target], source, place(target, piece.target, piece.nbytes))
            self._submit(
                self._calculating, self._merge, piece, held, update, then=lambda _: made(held)
            )

        self._submit(self._moving, output.source.read, *reading, then=read)

    def _advance(self, lane: Lane, output: OpenOutput) -> None:
        """Hash what can be hashed, and let go of what is done with."""
        for held in output.release():
            lane.held -= 1
            self._free += held.buffers
        for chain, number, data in output.due():

            def hashed(_: None, chain: Hash = chain) -> None:
                output.hashed(chain)
                self._advance(lane, output)

            job = self._hash, output, chain, number, data
            self._submit(self._calculating, *job, then=hashed)
        if output.released == len(output.file.pieces):
            self._finish(output)

    def _finish(self, output: OpenOutput) -> None:
        def closed(digests: tuple[str, str] | None) -> None:
            self._open.remove(output)
            output.close()
            if digests:
                self._note(output.file, *digests)

        self._submit(self._moving, self._flush, output, then=closed)

    def _note(self, file: OutputFile, read: str, written: str) -> None:
        self.read_hashes[str(file.source.path)] = read
        self.written_hashes[file.name] = written

    def _update(self, lane: Lane, tensor: StoredTensor) -> Delta | None:
        """What is added to a tensor, read once for all its pieces, which come one after another."""
        if tensor.name != lane.tensor:
            lane.tensor, lane.update = tensor.name, self.maker.update(tensor)
            if lane.update is not None:
                self.asked[tensor.name] = lane.update.norm()
                self.squares[tensor.name] = []
        return lane.update

    def _buffer(self, size: int) -> memoryview:
        """Memory for a piece: that of one that is done, if any, since new memory costs time."""
        for number, buffer in enumerate(self._free):
            if len(buffer) >= size + 2 * PAGE:
                return self._free.pop(number)
        return page_buffer(max(size, PIECE_BYTES))

    # What the pools do.

    def _merge(self, piece: Piece, held: Held, update: Delta | None) -> None:
        assert piece.tensor and held.read is not None and held.written is not None  # noqa: S101, PT018
        squares = self.maker.make(piece, held.read, held.written, update)
        if update is not None:
            self.squares[piece.tensor.name].append(squares)

    def _hash(self, output: OpenOutput, chain: Hash, number: int, data: memoryview | None) -> None:
        if data is not None:
            chain.digest.update(data)
            return
        # Copied by the kernel, so not in memory; the base has the same bytes.
        piece = output.file.pieces[number]
        hash_range(chain.digest, output.source.plain, piece.source, piece.nbytes, self.stopped)

    def _flush(self, output: OpenOutput) -> tuple[str, str] | None:
        """Flush a file to disk; give the digests of the base's file and of this one."""
        output.target.flush()
        if output.written is None:
            return None
        written = output.written.digest.hexdigest()
        if output.read is None:
            return hash_file(output.file.source.path, self.stopped), written
        return output.read.digest.hexdigest(), written

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
