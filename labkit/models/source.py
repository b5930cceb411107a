"""`Source`: what a term of a recipe adds to the base, by its parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from labkit.errors import shown
from labkit.files.references import Opened
from labkit.models.kinds.part import Part

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint


class Source(Opened):
    """Something opened that has parts to add: an adapter, or a full model.

    Attributes:
        kind: what it is, as plans and cards name it: "adapter", "model".
        parts: everything it changes, in the order of its file.
        trained_on: files with the text that it was trained on, where they are known; whoever opens
            it may name them, so that measurements on that text warn.
    """

    kind: ClassVar[str]
    parts: tuple[Part, ...]
    trained_on: tuple[str | Path, ...] = ()

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Size of its tensors' files in bytes."""

    @property
    @abstractmethod
    def read_files(self) -> tuple[Path, ...]:
        """The files that a merge reads of it."""

    @abstractmethod
    def require_unchanged(self) -> None:
        """Check that its files are still those that were opened.

        Raises:
            LabkitError: one was changed, replaced or removed since.
        """

    def why_skipped(self, part: Part, base: Checkpoint | None) -> str | None:
        """Why a part is left out of every merge; None for one that is merged.

        Args:
            part: one of its parts.
            base: what it is to be merged into, where that is known.
        """
        return None

    def brings_tokenizer(self, base: Checkpoint) -> bool:
        """Whether its tokenizer, if it has a whole one, takes the place of the base's."""
        return True

    def wanted_base(self, base: Checkpoint) -> str:
        """What to do where some of its parts match nothing in the base."""
        return f"the {self.kind} was made for another model"

    def gives_head(self, base: Checkpoint) -> bool:
        """Whether what it changes in the embedding is meant for a head that is tied to it, too."""
        return False

    def require_selection(self, base: Checkpoint | None) -> None:
        """Check that not all of it is left out.

        Raises:
            LabkitError: it is.
        """

    def require_base(self, base: Checkpoint) -> None:
        """Check what must hold of it and a base as a whole.

        Raises:
            LabkitError: the two are of different architectures.
        """

    def notes(self, base: Checkpoint) -> Iterator[str]:
        """What is worth knowing before it is merged into a base."""
        yield from ()

    def describe(self, part: Part) -> str:
        """How errors name one of its parts."""
        return f"module {shown(part.name)!r} of {shown(self.name)}"
