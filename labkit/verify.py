"""Computes a merge again from its recipe and compares every byte with the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError, shown
from labkit.layout import OutputFile, Piece, PieceMaker, one_thread_each, output_files, side_files
from labkit.plan import Plan, plan
from labkit.recipe import FILE_NAME, Recipe
from labkit.streams import HASH_BYTES, hash_file
from labkit.tensor_file import read_fully
from labkit.write import choose_device


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
    from tqdm.auto import tqdm

    where = Path(folder).expanduser()
    if not where.is_dir():
        raise LabkitError(f"{shown(where)} is no folder; name the folder of a merged model")
    if not (where / FILE_NAME).is_file():
        raise LabkitError(
            f"{shown(where)} holds no {FILE_NAME}; name the folder of a model that labkit merged"
        )
    resolved = plan(Recipe.load(where / FILE_NAME, base, adapters))
    chosen = choose_device(device)
    files = output_files(resolved, chosen.type)
    maker = PieceMaker(resolved, chosen)
    total = sum(file.size for file in files)
    try:
        with (
            one_thread_each(),
            tqdm(
                total=total, unit="B", unit_scale=True, desc="verify", disable=not progress
            ) as bar,
        ):
            for file in files:
                _compare_file(file, where / file.name, maker, bar.update)
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


def _compare_file(
    file: OutputFile, path: Path, maker: PieceMaker, advance: Callable[[int], object]
) -> None:
    if not path.is_file():
        raise LabkitError(f"{shown(path)} is missing")
    if path.stat().st_size != file.size:
        raise LabkitError(
            f"{shown(path)} has {path.stat().st_size} bytes; the recipe makes {file.size}"
        )
    source = os.open(file.source.path, os.O_RDONLY)
    target = os.open(path, os.O_RDONLY)
    read, made = bytearray(), bytearray()
    try:
        if os.pread(target, len(file.header), 0) != file.header:
            raise LabkitError(f"the header of {shown(path)} differs from what the recipe makes")
        advance(len(file.header))
        update, current = None, None
        for piece in file.pieces:
            if piece.tensor is None:
                _compare_copy(file, piece, source, target, path)
            else:
                if piece.tensor.name != current:
                    current = piece.tensor.name
                    update = maker.update(piece.tensor)
                read = read if len(read) == piece.source_bytes else bytearray(piece.source_bytes)
                made = made if len(made) == piece.nbytes else bytearray(piece.nbytes)
                read_fully(source, read, piece.source, file.source.path)
                maker.make(piece, memoryview(read), memoryview(made), update)
                if os.pread(target, piece.nbytes, piece.target) != made:
                    raise LabkitError(
                        f"tensor {shown(current)!r} in {shown(path)} differs from what the recipe "
                        f"makes, in rows {piece.rows[0]} to {piece.rows[1] - 1}"
                    )
            advance(piece.nbytes)
    finally:
        os.close(source)
        os.close(target)


def _compare_copy(file: OutputFile, piece: Piece, source: int, target: int, path: Path) -> None:
    for offset in range(0, piece.nbytes, HASH_BYTES):
        count = min(HASH_BYTES, piece.nbytes - offset)
        ours = os.pread(target, count, piece.target + offset)
        theirs = os.pread(source, count, piece.source + offset)
        if ours != theirs:
            first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
            position = piece.source + offset + first
            name = next(t.name for t in file.source.tensors if t.start <= position < t.stop)
            raise LabkitError(
                f"tensor {shown(name)!r} in {shown(path)} differs from the base's, which the "
                "recipe does not change"
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
