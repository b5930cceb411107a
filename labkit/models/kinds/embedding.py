"""A LoRA on an embedding: `w·s·(B·A)ᵀ`, since the base stores an embedding as tokens × width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.files.tensor_file import StoredTensor
from labkit.models.kinds.lora import LoraModule, require_rank, take_factors
from labkit.models.kinds.part import Match, ModuleTensors

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint


KEYS = ((r"(?P<module>.+)\.lora_embedding_(?P<factor>[AB])(?:\.[^.]+)?", "lora_embedding_"),)


@dataclass(frozen=True)
class EmbeddingLora(LoraModule):
    """A LoRA on an embedding: `A` of shape r × tokens, `B` of shape width × r."""

    @property
    def plain(self) -> bool:
        """A live model and a bake treat embeddings apart."""
        return False

    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """Always transposed; it may know more tokens than the base, which then grows."""
        width, tokens = self.shape
        found = match.tensor.shape
        if found == (tokens, width):
            return True
        larger = match.tensor.name in base.vocabulary and width == found[-1] and tokens > found[0]
        return True if larger else None

    def vocabulary(self, tensor: StoredTensor) -> int:
        """How many tokens it knows."""
        return self.shape[1]


def read(found: ModuleTensors) -> EmbeddingLora:
    """Read an embedding's two factors, and check them.

    Raises:
        LabkitError: as for a linear module's.
    """
    a, b = take_factors(found, ("lora_embedding_A", "lora_embedding_B"))
    rank = found.config.rank_of(found.module)
    require_rank(found, a, b, rank)
    return EmbeddingLora(found.module, a, b, found.config.scaling_of(found.module, rank))
