"""The engine behind `write` and `verify`: streams a base through memory, piece by piece.

An output file is cut into pieces of some megabytes (see `layout`). A thread of a pool reads a piece
from the base's file, merges it where the plan changes it, and stores it; several pieces are under
way at once, so that some wait for the disk while others are calculated. Each file has a thread of
its own, which hands its pieces to the pool and takes them back in their order, for what depends on
the order: the hashes. Pieces lie in slots of memory, and there are only so many slots.

Two files are under way at once: the one with the most merging in it, which keeps the processors
busy, and the one with the least, which keeps the disk busy.

`Engine` is this stream. `ModelWriter` writes its pieces into new files; `verification` compares
them with files that are there.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.deltas.delta import BaseDependent, Delta
from labkit.errors import LabkitError, shown
from labkit.files.direct_io import (
    SourceFile,
    TargetFile,
    aligned_part,
    hash_file,
    hash_range,
    linked,
    page_memory,
    room_for,
)
from labkit.files.floats import ARRAYS, LARGEST, wide
from labkit.files.tensor_file import FLOATS
from labkit.machine import (
    calculate_by_the_standard,
    one_thread_each,
    require_address_space,
    workers,
)
from labkit.merging.rounding import BlockMerger
from labkit.writing.layout import EarlierFile, OutputFile, Piece

if TYPE_CHECKING:
    from labkit.merging.planning import Plan
    from labkit.merging.rounding_on_device import DeviceMerger

FILES_AT_ONCE = 2
THREAD_BYTES = 40 << 20
"""Address space of a thread: its stack, and what C's and OpenBLAS's memory set apart for it."""


def pieces_at_once(device: str) -> int:
    """How many pieces are in memory at most: enough that neither disk nor processors ever wait.

    A GPU's pieces are larger, and fewer.
    """
    return (4 if device == "cpu" else 2) * workers()


@contextmanager
def memory_of_device() -> Iterator[None]:
    """Say it in words when a GPU's memory is full."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not be imported here
            raise
        raise LabkitError(
            "the GPU's memory is full: free some (another program's, or that of live models by "
            "lk.free()), or merge with the device cpu, which makes the same bytes"
        ) from error


def slot_bytes(files: list[OutputFile]) -> int:
    """How large a slot must be for any piece of these files: two page buffers of the same size."""
    pieces = [piece for file in files for piece in file.pieces]
    return 2 * room_for(max((max(p.source_bytes, p.nbytes) for p in pieces), default=0))


@dataclass(frozen=True)
class Slot:
    """Memory for one piece.

    Attributes:
        read: a page buffer for its bytes in the base's file.
        merged: a page buffer for its bytes in the output file, where they are not the same.
    """

    read: memoryview
    merged: memoryview


@dataclass(frozen=True)
class MadePiece:
    """A piece whose bytes are known.

    Attributes:
        piece: which one.
        slot: the memory that it lies in.
        read: its bytes in the base's file; None if the kernel copied them.
        written: likewise its bytes in the output file.
        update: what was added to its tensor; None if nothing was, or it was taken over.
        squares: the sums of squares `‖W' - W‖²`, `‖(W' - W) - wΔW‖²` and, where it is known by
            rows alone, `‖wΔW‖²` over its rows.
        broken: how many of the base's numbers in it are NaN or infinite.
    """

    piece: Piece
    slot: Slot
    read: memoryview | None
    written: memoryview | None
    update: Delta | None = None
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    broken: int = 0


class StoppedError(Exception):
    """Ends the thread of a file when the run as a whole has failed."""


class Engine:
    """Streams the files of a merged model through memory.

    Args:
        plan: what is merged.
        device: "cpu" or "cuda".
        bar: what is told of the bytes that are done, like a bar of tqdm.

    Attributes:
        stopped: set when the run has failed or was cancelled; long work then breaks off.
    """

    def __init__(self, plan: Plan, device: str, bar: Any) -> None:
        self.plan = plan
        self.device = device
        self.bar = bar
        self.stopped = threading.Event()
        self._files_under_way = FILES_AT_ONCE
        # Bytes that are done; or the thread of a file that has come to its end.
        self._news: SimpleQueue[int | Future[None]] = SimpleQueue()
        self._slots: SimpleQueue[Slot] = SimpleQueue()
        # A piece that is to be merged waits here for its turn.
        self._mergers: SimpleQueue[BlockMerger | DeviceMerger] = SimpleQueue()

    def run(self, files: list[OutputFile], carry_out: Callable[[OutputFile], None]) -> None:
        """Carry out the output files, two at once.

        Args:
            files: all of them.
            carry_out: does what is to be done with one file, by `stream`. Called in a thread.

        Raises:
            Exception: the first error of any thread, or what the bar raises to cancel the run. No
                thread runs any more then.
        """
        require_address_space(pieces_at_once(self.device) * (slot_bytes(files) + THREAD_BYTES))
        waiting = deque(sorted(files, key=lambda file: file.merged_bytes))
        self._make_memory(files)

        def carry_out_all(take: Callable[[], OutputFile]) -> None:
            while not self.stopped.is_set():
                try:
                    file = take()
                except IndexError:  # none is left
                    return
                carry_out(file)

        with (
            one_thread_each(),
            ThreadPoolExecutor(
                pieces_at_once(self.device), "labkit-piece", calculate_by_the_standard
            ) as self._pool,
            ThreadPoolExecutor(
                FILES_AT_ONCE, "labkit-file", calculate_by_the_standard
            ) as file_threads,
        ):
            try:
                for take in (waiting.pop, waiting.popleft):
                    file_threads.submit(carry_out_all, take).add_done_callback(self._news.put)
                # This thread only listens, so that Ctrl-C and a bar's error come through at once.
                while self._files_under_way:
                    news = self._news.get()
                    if isinstance(news, Future):
                        news.result()
                        self._files_under_way -= 1
                    else:
                        self.bar.update(news)
            except BaseException:
                self.stopped.set()
                raise

    def _make_memory(self, files: list[OutputFile]) -> None:
        size = slot_bytes(files)
        view = page_memory(size * pieces_at_once(self.device))
        for start in range(0, len(view), size):
            middle, stop = start + size // 2, start + size
            self._slots.put(Slot(view[start:middle], view[middle:stop]))
        if self.device == "cpu":
            for _ in range(workers()):
                self._mergers.put(BlockMerger())
            return
        from labkit.merging.rounding_on_device import MERGERS, DeviceMerger

        for _ in range(min(MERGERS, workers())):
            self._mergers.put(DeviceMerger(self.device))

    def done(self, count: int) -> None:
        """Tell the bar of bytes that are done."""
        self._news.put(count)

    def stream(
        self,
        file: OutputFile,
        source: SourceFile,
        store: Callable[[MadePiece], None],
        finish: Callable[[MadePiece], None],
        copy: Callable[[Piece], None] | None = None,
        earlier: SourceFile | None = None,
    ) -> None:
        """Make all pieces of an output file.

        Args:
            file: the file.
            source: the base's file.
            store: writes or compares a piece. Called in several threads, in any order.
            finish: what is done with a piece after that. Called in this thread, in the pieces'
                order; the first error of `store` in this order is raised here.
            copy: writes an unchanged piece without reading it into memory; None: all are read.
            earlier: the earlier merge's file, if pieces are taken over from one.
        """
        under_way: deque[tuple[Slot, Future[MadePiece]]] = deque()

        def finish_first() -> None:
            made = under_way[0][1].result()
            finish(made)
            self.done(made.piece.nbytes)
            self._slots.put(under_way.popleft()[0])

        tensor, update = None, None
        try:
            for piece in file.pieces:
                # When the other files are finished, this one may have all slots.
                while len(under_way) >= pieces_at_once(self.device) // self._files_under_way:
                    finish_first()
                if self.stopped.is_set():
                    raise StoppedError
                if piece.tensor is not tensor:
                    # Read once for all its pieces, which follow each other.
                    tensor = piece.tensor
                    change = self.plan.changes.get(tensor.name) if tensor else None
                    with memory_of_device():
                        update = change.update(self.device) if change else None
                slot = self._slots.get()
                job = self._pool.submit(
                    self._make, piece, source, earlier, slot, update, store, copy
                )
                under_way.append((slot, job))
            while under_way:
                finish_first()
        finally:
            # Nothing may use the file or the slots any more when this has ended, however it did.
            wait([job for _, job in under_way])
            for slot, _ in under_way:
                self._slots.put(slot)

    def _make(
        self,
        piece: Piece,
        source: SourceFile,
        earlier: SourceFile | None,
        slot: Slot,
        update: Delta | None,
        store: Callable[[MadePiece], None],
        copy: Callable[[Piece], None] | None,
    ) -> MadePiece:
        """Read a piece, merge it or take it over, and store it."""
        if piece.tensor is None and not piece.earlier and copy is not None:
            copy(piece)
            return MadePiece(piece, slot, None, None)
        read = source.read(slot.read, piece.source, piece.source_bytes)
        if piece.earlier and earlier is not None:
            there = earlier.read(slot.merged, piece.target, piece.nbytes)
            made = MadePiece(piece, slot, read, there)
        elif piece.tensor is None:
            made = MadePiece(piece, slot, read, read)
        else:
            written = aligned_part(slot.merged, piece.target, piece.nbytes)
            squares, broken = self.merge(piece, read, written, update)
            made = MadePiece(piece, slot, read, written, update, squares, broken)
        store(made)
        return made

    def merge(
        self, piece: Piece, read: memoryview, written: memoryview, update: Delta | None
    ) -> tuple[tuple[float, float, float], int]:
        """Merge the rows of a piece.

        Args:
            piece: the piece; its `tensor` is given.
            read: the rows as the base has them; empty for rows of new tokens.
            written: memory for the merged rows.
            update: what is added to the tensor; None if only its dtype changes.

        Returns:
            the sums of squares of `MadePiece`; and how many of the base's numbers are NaN or
            infinite.

        Raises:
            LabkitError: a number that is finite in the base is not any more.
        """
        tensor = piece.tensor
        assert tensor is not None  # noqa: S101 - a piece that is copied is not merged
        first, last = piece.rows
        shape = last - first, tensor.matrix_shape[1]
        base_dtype, dtype = tensor.float_dtype, self.plan.output_dtype(tensor)
        if read:
            base = np.frombuffer(read, ARRAYS[base_dtype]).reshape(shape)
        else:
            base = np.zeros(shape, ARRAYS[base_dtype])
        merged = np.frombuffer(written, ARRAYS[dtype]).reshape(shape)
        merger = self._mergers.get()
        try:
            with memory_of_device():
                _, *squares = merger.merge(base, base_dtype, update, first, dtype, merged)
        finally:
            self._mergers.put(merger)
        squared, missing, asked = squares
        # The sum of squares of the change is not finite if any element of it is not.
        broken = 0
        if not math.isfinite(squared):
            whole = np.isfinite(wide(base, base_dtype))
            broken = whole.size - int(np.count_nonzero(whole))
            lost = whole & ~np.isfinite(wide(merged, dtype))
            if lost.any():
                raise LabkitError(
                    f"{int(lost.sum())} numbers of {shown(tensor.name)!r} become too large for "
                    f"{FLOATS[dtype]} (its largest is {LARGEST[dtype]:g}); "
                    "choose another dtype, such as bfloat16 or float32, or smaller weights"
                )
        return (squared, missing, asked), broken


class ModelWriter:
    """Writes the output files of a merged model, flushed to disk, and keeps account.

    Args:
        engine: makes the pieces.
        folder: where the files go.
        link: hard-link files that the plan does not touch.
        hashes: take the SHA-256 of every file that is read and written.

    Attributes:
        linked: the names of the files that were linked.
        asked: the norm of the change that was asked for, by the name of the tensor, where factors
            tell it.
        squares: the sums of squares of its pieces; see `MadePiece`.
        broken: how many of the base's numbers are NaN or infinite, by the name of the tensor;
            looked for in tensors that change.
        read_hashes: the SHA-256 of the base's files, by path.
        written_hashes: the SHA-256 of the output files, by name.
        taken_over: the names of changed tensors that came from an earlier merge.
        linked_earlier: the names of the files that were linked to one.
        made_anew: the names of the files of which nothing could be taken over after all, and the
            file that is not what it was when the earlier merge was made.
    """

    def __init__(self, engine: Engine, folder: Path, link: bool, hashes: bool) -> None:
        self.engine = engine
        self.folder = folder
        self.link = link
        self.hashes = hashes
        self.linked: list[str] = []
        self.asked: dict[str, float] = {}
        self.squares: dict[str, list[tuple[float, float, float]]] = {}
        self.broken: Counter[str] = Counter()
        self.read_hashes: dict[str, str] = {}
        self.written_hashes: dict[str, str] = {}
        self.taken_over: set[str] = set()
        self.linked_earlier: list[str] = []
        self.made_anew: dict[str, Path] = {}

    def norms(self, name: str) -> tuple[float, float, float]:
        """The norms of a tensor's change: asked for, there after rounding, and missing."""
        sums = zip(*self.squares[name], strict=True)
        achieved, missing, asked = (math.sqrt(math.fsum(squares)) for squares in sums)
        return self.asked.get(name, asked), achieved, missing

    def write(self, file: OutputFile) -> None:
        """Write an output file, or link the base's or an earlier merge's."""
        if file.earlier is not None:
            if self._take_over(file, file.earlier):
                return
            file = file.anew()
        if file.untouched and self.link and linked(file.source.path, self.folder / file.name):
            self.linked.append(file.name)
            self.engine.done(file.size)
            if self.hashes:
                digest = hash_file(file.source.path, self.engine.stopped)
                self._note_hashes(file, digest, digest)
            return
        self._stream(file)

    def _take_over(self, file: OutputFile, earlier: EarlierFile) -> bool:
        """Write a file with what is taken over from an earlier merge, if that is as it was.

        Returns:
            whether it was: else nothing is written, and it is noted.
        """
        stopped, path = self.engine.stopped, self.folder / file.name
        one_link = earlier.whole and self.link and linked(earlier.file.path, path)
        # Of a whole file, the hash of what is written is that of the file that it is copied from.
        there = hash_file(earlier.file.path, stopped) if one_link or not earlier.whole else None
        if one_link:
            self.engine.done(file.size)
            self._note_hashes(file, hash_file(file.source.path, stopped), str(there))
        elif there in (None, earlier.sha256):
            self._stream(file)
            there = self.written_hashes[file.name] if earlier.whole else there
        if stopped.is_set():
            raise StoppedError
        of_base = self.read_hashes.get(str(file.source.path))
        if there == earlier.sha256 and of_base == earlier.base_sha256:
            self.taken_over |= earlier.tensors
            if one_link:
                self.linked_earlier.append(file.name)
            return True
        base_is_other = of_base not in (None, earlier.base_sha256)
        self.made_anew[file.name] = file.source.path if base_is_other else earlier.file.path
        if path.exists():
            path.unlink()
            self.engine.done(-file.size)
        return False

    def _stream(self, file: OutputFile) -> None:
        """Write an output file, piece by piece."""
        with ExitStack() as opened:
            source = opened.enter_context(closing(SourceFile(file.source.path)))
            earlier = None
            if file.earlier is not None:
                earlier = opened.enter_context(closing(SourceFile(file.earlier.file.path)))
            path = self.folder / file.name
            target = opened.enter_context(closing(TargetFile(path, file.size, source)))
            target.write(file.header, 0)
            self.engine.done(len(file.header))
            hashes = FileHashes(file, source, self.engine.stopped) if self.hashes else None
            by_kernel = target.shares or not target.direct

            def store(made: MadePiece) -> None:
                piece = made.piece
                if earlier is not None and piece.earlier and target.shares:
                    target.copy(earlier, piece.target, piece.nbytes, piece.target)
                    return
                assert made.written is not None  # noqa: S101 - only copied pieces have no bytes
                target.write(made.written, piece.target)

            def copy(piece: Piece) -> None:
                target.copy(source, piece.source, piece.nbytes, piece.target)

            def finish(made: MadePiece) -> None:
                self._note_change(made)
                if hashes:
                    hashes.add(made)

            self.engine.stream(file, source, store, finish, copy if by_kernel else None, earlier)
            target.flush()
        if hashes:
            self._note_hashes(file, *hashes.digests())

    def _note_change(self, made: MadePiece) -> None:
        if made.piece.tensor is None or made.update is None:
            return
        name = made.piece.tensor.name
        if name not in self.asked and not isinstance(made.update, BaseDependent):
            self.asked[name] = made.update.norm()
        self.squares.setdefault(name, []).append(made.squares)
        if made.broken:
            self.broken[name] += made.broken

    def _note_hashes(self, file: OutputFile, read: str, written: str) -> None:
        self.read_hashes[str(file.source.path)] = read
        self.written_hashes[file.name] = written


class FileHashes:
    """The SHA-256 of a base's file and of the output file made from it, piece by piece in order.

    One hash stands for both files as long as they have the same bytes.
    """

    def __init__(self, file: OutputFile, source: SourceFile, stopped: threading.Event) -> None:
        self._source = source
        self._stopped = stopped
        header = file.source.header_bytes
        # A file whose bytes are not read once each, and in order, is hashed by itself at the end.
        self._read = hashlib.sha256(header) if file.sequential else None
        self._written = (
            self._read if self._read and file.header == header else hashlib.sha256(file.header)
        )

    def add(self, made: MadePiece) -> None:
        """Add the next piece."""
        other = made.piece.tensor is not None or made.piece.earlier
        if self._read is self._written and other:
            self._written = self._read.copy()
        if self._read is not None:
            self._add(self._read, made.piece, made.read)
        if self._written is not self._read:
            self._add(self._written, made.piece, made.written)

    def _add(self, digest: Any, piece: Piece, data: memoryview | None) -> None:
        if data is not None:
            digest.update(data)
            return
        # The kernel copied it, so it is not in memory; the base has the same bytes.
        source = self._source
        hash_range(digest, source.plain, source.path, piece.source, piece.nbytes, self._stopped)

    def digests(self) -> tuple[str, str]:
        """The SHA-256 of the base's file and of the output file, in hexadecimal."""
        written = self._written.hexdigest()
        if self._read is None:
            return hash_file(self._source.path, self._stopped), written
        return self._read.hexdigest(), written
