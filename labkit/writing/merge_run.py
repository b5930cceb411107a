"""One run of a merge: writes the pieces into new files, hashes them, and keeps account."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.deltas.delta import Delta
from labkit.files.direct_io import SourceFile, TargetFile, hash_file, linked
from labkit.files.tensor_file import StoredTensor
from labkit.writing.layout import OutputFile
from labkit.writing.open_output import OpenOutput
from labkit.writing.pipeline import Pipeline
from labkit.writing.receipt import Receipt, TensorReceipt

if TYPE_CHECKING:
    from labkit.merging.planning import Plan


class MergeRun(Pipeline[TargetFile]):
    """One run: writes the output files, flushed to disk, and keeps account.

    Args:
        plan: what is merged.
        folder: where the files go.
        device: "cpu" or "cuda".
        link: hard-link files that the plan does not touch.
        hashes: take the SHA-256 of every file that is read and written.
        bar: what is told of the bytes that are done, like a bar of tqdm.
    """

    def __init__(
        self, plan: Plan, folder: Path, device: str, link: bool, hashes: bool, bar: Any
    ) -> None:
        super().__init__(plan, device, bar)
        self.folder = folder
        self.link = link
        self.hashes = hashes
        self.squares: dict[str, list[tuple[float, float]]] = {}
        self.asked: dict[str, float] = {}
        self.linked: list[str] = []
        self.read_hashes: dict[str, str] = {}
        self.written_hashes: dict[str, str] = {}

    def begin(self, file: OutputFile) -> OpenOutput[TargetFile] | None:
        """Make an output file with its header, or link the base's."""
        source_path, target_path = file.source.path, self.folder / file.name
        if file.untouched and self.link and linked(source_path, target_path):
            self.linked.append(file.name)
            self.bar.update(file.size)
            if self.hashes:
                self.calculate(
                    hash_file,
                    source_path,
                    self.stopped,
                    then=lambda digest: self._note(file, digest, digest),
                )
            return None
        output = OpenOutput(
            file, lambda source: self._new(target_path, file, source), hashes=self.hashes
        )
        output.copies = output.target.shares or not output.target.direct
        self.bar.update(len(file.header))
        return output

    def _new(self, path: Path, file: OutputFile, source: SourceFile) -> TargetFile:
        """A new file with its header."""
        target = TargetFile(path, file.size, source)
        try:
            target.write(file.header, 0)
        except BaseException:
            target.close()
            raise
        return target

    def store(self, output: OpenOutput[TargetFile], number: int, data: memoryview) -> None:
        """Write a piece."""
        output.target.write(data, output.file.pieces[number].target)

    def copy(self, output: OpenOutput[TargetFile], number: int) -> None:
        """Have the kernel copy a piece: file systems that can share blocks do."""
        piece = output.file.pieces[number]
        output.target.copy(output.source, piece.source, piece.nbytes, piece.target)

    def updated(self, tensor: StoredTensor, update: Delta) -> None:
        """Note how much is asked for."""
        self.asked[tensor.name] = update.norm()
        self.squares[tensor.name] = []

    def merged(self, tensor: StoredTensor, squares: tuple[float, float]) -> None:
        """Note how much is achieved."""
        self.squares[tensor.name].append(squares)

    def end(self, output: OpenOutput[TargetFile]) -> None:
        """Flush a file to disk, and note its hashes."""

        def flushed(digests: tuple[str, str] | None) -> None:
            self.closed(output)
            if digests:
                self._note(output.file, *digests)

        self.move(self._flush, output, then=flushed)

    def _note(self, file: OutputFile, read: str, written: str) -> None:
        self.read_hashes[str(file.source.path)] = read
        self.written_hashes[file.name] = written

    def _flush(self, output: OpenOutput[TargetFile]) -> tuple[str, str] | None:
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
                for path in term.source.read_files:
                    self.read_hashes[str(path)] = hash_file(path)
            for name in others:
                self.written_hashes[name] = hash_file(self.folder / name)
        return Receipt(
            folder=out,
            base=self.plan.base.name,
            adapters=tuple(term.source.name for term in self.plan.recipe.terms),
            device=self.device,
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
