"""A parameter that the adapter holds whole: `modules_to_save`, a trained bias or embedding."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from labkit.deltas.replacements import WholeReplacement
from labkit.files.tensor_file import StoredTensor
from labkit.models.kinds.part import Match, Part

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint

COMPARED_ELEMENTS = 1 << 20
SAVED = re.compile(
    r"(?P<module>.+?)\.modules_to_save\.(?:(?P<last>[^.]+)|[^.]+\.(?P<inside>.+\.)?(?P<leaf>[^.]+))"
)


@dataclass(frozen=True)
class WholeTensor(Part):
    """A parameter that was trained whole: it adds `w·(W_adapter − W)`.

    Attributes:
        name: the module's name.
        parameter: the parameter's name in it.
        tensor: the parameter as it was trained.
    """

    name: str
    parameter: str
    tensor: StoredTensor
    rank: int = field(init=False, default=0)
    scaling: float = field(init=False, default=math.nan)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensor in the file."""
        return (self.tensor,)

    @property
    def memory(self) -> int:
        """Bytes in memory: it is read block by block."""
        return 1 << 20

    @property
    def known_by_key(self) -> bool:
        """Its key could be any model's."""
        return False

    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """A parameter lies as the base's does; with one row for each token, it may have more."""
        found = match.tensor.shape
        larger = (
            match.tensor.name in base.vocabulary
            and len(self.shape) == len(found) == 2
            and self.shape[1] == found[1]
            and self.shape[0] >= found[0]
        )
        return False if self.shape == found or larger else None

    def delta(self, match: Match) -> WholeReplacement:
        """`W_adapter − W`, read as it is needed."""
        return WholeReplacement(self.tensor, match.tensor)

    def vocabulary(self, tensor: StoredTensor) -> int:
        """Its rows."""
        return self.shape[0]

    def grows(self, tensor: StoredTensor) -> bool:
        """Whether it has more rows than the base's tensor."""
        return self.shape != tensor.shape

    def equals(self, other: Part) -> bool:
        """Whether it holds the same numbers as another."""
        if not isinstance(other, WholeTensor):
            return False
        mine, theirs = self.tensor, other.tensor
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return False
        return all(
            bool((one == another).all())
            for (_, one), (_, another) in zip(
                mine.blocks(COMPARED_ELEMENTS), theirs.blocks(COMPARED_ELEMENTS), strict=True
            )
        )


def read(key: str, tensor: StoredTensor) -> WholeTensor:
    """Read a parameter by its key: `NAME.modules_to_save.weight`, or the base's own name."""
    saved = SAVED.fullmatch(key)
    if saved:
        # modules_to_save.weight, modules_to_save.default.weight, …default.inner.weight
        inside = f".{saved['inside']}".rstrip(".") if saved["inside"] else ""
        return WholeTensor(saved["module"] + inside, saved["last"] or saved["leaf"], tensor)
    module, _, parameter = key.rpartition(".")
    while module.endswith(".base_layer"):  # the module itself, inside the LoRA that wraps it
        module = module.removesuffix(".base_layer")
    return WholeTensor(module, parameter, tensor)
