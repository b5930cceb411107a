"""Computes a merge again from its recipe and compares every byte with the folder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.files.direct_io import MadeFile, hash_file
from labkit.files.paths import user_path
from labkit.machine import choose_device
from labkit.merging.planning import Plan, plan
from labkit.merging.recipe import FILE_NAME, Recipe
from labkit.writing.layout import OutputFile, Piece, output_files, side_files
from labkit.writing.open_output import OpenOutput
from labkit.writing.pipeline import Pipeline
from labkit.writing.progress import bar_of


@dataclass(frozen=True)
class Verified:
    """What `verify` compared, all of it equal.

    Attributes:
        folder: the merged model.
        files: how many files.
        tensors_computed: how many tensors were merged again.
        nbytes: how many bytes of model.
    """

    folder: Path
    files: int
    tensors_computed: int
    nbytes: int


def verify(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Verified:
    """Compute a merge again from its `recipe.yaml` and compare every byte.

    Compared are the model's files, its config and its tokenizer; not the card, the picture and the
    receipt, which are there to be read and may be edited.

    Args:
        folder: the merged model.
        base: where the base is on this machine, if not where the recipe says.
        adapters: likewise the adapters, one for each of the recipe's terms, in order.
        device: where to calculate: "cpu", "cuda" or "auto".
        progress: show a progress bar.

    Raises:
        LabkitError: an input that is missing; or the first difference: the file and the tensor, and
            which input is not the one that was merged, where the recipe knows.
    """
    where = user_path(folder)
    if not where.is_dir():
        raise LabkitError(f"{shown(where)} is no folder; name the folder of a merged model")
    if not (where / FILE_NAME).is_file():
        raise LabkitError(
            f"{shown(where)} holds no {FILE_NAME}; name the folder of a model that labkit merged"
        )
    resolved = plan(Recipe.load(where / FILE_NAME, base, adapters))
    chosen = choose_device(device)
    files = output_files(resolved, chosen)
    total = sum(file.size for file in files)
    try:
        with bar_of(total, progress, "verify") as bar:
            _Comparison(resolved, where, chosen, bar).compare(files)
        others = side_files(resolved)
        for name, content in others.items():
            expected = content.read_bytes() if isinstance(content, Path) else content
            if not (where / name).is_file() or (where / name).read_bytes() != expected:
                raise LabkitError(f"{shown(where / name)} is missing or not as the recipe makes it")
    except OSError as error:
        raise LabkitError(
            f"cannot read {shown(error.filename or where)}: {error.strerror}"
        ) from error
    except LabkitError as error:
        changed = _changed_inputs(resolved)
        if changed:
            raise LabkitError(f"{error}; {changed}") from error
        raise
    return Verified(where, len(files) + len(others), len(resolved.changes), total)


class _Comparison(Pipeline[MadeFile]):
    """One run that compares the pieces with what a folder holds, and finds the first difference."""

    def __init__(self, plan: Plan, folder: Path, device: str, bar: Any) -> None:
        super().__init__(plan, device, bar)
        self.folder = folder
        self._order = {file.path: place for place, file in enumerate(plan.base.files)}
        # Where the first difference is, as far as is known, and what to say of it.
        self._first: tuple[int, int] | None = None
        self._difference = ""
        self._lock = threading.Lock()

    def compare(self, files: list[OutputFile]) -> None:
        """Compare all files.

        Raises:
            LabkitError: what differs first, in the order of the files and their bytes.
        """
        self.run(files)
        if self._first is not None:
            raise LabkitError(self._difference)

    def begin(self, file: OutputFile) -> OpenOutput[MadeFile] | None:
        """Open a file, and compare its header."""
        path = self.folder / file.name
        difference = self._difference_at_start(file, path)
        if difference:
            self._note(file, -1, difference)
            return None
        output = OpenOutput(file, lambda _: MadeFile(path))
        self.bar.update(len(file.header))
        return output

    def _difference_at_start(self, file: OutputFile, path: Path) -> str:
        if not path.is_file():
            return f"{shown(path)} is missing"
        size = path.stat().st_size
        if size != file.size:
            return f"{shown(path)} has {size} bytes; the recipe makes {file.size}"
        with path.open("rb") as stream:
            if stream.read(len(file.header)) != file.header:
                return f"the header of {shown(path)} differs from what the recipe makes"
        return ""

    def wanted(self, output: OpenOutput[MadeFile], number: int) -> bool:
        """Whether a piece lies before the first difference that is known."""
        return self._first is None or (self._order[output.file.source.path], number) < self._first

    def store(self, output: OpenOutput[MadeFile], number: int, data: memoryview) -> None:
        """Compare a piece with what is there."""
        piece = output.file.pieces[number]
        first = output.target.differs(data, piece.target)
        if first is not None:
            self._note(output.file, number, self._words(output.file, piece, first))

    def _words(self, file: OutputFile, piece: Piece, first: int) -> str:
        path = shown(self.folder / file.name)
        if piece.tensor is not None:
            return (
                f"tensor {shown(piece.tensor.name)!r} in {path} differs from what the recipe "
                f"makes, in rows {piece.rows[0]} to {piece.rows[1] - 1}"
            )
        position = piece.source + first
        name = next(t.name for t in file.source.tensors if t.start <= position < t.stop)
        return (
            f"tensor {shown(name)!r} in {path} differs from the base's, which the recipe does not "
            "change"
        )

    def _note(self, file: OutputFile, number: int, difference: str) -> None:
        place = self._order[file.source.path], number
        with self._lock:
            if self._first is None or place < self._first:
                self._first, self._difference = place, difference

    def end(self, output: OpenOutput[MadeFile]) -> None:
        """Close the file."""
        self.closed(output)


def _changed_inputs(resolved: Plan) -> str:
    """Name the inputs whose SHA-256 is not the recipe's."""
    recipe = resolved.recipe
    paths = [
        source.folder / name
        for source in recipe.sources
        for name in recipe.sha256.get(source.reference, {})
    ]
    missing = [f"{shown(path)} is missing" for path in paths if not path.is_file()]
    present = {str(path): hash_file(path) for path in paths if path.is_file()}
    return "; ".join([*missing, *recipe.changed_files(present)])
