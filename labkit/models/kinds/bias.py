"""The bias that `lora_bias` gives to `lora_B`: `w·s·b` is added to the module's own bias."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from labkit.deltas.low_rank import LowRank
from labkit.errors import LabkitError
from labkit.files.tensor_file import StoredTensor
from labkit.models.kinds.lora import LoraModule, only_whole
from labkit.models.kinds.part import BakedInto, Match, ModuleTensors, Part

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint


KEYS = ((r"(?P<module>.+)\.lora_B(?:\.[^.]+)?\.bias", "bias of B"),)


@dataclass(frozen=True)
class BiasOfB(Part):
    """The bias of `lora_B`.

    Attributes:
        name: the module's name.
        tensor: `b`, one number for each output.
        scaling: `s`.
    """

    name: str
    tensor: StoredTensor
    scaling: float
    parameter: str = "bias"
    rank: int = field(init=False, default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the bias that it changes."""
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensor in the file."""
        return (self.tensor,)

    @property
    def memory(self) -> int:
        """Bytes in float64."""
        return 16 * self.tensor.elements

    @property
    def needs_selection(self) -> bool:
        """As for the LoRA that it belongs to."""
        return True

    def matches(self, base: Checkpoint) -> list[Match] | str:
        """Its module's bias, in a tensor of its own."""
        found = super().matches(base)
        if isinstance(found, str) and not isinstance(base.find(f"{self.name}.weight"), str):
            return "the base has no bias there, which lora_bias adds to"
        return only_whole(self, found, base)

    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """A vector lies in one way only."""
        return False if match.tensor.shape == self.shape else None

    def delta(self, match: Match) -> LowRank:
        """Read `s·b`: a matrix of one column."""
        return LowRank(self.tensor.read().reshape(-1, 1) * self.scaling, np.ones((1, 1)))

    def bakes_into(self, scale_factors: bool) -> BakedInto:
        """The alpha of its module, which scales it too; or itself."""
        return "lora_B" if scale_factors else "alpha_pattern"

    @property
    def baked_factor(self) -> StoredTensor:
        """Itself."""
        return self.tensor


def read(lora: LoraModule, found: ModuleTensors) -> BiasOfB | None:
    """Read the bias of a module's factor B, if it has one.

    Raises:
        LabkitError: a bias of another length.
    """
    bias = found.tensors.get("bias of B")
    if bias is None:
        return None
    if bias.shape != (lora.shape[0],):
        raise LabkitError(
            f"{found.where} has a lora_B.bias of shape {bias.shape}; expected ({lora.shape[0]},)"
        )
    return BiasOfB(found.module, bias, lora.scaling)
