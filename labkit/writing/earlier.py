"""An earlier merge, of which a new one takes over what is the same (`labkit merge --from`).

The bytes of a merged tensor hang on the bytes of the base's tensor and on what is added to it, by
which parts of which files, with which weights, by which method, to which dtype; and on nothing
else. A receipt therefore keeps the SHA-256 of each of the base's files, and of each changed tensor
the SHA-256 of all the rest (`made_of`). A tensor is taken over where both are as they were, and
where the earlier file itself still has the SHA-256 that the receipt has of it.

Sizes, times and inodes are not asked: a file that was put back from a backup, or copied with its
times kept, can have the same ones and other bytes, and one such tensor would end labkit's promise
that a recipe's bytes are always the same. So what is taken over is read once, and the base with it.
The receipt itself is believed: it is the word of a folder of one's own. `labkit verify` believes
nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, shown, spelled
from labkit.files.atomic_folder import RECEIPT
from labkit.files.direct_io import hash_file
from labkit.files.paths import user_path
from labkit.files.small_files import read_json
from labkit.files.tensor_file import open_tensor_file
from labkit.writing.layout import EarlierFile, OutputFile, taken_over
from labkit.writing.receipt import MadeOf, TensorReceipt

if TYPE_CHECKING:
    from labkit.merging.matching import Change
    from labkit.merging.planning import Plan


class Sums:
    """The SHA-256 of files by path, each taken once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """The SHA-256 of a file, in hexadecimal."""
        if path not in self._known:
            self._known[path] = hash_file(path)
        return self._known[path]


def made_of(plan: Plan, sums: Sums, base_files: Mapping[str, str]) -> MadeOf:
    """What a merge's tensors are made of, as its receipt keeps it.

    Args:
        plan: the merge.
        sums: takes the SHA-256 of what is added.
        base_files: the SHA-256 of the base's files, by name.
    """
    return MadeOf(dict(base_files), _tensors_of(plan, sums))


def _tensors_of(plan: Plan, sums: Sums) -> dict[str, str]:
    """Of each tensor that changes the SHA-256 of what decides its bytes, but the base's file."""
    from labkit import __version__

    base = plan.base
    # What the base's files are called and hold decides which part changes which tensor.
    names = [[t.name, t.dtype, t.shape] for t in base.tensors.values()]
    shared = [__version__, base.config, base.tied, names, plan.recipe.untie]
    of_all = _sum_of(shared)
    sources = [
        _sum_of([term.source.kind, [[path.name, sums.of(path)] for path in term.source.read_files]])
        for term in plan.recipe.terms
    ]
    return {
        name: _sum_of([of_all, name, plan.output_dtype(change.tensor), *_words(change, sources)])
        for name, change in plan.changes.items()
    }


def _words(change: Change, sources: list[str]) -> Iterable[Any]:
    yield [change.layer, change.shape, change.term_weights]
    yield [change.method.name, sorted(vars(change.method).items())]
    for one in change.contributions:
        tensors = [tensor.name for tensor in one.part.tensors]
        yield [one.term, sources[one.term], one.part.name, one.part.parameter, tensors,
               one.weight, one.for_head]  # fmt: skip


def _sum_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Earlier:
    """A merge that is there already.

    Attributes:
        folder: where it is.
        made_of: what its tensors are made of.
        files: the SHA-256 of its files, by name.
        tensors: what its receipt says of the tensors that it changed, by name.
    """

    folder: Path
    made_of: MadeOf
    files: Mapping[str, str]
    tensors: Mapping[str, TensorReceipt]

    @staticmethod
    def open(folder: str | Path) -> Earlier:
        """Read a merge's receipt.

        Raises:
            LabkitError: there is none, or it does not say what its tensors are made of.
        """
        where = user_path(folder)
        if not (where / RECEIPT).is_file():
            raise LabkitError(
                f"{shown(where)} holds no {RECEIPT}; name the folder of a model that labkit merged"
            )
        content = read_json(where / RECEIPT)
        try:
            known = content["made_of"]
            made = MadeOf(dict(known["base"]), dict(known["tensors"]))
            tensors = {one["name"]: TensorReceipt.from_json(one) for one in content["tensors"]}
            return Earlier(where.absolute(), made, dict(content["files_written"]), tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise LabkitError(
                f"{shown(where / RECEIPT)} does not say what each tensor was made of, so that "
                "nothing can be taken over from it: it was written without SHA-256 sums "
                f"({spelled('hashes=False', '--no-hash')}), or by an older labkit; merge once "
                f"without {spelled('reuse=', '--from')}"
            ) from error

    def offer(self, plan: Plan, files: list[OutputFile], sums: Sums) -> list[OutputFile]:
        """Mark in the output files what may be taken over, if the bytes are as the receipt has it.

        Args:
            plan: the new merge.
            files: its files.
            sums: takes the SHA-256 of what is added.

        Raises:
            LabkitError: a file that is added cannot be read.
        """
        wanted = _tensors_of(plan, sums)
        same = {
            name
            for name, made in wanted.items()
            # Of a base with NaN or infinity the new receipt shall count them again.
            if self.made_of.tensors.get(name) == made
            and name in self.tensors
            and self.tensors[name].is_finite
        }
        changed = plan.changes.keys() | self.made_of.tensors.keys()
        return [self._offered(file, same, changed - same) for file in files]

    def _offered(self, file: OutputFile, same: set[str], other: set[str]) -> OutputFile:
        path = self.folder / file.name
        names = {tensor.name for tensor in file.tensors}
        of_base, own = self.made_of.base.get(file.source.path.name), self.files.get(file.name)
        if not (names & same and of_base and own and path.is_file()):
            return file
        there = open_tensor_file(path)
        if there.header_bytes != file.header or there.size != file.size:
            return file
        whole = not names & other
        taken = frozenset(names & same)
        earlier = EarlierFile(there, of_base, own, whole, taken, file.pieces)
        return replace(file, pieces=taken_over(file.pieces, taken, whole), earlier=earlier)
