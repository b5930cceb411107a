"""Computes a merge again from its recipe and compares every byte with the folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from labkit.errors import LabkitError, shown, spelled
from labkit.files.atomic_folder import MOST_NAMED, RECEIPT, files_in, is_export
from labkit.files.direct_io import SourceFile, hash_file, page_memory, room_for
from labkit.files.paths import user_path
from labkit.files.small_files import read_json
from labkit.machine import choose_device
from labkit.merging.planning import Plan, plan
from labkit.merging.recipe import FILE_NAME, Recipe
from labkit.merging.recipe_sources import named_sources
from labkit.models.model_files import INDEX, is_side_file
from labkit.writing.engine import Engine, FileHashes, MadePiece
from labkit.writing.front_matter import CARD
from labkit.writing.layout import OutputFile, Piece, output_files
from labkit.writing.progress import bar_of
from labkit.writing.side_files import OWN_FILES, side_files
from labkit.writing.write import PICTURE, picture_of

LOADED = (
    INDEX, "*.index.json", "*config*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt",
    "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.jinja", "*.py", "*/*.py", "params.json",
    "modules.json", "*token*.json", "*vocab*.json",
)  # fmt: skip
"""Names of files that some loader of models reads, beside those that labkit itself carries over."""

STEP = 1 << 20
"""Bytes of a merged piece that are compared at a time."""


@dataclass(frozen=True)
class Verified:
    """What `verify` compared, all of it equal.

    Attributes:
        folder: the merged model.
        files: how many files.
        tensors_computed: how many tensors were merged again.
        nbytes: how many bytes of model.
        sums: how many SHA-256 values of recipe and receipt are those of the files.
        not_compared: files of labkit's that may say anything: they are there to be read.
        others: files that labkit did not write and that no loader of models reads.
    """

    folder: Path
    files: int
    tensors_computed: int
    nbytes: int
    sums: int = 0
    not_compared: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [
            f"verified {shown(self.folder)}: {self.files} files, {self.nbytes / 1e9:.2f} GB, "
            f"{self.tensors_computed} tensors computed again, every byte equal",
            f"{self.sums} SHA-256 sums of recipe and receipt are those of the files",
        ]
        if self.not_compared:
            said.append(f"not compared: {', '.join(self.not_compared)}")
        if self.others:
            some = ", ".join(map(shown, self.others[:MOST_NAMED]))
            more = len(self.others) - MOST_NAMED
            said.append(f"not labkit's: {some}{f' and {more} more' if more > 0 else ''}")
        return "; ".join(said)


def verify(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] | None = None,
    device: str = "auto",
    progress: bool = True,
    download: bool = False,
) -> Verified:
    """Compute a merge again from its `recipe.yaml` and compare every byte.

    Compared are the model's files, its config and its tokenizer, and the SHA-256 values of recipe
    and receipt with the files. A file more that a loader of models would read is refused, as the
    folder loads as another model then. Not compared is what is there to be read and may be edited:
    the card, and what the receipt says beside its SHA-256 values. The picture is drawn again; one
    that differs is named, as other fonts make another picture.

    The base and the adapters are read from where the recipe says, or from where `base` and
    `adapters` say.

    Args:
        folder: the merged model.
        base: where the base is on this machine, if not where the recipe says.
        adapters: likewise the adapters, one for each of the recipe's terms, in order.
        device: where to calculate: "cpu", "cuda" or "auto".
        progress: show a progress bar.
        download: download what the recipe names and the hub's cache lacks; otherwise it is refused.

    Raises:
        LabkitError: an export, which is no merge; an input that is missing; or the first
            difference: the file and the tensor, and which input is not the one that was merged,
            where the recipe knows.
    """
    where = user_path(folder)
    if not where.is_dir():
        raise LabkitError(f"{shown(where)} is no folder; name the folder of a merged model")
    if is_export(where):
        raise LabkitError(
            f"{shown(where)} is an export, and only merged models are verified; where it holds a "
            f"{FILE_NAME}, "
            f"{spelled('lk.plan(lk.Recipe.load(…)).write', 'labkit merge --recipe')} makes the "
            "model again"
        )
    if not (where / FILE_NAME).is_file():
        raise LabkitError(
            f"{shown(where)} holds no {FILE_NAME}; name the folder of a model that labkit merged"
        )
    if not download:
        _require_here(where / FILE_NAME, base, adapters)
    resolved = plan(Recipe.load(where / FILE_NAME, base, adapters))
    chosen = choose_device(device)
    files = output_files(resolved, chosen)
    total = sum(file.size for file in files)
    try:
        others = side_files(resolved).files
        names = {*(file.name for file in files), *others, *OWN_FILES}
        with bar_of(total, progress, "verify") as bar:
            comparison = _Comparison(Engine(resolved, chosen, bar), where)
            comparison.compare(files)
        for name, content in others.items():
            expected = content.read_bytes() if isinstance(content, Path) else content
            if not (where / name).is_file() or (where / name).read_bytes() != expected:
                raise LabkitError(f"{shown(where / name)} is missing or not as the recipe makes it")
        extra = _extra_files(where, names)
        sums = _require_sums(where, resolved, comparison, names)
    except OSError as error:
        raise LabkitError(
            f"cannot read {shown(error.filename or where)}: {error.strerror}"
        ) from error
    except LabkitError as error:
        changed = _changed_inputs(resolved)
        if changed and changed not in str(error):
            raise LabkitError(f"{error}; {changed}") from error
        raise
    return Verified(
        where,
        len(files) + len(others),
        len(resolved.changes),
        total,
        sums,
        tuple(_not_compared(where, resolved)),
        extra,
    )


def _require_here(
    recipe: Path, base: str | Path | None, adapters: Sequence[str | Path] | None
) -> None:
    """Check that nothing is downloaded that somebody else's recipe names."""
    for source in named_sources(recipe, base, adapters):
        if source.on_hub and not source.is_cached:
            raise LabkitError(
                f"{shown(recipe)} names {source}, which is not on this machine; let it be "
                f"downloaded with {spelled('download=True', '--yes')}, or say where it is "
                f"({spelled('base=, adapters=', '--base, --adapter')})"
            )


def _extra_files(folder: Path, names: set[str]) -> tuple[str, ...]:
    """The files of a folder that labkit did not write.

    Raises:
        LabkitError: a loader of models would read one.
    """
    extra = sorted(files_in(folder) - names)
    read = [name for name in extra if is_side_file(name) or _is_loaded(name)]
    if read:
        raise LabkitError(
            f"{shown(folder)} loads as another model than the recipe's: it holds "
            f"{shown(', '.join(read[:MOST_NAMED]))} beside what the recipe makes; remove what does "
            "not belong there"
        )
    return tuple(extra)


def _is_loaded(name: str) -> bool:
    """Whether a loader may read a file; of those in folders of their own only code."""
    deep = "/" in name
    return any(fnmatchcase(name, pattern) and deep == ("/" in pattern) for pattern in LOADED)


def _require_sums(folder: Path, resolved: Plan, comparison: _Comparison, names: set[str]) -> int:
    """Check the SHA-256 values of recipe and receipt; give back how many there are.

    Raises:
        LabkitError: one is not that of its file.
    """
    recipe = resolved.recipe
    said = [
        (source.folder / name, digest)
        for source in recipe.sources
        for name, digest in recipe.sha256.get(source.reference, {}).items()
    ]
    read = dict(comparison.read_hashes)
    read |= {str(path): hash_file(path) for path, _ in said if str(path) not in read}
    changed = recipe.changed_files(read)
    if changed:
        raise LabkitError("; ".join(changed))
    listed = read_json(folder / RECEIPT).get("files_written") if _has_receipt(folder) else {}
    written = listed if isinstance(listed, dict) else {}
    for name, digest in written.items():
        if name not in names:
            raise LabkitError(
                f"{shown(folder / RECEIPT)} names {shown(name)}, which the recipe does not make"
            )
        found = comparison.written_hashes.get(name) or hash_file(folder / name)
        if found != digest:
            raise LabkitError(
                f"{shown(folder / RECEIPT)} says another SHA-256 of {shown(name)} than the file has"
            )
    return len(said) + len(written)


def _has_receipt(folder: Path) -> bool:
    return (folder / RECEIPT).is_file()


def _not_compared(folder: Path, resolved: Plan) -> Iterator[str]:
    """What of labkit's own files may say anything, or is not there."""
    if (folder / CARD).is_file():
        yield CARD
    yield f"{RECEIPT} but for its sums" if _has_receipt(folder) else f"{RECEIPT}, which is missing"
    picture = folder / PICTURE
    if not picture.is_file() or picture.read_bytes() != picture_of(resolved):
        yield f"{PICTURE}, which is not as labkit draws it here"


class _DifferenceError(Exception):
    """A file is not as the recipe makes it; the text says where it first differs."""


class _Comparison:
    """Compares the output files with those in a folder, and finds the first difference.

    Two files are compared at once. Within each, pieces are finished in the order of their bytes, so
    the first difference that is raised is the file's first.

    Attributes:
        read_hashes: the SHA-256 of the base's files, by path.
        written_hashes: the SHA-256 of the files in the folder, by name.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.read_hashes: dict[str, str] = {}
        self.written_hashes: dict[str, str] = {}
        self._threads = threading.local()
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
                written = made.written
                assert written is not None  # noqa: S101 - all pieces are read into memory
                # Of a merged piece both buffers are full, and the base's bytes are hashed later.
                copied = made.piece.tensor is None
                spare = made.slot.merged if copied else self._own_memory()
                step = max(1, len(written)) if copied else STEP
                for start in range(0, len(written), step):
                    expected = np.frombuffer(written[start : start + step], np.uint8)
                    found = there.read(spare, made.piece.target + start, len(expected))
                    different = np.frombuffer(found, np.uint8) != expected
                    if different.any():
                        first = start + int(different.argmax())
                        raise _DifferenceError(self._words(file, made.piece, first))

            hashes = FileHashes(file, source, self.engine.stopped)

            def finish(made: MadePiece) -> None:
                if min(self._differences, default=number) < number:
                    raise _DifferenceError("nobody asks: a file before this one differs")
                hashes.add(made)

            self.engine.stream(file, source, compare, finish)
            read, self.written_hashes[file.name] = hashes.digests()
            self.read_hashes[str(file.source.path)] = read

    def _own_memory(self) -> memoryview:
        """A page buffer of this thread's."""
        if not hasattr(self._threads, "memory"):
            self._threads.memory = page_memory(room_for(STEP))
        memory: memoryview = self._threads.memory
        return memory

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
