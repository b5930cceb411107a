"""Single rows of an embedding (`trainable_token_indices`), which replace the base's rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from labkit.deltas.replacements import RowReplacement
from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor
from labkit.models.adapter_config import CONFIG
from labkit.models.kinds.part import Match, ModuleTensors, Part

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint


KEYS = ((r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?", "rows"),)


@dataclass(frozen=True)
class TokenRows(Part):
    """Rows of an embedding that were trained: they add `w·(W_adapter − W)`, in those rows.

    Attributes:
        name: the module's name.
        tensor: the rows as they were trained, one after the other.
        indices: their numbers in the embedding.
    """

    name: str
    tensor: StoredTensor
    indices: tuple[int, ...]
    parameter: str = "weight"
    rank: int = field(init=False, default=0)
    scaling: float = field(init=False, default=math.nan)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows."""
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensor in the file."""
        return (self.tensor,)

    @property
    def memory(self) -> int:
        """Bytes in float64."""
        return 8 * math.prod(self.shape)

    @property
    def follows_tie(self) -> bool:
        """PEFT carries the rows over to a tied head by itself."""
        return True

    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """Rows lie in one way only."""
        found = match.tensor.shape
        fits = len(found) == 2 and self.shape[1] == found[1] and self._last < found[0]
        return False if fits else None

    @property
    def _last(self) -> int:
        return max(self.indices, default=0)

    def misfit(self, match: Match) -> str:
        """Say which rows it trains."""
        return (
            f"trains rows up to {self._last} of width {self.shape[1]}, but the base's "
            f"{shown(match.tensor.name)!r} has shape {match.tensor.shape}"
        )

    def delta(self, match: Match) -> RowReplacement:
        """Read the rows."""
        return RowReplacement(*self.read(), match.tensor)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows stand in the embedding, and their numbers in float64."""
        return np.array(self.indices, dtype=np.int64), self.tensor.read()


def read(found: ModuleTensors) -> TokenRows | None:
    """Take a module's trained rows out of its tensors, if it has some.

    Raises:
        LabkitError: another number of rows than the config names.
    """
    rows = found.tensors.pop("rows", None)
    if rows is None:
        return None
    indices = found.config.token_indices(found.module)
    if len(rows.shape) != 2 or rows.shape[0] != len(indices):
        raise LabkitError(
            f"{found.where} has trained token rows of shape {rows.shape}, but {CONFIG} names "
            f"{len(indices)} tokens; the config belongs to another adapter"
        )
    return TokenRows(found.module, rows, indices)
