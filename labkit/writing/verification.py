"""Computes a merge again from its recipe and compares every byte with the folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.files.direct_io import SourceFile, hash_file
from labkit.files.paths import user_path
from labkit.machine import choose_device
from labkit.merging.planning import Plan, plan
from labkit.merging.recipe import FILE_NAME, Recipe
from labkit.writing.engine import Engine, MadePiece
from labkit.writing.layout import OutputFile, Piece, output_files, side_files
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
            _Comparison(Engine(resolved, chosen, bar), where).compare(files)
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


class _DifferenceError(Exception):
    """A file is not as the recipe makes it; the text says where it first differs."""


class _Comparison:
    """Compares the output files with those in a folder, and finds the first difference.

    Two files are compared at once. Within each, pieces are finished in the order of their bytes, so
    the first difference that is raised is the file's first.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self._numbers: dict[Path, int] = {}
        self._differences: dict[int, str] = {}

    def compare(self, files: list[OutputFile]) -> None:
        """Compare all files.

        Raises:
            LabkitError: what differs first, in the order of the files and their bytes.
        """
        self._numbers = {file.source.path: number for number, file in enumerate(files)}
        self.engine.run(files, self._compare_file)
        if self._differences:
            raise LabkitError(self._differences[min(self._differences)])

    def _compare_file(self, file: OutputFile) -> None:
        number = self._numbers[file.source.path]
        try:
            self._require_equal(file, number)
        except _DifferenceError as difference:
            self._differences[number] = str(difference)

    def _require_equal(self, file: OutputFile, number: int) -> None:
        path = self.folder / file.name
        self._require_equal_start(file, path)
        self.engine.done(len(file.header))
        with (
            closing(SourceFile(file.source.path)) as source,
            closing(SourceFile(path)) as there,
        ):

            def compare(made: MadePiece) -> None:
                assert made.written is not None  # noqa: S101 - all pieces are read into memory
                # A merged piece's bytes of the base are not needed any more.
                spare = made.slot.read if made.piece.tensor else made.slot.merged
                found = there.read(spare, made.piece.target, made.piece.nbytes)
                different = np.frombuffer(found, np.uint8) != np.frombuffer(made.written, np.uint8)
                if different.any():
                    raise _DifferenceError(self._words(file, made.piece, int(different.argmax())))

            def finish(_: MadePiece) -> None:
                if min(self._differences, default=number) < number:
                    raise _DifferenceError("nobody asks: a file before this one differs")

            self.engine.stream(file, source, compare, finish)

    def _require_equal_start(self, file: OutputFile, path: Path) -> None:
        if not path.is_file():
            raise _DifferenceError(f"{shown(path)} is missing")
        size = path.stat().st_size
        if size != file.size:
            raise _DifferenceError(f"{shown(path)} has {size} bytes; the recipe makes {file.size}")
        with path.open("rb") as stream:
            if stream.read(len(file.header)) != file.header:
                raise _DifferenceError(
                    f"the header of {shown(path)} differs from what the recipe makes"
                )

    def _words(self, file: OutputFile, piece: Piece, first: int) -> str:
        """Say what differs: the tensor, given the first byte of the piece that does."""
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
