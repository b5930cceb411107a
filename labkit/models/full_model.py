"""A full model as something to add to a base: `W_model − W`, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from labkit.errors import LabkitError, shown
from labkit.files.references import Fetch, locate
from labkit.files.tensor_file import FLOATS
from labkit.models.adapter import COMPUTED, Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.kinds.part import Part
from labkit.models.kinds.whole import WholeTensor
from labkit.models.model_files import ADAPTER_CONFIG, CONFIG, adapter_downloads, model_downloads
from labkit.models.source import Source


class FullModel(Source):
    """A model of the base's architecture; at weight 1 the merge has its tensor, at 0 the base's.

    Opening one reads JSON and headers only. Its numbers are read while a merge runs, in blocks.

    Attributes:
        checkpoint: its files.
        parts: its tensors, in the order of the files. Where its embedding serves as head too
            (tied), the head is a part of its own, for a base that keeps the two apart.
    """

    kind = "model"

    def __init__(self, reference: Checkpoint | str | Path) -> None:
        """Open a folder or a hub id (`owner/name[@revision][:subfolder]`).

        Raises:
            LabkitError: what `Checkpoint` refuses, or a model that is quantised.
        """
        self.checkpoint = Checkpoint.open(reference)
        self.checkpoint.require_unquantised()
        self._located = self.checkpoint._located
        tensors = [*self.checkpoint.tensors.values()]
        head = self.checkpoint.head
        if head is not None and head.name not in self.checkpoint.tensors:
            tensors.append(head)
        # A plan that looked at every number would read the whole model; a merge does it in passing.
        self.parts: tuple[Part, ...] = tuple(
            WholeTensor(module, parameter, tensor, checked=False)
            for tensor in tensors
            for module, _, parameter in [tensor.name.rpartition(".")]
        )

    @property
    def nbytes(self) -> int:
        """Size of its tensors' files in bytes."""
        return self.checkpoint.nbytes

    @property
    def read_files(self) -> tuple[Path, ...]:
        """Its tensors' files and its config."""
        return *(file.path for file in self.checkpoint.files), self.folder / CONFIG

    def require_unchanged(self) -> None:
        """Check that its files are still those that were opened.

        Raises:
            LabkitError: one was changed, replaced or removed since.
        """
        self.checkpoint.require_unchanged()

    def why_skipped(self, part: Part, base: Checkpoint | None) -> str | None:
        """What models compute by themselves, and what is no floating-point number."""
        (tensor,) = part.tensors
        if part.parameter in COMPUTED:
            return "models compute it by themselves"
        return (
            None if tensor.dtype in FLOATS else f"its dtype is {tensor.dtype}, which adds nothing"
        )

    def brings_tokenizer(self, base: Checkpoint) -> bool:
        """Two models of one vocabulary share the base's tokenizer; else the embedding's counts."""
        mine, theirs = self.checkpoint.embedding, base.embedding
        return mine is not None and theirs is not None and mine.shape != theirs.shape

    def require_base(self, base: Checkpoint) -> None:
        """Check that it has as many layers as the base, and every tensor that their layers have.

        Raises:
            LabkitError: it has not.
        """
        if self.checkpoint.layers != base.layers:
            raise LabkitError(
                f"the model {shown(self.name)} has {self.checkpoint.layers} layers and the base "
                f"{shown(base.name)} {base.layers}; models of one architecture and size can be "
                "merged"
            )
        missing = [
            name
            for name in base.tensors
            if base.layer_of(name) is not None
            and name.rpartition(".")[2] not in COMPUTED
            and isinstance(self.checkpoint.find(name), str)
        ]
        if missing:
            raise LabkitError(
                f"the model {shown(self.name)} lacks {len(missing)} tensors of the layers of the "
                f"base {shown(base.name)}, such as {shown(missing[0])!r}; models of one "
                "architecture can be merged"
            )

    def notes(self, base: Checkpoint) -> Iterator[str]:
        """A base and a model that are one."""
        if self.folder.resolve() == base.folder.resolve():
            yield f"{shown(self.name)} is the base itself: it changes nothing at any weight"

    def describe(self, part: Part) -> str:
        """How errors name one of its tensors."""
        return f"tensor {shown(part.tensors[0].name)!r} of {shown(self.name)}"

    def __repr__(self) -> str:
        return f"FullModel {shown(self.name)}: {self.checkpoint.layers} layers"


def open_source(reference: Source | Checkpoint | str | Path) -> Source:
    """Open what a term adds: an adapter where there is an adapter's config, else a full model.

    Args:
        reference: a folder or hub id; or what is open already.

    Raises:
        LabkitError: it can be opened as neither.
    """
    if isinstance(reference, Source):
        return reference
    if isinstance(reference, Checkpoint):
        return FullModel(reference)
    folder = locate(reference, "adapter", _downloads).folder
    is_model = (folder / CONFIG).is_file() and not (folder / ADAPTER_CONFIG).is_file()
    return FullModel(reference) if is_model else Adapter(reference)


def _downloads(reference: str, names: Sequence[str], fetch: Fetch) -> list[str]:
    is_model = CONFIG in names and ADAPTER_CONFIG not in names
    return (model_downloads if is_model else adapter_downloads)(reference, names, fetch)
