"""The pieces of a merged model, read, merged and stored by several threads and processes.

The thread that runs it hands out jobs and takes in their results; all else is done by pools. The
pieces of a file are begun in their order and done in any; a hash takes them in their order, out of
the memory they were merged in. Two files are under way at once: the one with the most merging in
it, which the processor is busy with, and the one with the least, which keeps the disk busy.

`write` stores the pieces in new files, and `verify` compares them with what is there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic

from labkit.deltas.delta import Delta
from labkit.files.direct_io import hash_range, page_memory, place, room_for
from labkit.files.tensor_file import StoredTensor
from labkit.machine import one_thread_each, workers
from labkit.writing import merge_process
from labkit.writing.layout import OutputFile, Piece
from labkit.writing.merge_process import MergeProcesses
from labkit.writing.open_output import Hash, Held, OpenOutput, Target
from labkit.writing.piece_maker import PieceMaker

if TYPE_CHECKING:
    from labkit.merging.planning import Plan

MERGED_APART = 256 << 20
"""Bytes to merge from which on processes of their own are worth starting."""


def pieces_under_way(device: str) -> int:
    """How many pieces are in memory at most: enough that neither disk nor processors ever wait.

    A GPU's are larger.
    """
    return (4 if device == "cpu" else 2) * workers()


@dataclass
class Lane(Generic[Target]):
    """Pieces that are begun one after the other: the pieces, and how many are in memory."""

    pieces: Iterator[tuple[OpenOutput[Target], int]]
    held: int = 0
    ended: bool = False
    tensor: str | None = None
    update: Delta | None = None


class Pipeline(Generic[Target]):
    """One run over all pieces of a merged model.

    Args:
        plan: what is merged.
        device: "cpu" or "cuda".
        bar: what is told of the bytes that are done, like a bar of tqdm.
    """

    def __init__(self, plan: Plan, device: str, bar: Any) -> None:
        self.plan = plan
        self.device = device
        self.bar = bar
        self.stopped = threading.Event()
        self._files: deque[OutputFile] = deque()
        self._open: list[OpenOutput[Target]] = []
        self._free: list[memoryview] = []
        self._processes: MergeProcesses | None = None
        self._under_way = 0
        self._done: SimpleQueue[tuple[Future[Any], Callable[[Any], None]]] = SimpleQueue()

    # What a merge and a comparison do in their own ways.

    def begin(self, file: OutputFile) -> OpenOutput[Target] | None:
        """Open an output file, and see to its header; None if that was all there is to do."""
        raise NotImplementedError

    def wanted(self, output: OpenOutput[Target], number: int) -> bool:
        """Whether a piece is to be made at all."""
        return True

    def store(self, output: OpenOutput[Target], number: int, data: memoryview) -> None:
        """Do what is to be done with a piece that is made. Called in several threads."""
        raise NotImplementedError

    def copy(self, output: OpenOutput[Target], number: int) -> None:
        """Have the kernel copy an untouched piece, of a file that says so."""
        raise NotImplementedError

    def updated(self, tensor: StoredTensor, update: Delta) -> None:
        """Note what is added to a tensor that comes next."""

    def merged(self, tensor: StoredTensor, squares: tuple[float, float]) -> None:
        """Note the sums of squares of a piece. Called in several threads."""

    def end(self, output: OpenOutput[Target]) -> None:
        """Close a file of which all is done."""
        raise NotImplementedError

    # What they have in common.

    def run(self, files: list[OutputFile]) -> None:
        """Go over the output files; what goes wrong ends every thread and process, and raises."""
        self._files.extend(sorted(files, key=lambda file: file.merged_bytes))
        lanes = [Lane(self._pieces(self._files.pop)), Lane(self._pieces(self._files.popleft))]
        # Those that calculate, one for each processor, and those that wait for the disk, which
        # reads and writes at once.
        self._calculating = ThreadPoolExecutor(workers(), thread_name_prefix="labkit")
        self._moving = ThreadPoolExecutor(2 * workers(), thread_name_prefix="labkit-disk")
        try:
            self._prepare(files)
            with one_thread_each():
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
            if self._processes is not None:
                self._processes.close()

    def _prepare(self, files: list[OutputFile]) -> None:
        """Make the buffers, and start the processes that merge if there is much to merge."""
        pieces = [piece for file in files for piece in file.pieces]
        size = room_for(max((max(p.source_bytes, p.nbytes) for p in pieces), default=0))
        total = 2 * pieces_under_way(self.device) * size  # a piece that is merged takes two
        merged = sum(file.merged_bytes for file in files)
        if self.device == "cpu" and merged >= MERGED_APART and merge_process.available():
            self._processes = MergeProcesses(workers(), size)
        view = page_memory(total)
        self._free = [view[start : start + size] for start in range(0, len(view), size)]
        self._maker = PieceMaker(self.plan, self.device, self._processes)

    def calculate(self, job: Callable[..., Any], *args: Any, then: Callable[[Any], None]) -> None:
        """Have the processor do a job, and then, in the first thread, what its result is for."""
        self._submit(self._calculating, job, *args, then=then)

    def move(self, job: Callable[..., Any], *args: Any, then: Callable[[Any], None]) -> None:
        """Likewise a job that waits for the disk."""
        self._submit(self._moving, job, *args, then=then)

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        job: Callable[..., Any],
        *args: Any,
        then: Callable[[Any], None],
    ) -> None:
        self._under_way += 1
        future = pool.submit(job, *args)
        future.add_done_callback(lambda done: self._done.put((done, then)))

    def _start(self, lanes: list[Lane[Target]]) -> None:
        busy = [lane for lane in lanes if lane.held or not lane.ended]
        for lane in busy:
            while not lane.ended and lane.held < pieces_under_way(self.device) // len(busy):
                following = next(lane.pieces, None)
                if following is None:
                    lane.ended = True
                    break
                self._start_piece(lane, *following)

    def _pieces(self, take: Callable[[], OutputFile]) -> Iterator[tuple[OpenOutput[Target], int]]:
        """Open one file after the other, and give its pieces."""
        while self._files:
            output = self.begin(take())
            if output is None:
                continue
            self._open.append(output)
            if not output.file.pieces:
                self.end(output)
            for number in range(len(output.file.pieces)):
                if self.wanted(output, number):
                    yield output, number

    def _start_piece(self, lane: Lane[Target], output: OpenOutput[Target], number: int) -> None:
        """Read a piece, merge it if it is merged, store it and hash it."""
        piece = output.file.pieces[number]
        lane.held += 1

        def stored(_: None) -> None:
            output.held[number].stored = True
            self.bar.update(piece.nbytes)
            self._advance(lane, output)

        def made(held: Held) -> None:
            output.held[number] = held
            self.move(self.store, output, number, held.written, then=stored)
            self._advance(lane, output)

        if piece.tensor is None and output.copies:
            output.held[number] = Held([], None, None)
            self.move(self.copy, output, number, then=stored)
            return
        buffer = self._free.pop()
        reading = buffer, piece.source, piece.source_bytes
        if piece.tensor is None:
            self.move(
                output.source.read, *reading, then=lambda data: made(Held([buffer], data, data))
            )
            return
        update = self._update(lane, piece.tensor)
        target = self._free.pop()

        def read(source: memoryview) -> None:
            held = Held([buffer, target], source, place(target, piece.target, piece.nbytes))
            self.calculate(self._merge, piece, held, update, then=lambda _: made(held))

        self.move(output.source.read, *reading, then=read)

    def _advance(self, lane: Lane[Target], output: OpenOutput[Target]) -> None:
        """Hash what can be hashed, and let go of what is done with."""
        for held in output.release():
            lane.held -= 1
            self._free += held.buffers
        for chain, number, data in output.due():

            def hashed(_: None, chain: Hash = chain) -> None:
                output.hashed(chain)
                self._advance(lane, output)

            job = self._hash, output, chain, number, data
            self.calculate(*job, then=hashed)
        if output.released == len(output.file.pieces):
            self.end(output)

    def closed(self, output: OpenOutput[Target]) -> None:
        """Close a file."""
        self._open.remove(output)
        output.close()

    def _update(self, lane: Lane[Target], tensor: StoredTensor) -> Delta | None:
        """What is added to a tensor, read once for all its pieces, which come one after another."""
        if tensor.name != lane.tensor:
            lane.tensor, lane.update = tensor.name, self._maker.update(tensor)
            if lane.update is not None:
                self.updated(tensor, lane.update)
        return lane.update

    # What the pools do.

    def _merge(self, piece: Piece, held: Held, update: Delta | None) -> None:
        assert piece.tensor and held.read is not None and held.written is not None  # noqa: S101, PT018
        squares = self._maker.make(piece, held.read, held.written, update)
        if update is not None:
            self.merged(piece.tensor, squares)

    def _hash(
        self, output: OpenOutput[Target], chain: Hash, number: int, data: memoryview | None
    ) -> None:
        if data is not None:
            chain.digest.update(data)
            return
        # Copied by the kernel, so not in memory; the base has the same bytes.
        piece = output.file.pieces[number]
        hash_range(chain.digest, output.source.plain, piece.source, piece.nbytes, self.stopped)
