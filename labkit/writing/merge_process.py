"""Merges pieces in processes of their own; memory that is shared takes them there and back.

A block is merged in some thirty short steps of numpy. Threads of one process wait for each other
between any two of them, for Python's lock, and need half as long again; processes do not. They
start in a fifth of a second, since they import numpy and no torch.

A piece is copied into memory that is shared, and out of it, and not read from the disk right there:
most systems have such memory in small pages only, with which a disk is half as fast.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from labkit.errors import LabkitError

if TYPE_CHECKING:
    from labkit.deltas.delta import Delta
    from labkit.writing.piece_maker import Task

UPDATES_KEPT = 2
"""Updates that a process keeps: one for each lane of a merge."""
SECONDS_TO_END = 5.0


def available() -> bool:
    """Whether this system has what it takes: memory without a name that processes share (Linux)."""
    return hasattr(os, "memfd_create") and bool(sys.executable)


class SharedMemory:
    """What two processes have of a piece: as it is read, and as it is written.

    Args:
        descriptor: memory for both.
        room: bytes of the larger one, at most.
    """

    def __init__(self, descriptor: int, room: int) -> None:
        self._view = memoryview(mmap.mmap(descriptor, 2 * room))
        self._room = room

    def parts(self, read: int, written: int) -> tuple[memoryview, memoryview]:
        """The parts for so many bytes."""
        return self._view[:read], self._view[self._room : self._room + written]


class MergeProcesses:
    """Processes that merge pieces. As many threads may wait for them at once as there are.

    Args:
        count: how many.
        room: bytes of the largest piece, read or written.
    """

    def __init__(self, count: int, room: int) -> None:
        self._all: list[_MergeProcess] = []
        self._idle: SimpleQueue[_MergeProcess] = SimpleQueue()
        try:
            for _ in range(count):
                process = _MergeProcess(room)
                self._all.append(process)
                self._idle.put(process)
        except BaseException:
            self.close()
            raise

    def carry_out(
        self, task: Task, source: memoryview, target: memoryview, update: Delta | None
    ) -> tuple[float, float]:
        """Have a piece merged, and wait for it.

        Args:
            task: what to do.
            source: the base's rows; may be empty.
            target: where the merged rows go.
            update: what is added to the tensor.

        Raises:
            LabkitError: as `Task.carry_out`; or the process has ended.
        """
        process = self._idle.get()
        try:
            return process.carry_out(task, source, target, update)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.let_end()
        for process in self._all:
            process.wait()


class _MergeProcess:
    def __init__(self, room: int) -> None:
        self._known: list[str] = []
        self._connection, theirs = Pipe()
        descriptor = os.memfd_create("labkit")
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            os.ftruncate(descriptor, 2 * room)
            self._memory = SharedMemory(descriptor, room)
            self._process = subprocess.Popen(  # noqa: S603 - this Python, and a module of labkit
                [
                    *(sys.executable, "-P", "-m", "labkit.writing.merge_process"),
                    *(str(theirs.fileno()), str(descriptor), str(room)),
                ],
                # Its blocks are small: more threads would only wait for each other.
                env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1",
                     "MKL_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), descriptor),
                # Ctrl-C is for the process that has these; they end when it lets go of them.
                process_group=0,
            )  # fmt: skip
        finally:
            theirs.close()
            os.close(descriptor)

    def carry_out(
        self, task: Task, source: memoryview, target: memoryview, update: Delta | None
    ) -> tuple[float, float]:
        read, written = self._memory.parts(len(source), len(target))
        _copy(source, read)
        news = None
        if task.tensor not in self._known:
            self._known = [*self._known, task.tensor][-UPDATES_KEPT:]
            news = update, self._known
        try:
            self._connection.send((task, len(source), len(target), news))
            result = self._connection.recv()
        except (EOFError, OSError) as error:
            status = self._process.poll()
            raise LabkitError(
                f"a process that merges for this one has ended (status {status}); it may have been "
                "killed for want of memory: make room, and start again"
            ) from error
        if isinstance(result, BaseException):
            raise result
        _copy(written, target)
        squared, missing = result
        return squared, missing

    def let_end(self) -> None:
        self._connection.close()

    def wait(self) -> None:
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _copy(source: memoryview, target: memoryview) -> None:
    """Copy bytes, and let other threads run."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def main() -> None:
    """Merge what the process at the other end asks for, until it closes the connection."""
    from labkit.merging.rounding import BlockMerger

    connection_descriptor, memory_descriptor, room = map(int, sys.argv[1:])
    connection = Connection(connection_descriptor)
    memory = SharedMemory(memory_descriptor, room)
    merger = BlockMerger()
    updates: dict[str, Delta | None] = {}
    with suppress(EOFError, OSError):  # the other end is closed
        while True:
            task, read, written, news = connection.recv()
            if news:
                updates[task.tensor], known = news
                updates = {name: updates[name] for name in known}
            source, target = memory.parts(read, written)
            result: object
            try:
                result = task.carry_out(source, target, updates[task.tensor], merger)
            except Exception as error:  # noqa: BLE001 - raised again by whoever asked
                result = error
            connection.send(result)


if __name__ == "__main__":
    main()
