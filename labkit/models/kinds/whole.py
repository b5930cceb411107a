"""A parameter that the adapter holds whole: `modules_to_save`, a trained bias or embedding."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from labkit.deltas.replacements import WholeReplacement
from labkit.errors import shown
from labkit.files.tensor_file import StoredTensor
from labkit.models.kinds.part import CHECKED_ELEMENTS, Match, Part, require_saved
from labkit.models.kinds.tokens import TokenRows

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint

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
        tokens: rows of it that the file holds apart, and that count in place of its own.
        checked: whether it is known before a merge that its numbers are finite.
    """

    name: str
    parameter: str
    tensor: StoredTensor
    tokens: TokenRows | None = None
    checked: bool = True
    rank: int = field(init=False, default=0)
    scaling: float = field(init=False, default=math.nan)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensor in the file, and that of rows that are apart."""
        return (self.tensor, *(self.tokens.tensors if self.tokens else ()))

    @property
    def memory(self) -> int:
        """Bytes in memory: it is read block by block, and so are elements merged by themselves."""
        return (4 << 20) + (self.tokens.memory if self.tokens else 0)

    @property
    def known_by_key(self) -> bool:
        """Its key could be any model's."""
        return False

    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """A parameter lies as the base's does; with a row for each token it may have other rows.

        Trainers make an embedding larger for new tokens, or as small as the tokenizer.
        """
        found = match.tensor.shape
        resized = (
            match.tensor.name in base.vocabulary
            and len(self.shape) == len(found) == 2
            and self.shape[1] == found[1]
        )
        return False if self.shape == found or resized else None

    def delta(self, match: Match) -> WholeReplacement:
        """`W_adapter − W`, read as it is needed."""
        rows = self.tokens.read() if self.tokens else None
        return WholeReplacement(self.tensor, match.tensor, tokens=rows, checked=self.checked)

    def vocabulary(self, tensor: StoredTensor) -> int:
        """Its rows."""
        return self.shape[0]

    def resizes(self, tensor: StoredTensor) -> bool:
        """Whether it has another number of rows than the base's tensor."""
        return self.shape != tensor.shape

    def equals(self, other: Part) -> bool:
        """Whether it holds the same numbers as another."""
        if not isinstance(other, WholeTensor):
            return False
        if (self.tokens and self.tokens.indices) != (other.tokens and other.tokens.indices):
            return False
        return all(map(_equal, self.tensors, other.tensors))


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.file, one.start, one.stop) == (other.file, other.start, other.stop):
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    blocks = zip(one.blocks(CHECKED_ELEMENTS), other.blocks(CHECKED_ELEMENTS), strict=True)
    return all(bool((mine == theirs).all()) for (_, mine), (_, theirs) in blocks)


def read(key: str, tensor: StoredTensor) -> WholeTensor:
    """Read a parameter by its key: `NAME.modules_to_save.weight`, or the base's own name."""
    require_saved(f"parameter {shown(key)!r}", tensor)
    saved = SAVED.fullmatch(key)
    if saved:
        # modules_to_save.weight, modules_to_save.default.weight, …default.inner.weight
        inside = f".{saved['inside']}".rstrip(".") if saved["inside"] else ""
        return WholeTensor(saved["module"] + inside, saved["last"] or saved["leaf"], tensor)
    module, _, parameter = key.rpartition(".")
    while module.endswith(".base_layer"):  # the module itself, inside the LoRA that wraps it
        module = module.removesuffix(".base_layer")
    return WholeTensor(module.removesuffix(".token_adapter"), parameter, tensor)


def with_tokens(trained: Sequence[Part], wholes: Sequence[WholeTensor]) -> list[Part]:
    """Put trained rows to the embedding that they are rows of, where the file holds it whole.

    PEFT saves both where a vocabulary was resized; the rows then count in place of the whole's.
    """
    rows = {part.name: part for part in trained if isinstance(part, TokenRows)}
    joined = [
        replace(whole, tokens=rows.get(whole.name)) if whole.parameter == "weight" else whole
        for whole in wholes
    ]
    taken = {whole.name for whole in joined if whole.tokens}
    apart = [part for part in trained if not (part.name in taken and isinstance(part, TokenRows))]
    return [*apart, *joined]
