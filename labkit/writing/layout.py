"""How a merged model lies on disk, piece by piece, and how each piece comes about.

`write` puts the pieces into files and `verify` compares them with files; both see the same pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from labkit.files.tensor_file import StoredTensor, TensorFile, header_for

if TYPE_CHECKING:
    from labkit.merging.planning import Plan

PIECE_BYTES = 8 << 20
"""Bytes copied at a time."""
BLOCK_BYTES = 64 << 10
"""Files can share blocks of a disk; they begin at multiples of this, or of less."""
MERGE_BYTES = {"cpu": PIECE_BYTES, "cuda": 32 << 20}
"""Bytes of the base read at a time into memory, by the kind of device that merges them: enough
that threads seldom wait for each other."""


@dataclass(frozen=True)
class Piece:
    """A run of bytes of an output file, and where it comes from.

    Attributes:
        target: its first byte in the output file.
        nbytes: its length in the output file.
        source: its first byte in the base's file.
        source_bytes: its length there.
        tensor: the tensor whose rows it holds, or None for bytes that are copied as they are.
        rows: the first row and the one after the last, if `tensor` is given.
        earlier: they are taken over from the same place of an earlier merge's file.
    """

    target: int
    nbytes: int
    source: int
    source_bytes: int
    tensor: StoredTensor | None = None
    rows: tuple[int, int] = (0, 0)
    earlier: bool = False


@dataclass(frozen=True)
class EarlierFile:
    """A file of an earlier merge, from which an output file takes tensors over.

    Attributes:
        file: the file.
        base_sha256: the SHA-256 that the base's file had.
        sha256: the SHA-256 that it had itself. Nothing counts unless both still have theirs.
        whole: the output file has its bytes from the first to the last.
        tensors: the names of those that change the base, and are taken over.
        pieces: the output file's pieces, if all were computed.
    """

    file: TensorFile
    base_sha256: str
    sha256: str
    whole: bool
    tensors: frozenset[str]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class OutputFile:
    """One safetensors file of the merged model.

    Attributes:
        source: the base's file of the same name.
        header: the bytes before the first tensor.
        pieces: what follows the header, in order and without gaps.
        tensors: its tensors, in order; a tensor that the base lacks reads the bytes of another.
        earlier: the file of an earlier merge, where pieces are taken over from one.
    """

    source: TensorFile
    header: bytes
    pieces: tuple[Piece, ...]
    tensors: tuple[StoredTensor, ...]
    earlier: EarlierFile | None = None

    @property
    def name(self) -> str:
        """Its name in the folder; a pickled file becomes a safetensors file."""
        return safe_name(self.source.path.name)

    @property
    def sequential(self) -> bool:
        """Whether the pieces read the base's file from its header to its end, every byte once."""
        position = len(self.source.header_bytes)
        for piece in self.pieces:
            if piece.source_bytes and piece.source != position:
                return False
            position += piece.source_bytes
        return position == self.source.size

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.header) + sum(piece.nbytes for piece in self.pieces)

    @property
    def same_until(self) -> int:
        """How many pieces at its start are the base's file, byte for byte, with the header."""
        if self.header != self.source.header_bytes:
            return 0
        merged = (n for n, piece in enumerate(self.pieces) if piece.tensor or piece.earlier)
        return next(merged, len(self.pieces))

    @property
    def untouched(self) -> bool:
        """Whether it is the base's file, byte for byte."""
        return self.header == self.source.header_bytes and self.same_until == len(self.pieces)

    @property
    def merged_bytes(self) -> int:
        """How many of its bytes are merged, and not only copied."""
        return sum(piece.nbytes for piece in self.pieces if piece.tensor)

    def anew(self) -> OutputFile:
        """The same file, with nothing taken over from an earlier merge."""
        return replace(self, pieces=self.earlier.pieces, earlier=None) if self.earlier else self


def output_files(plan: Plan, device: str) -> list[OutputFile]:
    """Lay out the merged model: the base's files under their names, in their tensor order."""
    return [_output_file(plan, file, MERGE_BYTES[device]) for file in plan.base.files]


def safe_name(name: str) -> str:
    """The name of an output file: the base's, with safetensors' ending."""
    if not name.endswith(".bin"):
        return name
    return name.removesuffix(".bin").replace("pytorch_model", "model") + ".safetensors"


def output_tensors(plan: Plan, file: TensorFile) -> tuple[StoredTensor, ...]:
    """The tensors of an output file: the base's, and an untied head behind its embedding's file."""
    return (*_without_copies(plan, file), *(t for t in plan.added if t.file == file.path))


def _without_copies(plan: Plan, file: TensorFile) -> tuple[StoredTensor, ...]:
    """Leave out a tied head that a pickled file names beside the embedding: the same bytes."""
    head, embedding = plan.base.head, plan.base.embedding
    if file.header_bytes or plan.recipe.untie or not (plan.base.tied and head and embedding):
        return file.tensors
    same = head.start == embedding.start and head.file == embedding.file
    return tuple(t for t in file.tensors if not (same and t.name == head.name))


def _output_file(plan: Plan, file: TensorFile, merge_bytes: int) -> OutputFile:
    tensors = output_tensors(plan, file)
    described = [(t.name, plan.output_dtype(t), plan.output_shape(t)) for t in tensors]
    same = described == [(t.name, t.dtype, t.shape) for t in file.tensors]
    if same and file.header_bytes:
        header = file.header_bytes
    else:
        header = header_for(iter(described), file.metadata)
    pieces = tuple(_pieces(plan, tensors, file, len(header), merge_bytes))
    return OutputFile(file, header, pieces, tensors)


def taken_over(
    pieces: tuple[Piece, ...], names: AbstractSet[str], whole: bool
) -> tuple[Piece, ...]:
    """Let pieces come from an earlier merge's file, in long runs.

    Args:
        pieces: those of an output file.
        names: the tensors whose pieces do.
        whole: all pieces do.
    """
    found: list[Piece] = []
    for piece in pieces:
        if not (whole or (piece.tensor and piece.tensor.name in names)):
            found.append(piece)
            continue
        last = found[-1] if found else None
        if last and last.earlier and last.nbytes == last.source_bytes:
            goes_on = (last.source + last.nbytes, piece.nbytes) == (
                piece.source,
                piece.source_bytes,
            )
            if goes_on:
                count = last.nbytes + piece.nbytes
                found[-1] = replace(last, nbytes=count, source_bytes=count)
                continue
        found.append(replace(piece, tensor=None, earlier=True))
    cut = (
        _cut(one.target, one.source, one.nbytes, True)
        if one.earlier and one.nbytes == one.source_bytes
        else (one,)
        for one in found
    )
    return tuple(piece for run in cut for piece in run)


def _cut(target: int, source: int, count: int, earlier: bool = False) -> Iterator[Piece]:
    """Cut a run of bytes where the blocks of a disk are cut, so that file systems can share them.

    The first piece ends at the next block, and the others at multiples of a piece's size.
    """
    stop = target + count
    while target < stop:
        step = BLOCK_BYTES if target % BLOCK_BYTES else PIECE_BYTES
        size = min(step - target % step, stop - target)
        yield Piece(target, size, source, size, earlier=earlier)
        target, source = target + size, source + size


def _pieces(
    plan: Plan, tensors: tuple[StoredTensor, ...], file: TensorFile, target: int, merge_bytes: int
) -> Iterator[Piece]:
    copy_start = copy_stop = len(file.header_bytes)

    def copies() -> Iterator[Piece]:
        nonlocal target
        yield from _cut(target, copy_start, copy_stop - copy_start)
        target += copy_stop - copy_start

    for tensor in tensors:
        same_dtype = plan.output_dtype(tensor) == tensor.dtype
        if same_dtype and tensor.name not in plan.changes:
            if tensor.start != copy_stop:  # not behind the one before: an added or pickled tensor
                yield from copies()
                copy_start = tensor.start
            copy_stop = tensor.stop
            continue
        yield from copies()
        copy_start = copy_stop = tensor.stop
        rows, columns = tensor.matrix_shape
        out_rows = (
            plan.output_shape(tensor)[0] if plan.output_shape(tensor) != tensor.shape else rows
        )
        row_bytes = tensor.nbytes // rows if rows else 0
        out_bytes = plan.output_bytes(tensor) // out_rows if out_rows else 0
        step = max(1, merge_bytes // max(row_bytes, 1))
        # A piece lies on one side of the base's last row: behind it are new tokens.
        for first, last in ((0, min(rows, out_rows)), (rows, out_rows)):
            for start in range(first, last if columns else first, step):
                stop = min(start + step, last)
                count = (stop - start) * out_bytes
                there = min(start, rows)
                yield Piece(
                    target,
                    count,
                    tensor.start + there * row_bytes,
                    (min(stop, rows) - there) * row_bytes,
                    tensor,
                    (start, stop),
                )
                target += count
    yield from copies()
