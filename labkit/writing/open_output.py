"""One output file of a merge under way: its pieces in memory, and its hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from labkit.files.direct_io import SourceFile
from labkit.writing.layout import OutputFile


@dataclass
class Hash:
    """A hash of a file under way.

    Attributes:
        digest: hashlib's object; None until it takes over from the other file's.
        next: the first piece that is not in it yet.
        busy: a job is adding that piece.
    """

    digest: Any
    next: int
    busy: bool = False


@dataclass
class Held:
    """A piece that is merged, and not yet both written and hashed.

    Attributes:
        buffers: what to free then.
        read: its bytes in the base's file; None where they are not in memory.
        written: likewise in the output file.
        stored: it is written.
    """

    buffers: list[memoryview]
    read: memoryview | None
    written: memoryview | None
    stored: bool = False


class Closing(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Close it."""


Target = TypeVar("Target", bound=Closing)
"""The file that pieces are written into or compared with."""


class OpenOutput(Generic[Target]):
    """One output file under way.

    As long as it has the bytes of the base's file, one hash stands for both files.

    Args:
        file: the file.
        open_target: given the base's file, opens what the pieces go to.
        hashes: hash both.

    Attributes:
        source: the base's file.
        target: what the pieces go to.
        copies: untouched pieces are copied by the kernel, and not read into memory.
    """

    copies = False

    def __init__(
        self,
        file: OutputFile,
        open_target: Callable[[SourceFile], Target],
        *,
        hashes: bool = False,
    ) -> None:
        self.file = file
        self.source = SourceFile(file.source.path)
        try:
            self.target = open_target(self.source)
        except BaseException:
            self.source.close()
            raise
        self.held: dict[int, Held] = {}
        self.released = 0
        self.read: Hash | None = None
        self.written: Hash | None = None
        if hashes:
            # Read in order only where each of its bytes is read once; else it is read again.
            if file.sequential:
                self.read = Hash(hashlib.sha256(file.source.header_bytes), 0)
            same = file.same_until if self.read else 0
            self.written = Hash(None if same else hashlib.sha256(file.header), same)
        self._follow()

    @property
    def chains(self) -> list[Hash]:
        """Its hashes."""
        return [chain for chain in (self.read, self.written) if chain]

    def due(self) -> Iterator[tuple[Hash, int, memoryview | None]]:
        """The hashes whose next piece is there: the hash, the piece, and its bytes in memory."""
        for chain in self.chains:
            held = self.held.get(chain.next)
            if held and chain.digest and not chain.busy:
                chain.busy = True
                yield chain, chain.next, held.read if chain is self.read else held.written

    def hashed(self, chain: Hash) -> None:
        """Note that a hash has its next piece."""
        chain.busy = False
        chain.next += 1
        self._follow()

    def _follow(self) -> None:
        """Begin the written file's hash with what it has in common with the one that was read."""
        read, written = self.read, self.written
        if read and written and written.digest is None and read.next == written.next:
            written.digest = read.digest.copy()

    def release(self) -> Iterator[Held]:
        """Give back the pieces that nothing waits for any more."""
        hashed = min((chain.next for chain in self.chains), default=len(self.file.pieces))
        for number in [n for n, held in self.held.items() if n < hashed and held.stored]:
            self.released += 1
            yield self.held.pop(number)

    def close(self) -> None:
        """Close both files."""
        self.source.close()
        self.target.close()
