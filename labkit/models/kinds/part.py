"""`Part`: what an adapter changes in one parameter of the base, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor

if TYPE_CHECKING:
    from labkit.deltas.delta import Delta
    from labkit.models.adapter_config import AdapterConfig
    from labkit.models.checkpoint import Checkpoint

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models whose linear modules transformers stores as in × out (its Conv1D)."""

CHECKED_ELEMENTS = 1 << 20
"""Numbers that are looked at in one go."""

BakedInto = Literal["alpha_pattern", "lora_B"]
"""What can carry a layer weight inside an adapter."""


@dataclass
class ModuleTensors:
    """The tensors of one module in an adapter's file, sorted by what their keys say they are.

    Attributes:
        module: the module's name in the base.
        tensors: what each is ("lora_A", "magnitude", …) -> the tensor.
        config: the adapter's config.
    """

    module: str
    tensors: dict[str, StoredTensor]
    config: AdapterConfig

    @property
    def where(self) -> str:
        """How errors name the module."""
        return f"module {shown(self.module)!r} of {shown(self.config.name)}"


def require_saved(where: str, *tensors: StoredTensor) -> None:
    """Check that tensors were not saved empty.

    Raises:
        LabkitError: one has no numbers: the training kept them elsewhere.
    """
    for tensor in tensors:
        if tensor.elements == 0:
            raise LabkitError(
                f"{where} was saved empty ({shown(tensor.name)!r} has shape {tensor.shape}), as by "
                "DeepSpeed ZeRO-3 where the parts are not gathered; save it again with "
                "stage3_gather_16bit_weights_on_model_save, or convert the checkpoint with "
                "zero_to_fp32.py"
            )


@dataclass(frozen=True)
class Match:
    """A tensor of the base that a part changes, and which of its rows are the part's.

    Attributes:
        tensor: the base's tensor.
        expert: the number of the expert that the tensor belongs to, where the part is a stack of
            experts and the base keeps each in tensors of its own.
        rows: of the part's rows, those that this tensor gets (the first, and the one after the
            last), where the base splits what the part holds in one. None for all.
        block: of the tensor's rows, those that the part changes (likewise), where the base holds
            several modules in one tensor. None for all.
        transposed: the base stores this tensor as in × out.
    """

    tensor: StoredTensor
    expert: int | None = None
    rows: tuple[int, int] | None = None
    block: tuple[int, int] | None = None
    transposed: bool = False


class Part(ABC):
    """What an adapter changes in one parameter of the base.

    Attributes:
        name: the module's name in the base model: `model.layers.0.self_attn.q_proj`.
        parameter: the parameter's name in its module: "weight", "bias".
        rank: the rank of its factors; 0 without factors.
        scaling: `s` in `ΔW = s·B·A`; NaN for a change of another form.
        checked: whether a plan looks at all its numbers; else a merge does, when it reads them.
    """

    checked: bool = True
    name: str
    parameter: str
    rank: int
    scaling: float

    # What it holds

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of what it holds: out × in for factors."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensors in the file."""

    @property
    @abstractmethod
    def memory(self) -> int:
        """Bytes of memory that its numbers take while a tensor is merged."""

    @property
    def factors(self) -> Part | None:
        """The LoRA with its one pair of factors A and B; None for what has no such pair."""
        return None

    @property
    def plain(self) -> bool:
        """Whether it adds `w·s·B·A` and nothing else, to a linear module."""
        return False

    @property
    def known_by_key(self) -> bool:
        """Whether its key in the file says that it belongs to a LoRA."""
        return True

    @property
    def needs_selection(self) -> bool:
        """Whether PEFT loads it only where the config's `target_modules` names its module."""
        return False

    def changes_something(self) -> bool:
        """Whether what it adds is not 0: it was trained."""
        return any(bool(values.any()) for _, values in self.tensors[-1].blocks(CHECKED_ELEMENTS))

    # How it finds its place in the base

    def matches(self, base: Checkpoint) -> list[Match] | str:
        """Find the base's tensors that it changes, or say why there are none."""
        found = base.find(f"{self.name}.{self.parameter}")
        if isinstance(found, StoredTensor):
            return [Match(found)]
        head = base.head
        if base.is_head(self.name) and self.parameter == "weight" and head is not None:
            return [Match(head)]
        return found

    @abstractmethod
    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """Whether the base stores the tensor as in × out; None if its shape does not fit."""

    def shape_in(self, match: Match) -> tuple[int, ...]:
        """The shape that it expects of a tensor."""
        return self.shape

    def misfit(self, match: Match) -> str:
        """What to say of a tensor whose shape does not fit, after the part's name."""
        return (
            f"changes a tensor of shape {self.shape_in(match)}, but the base's "
            f"{shown(match.tensor.name)!r} has shape {match.tensor.shape}"
        )

    # What it adds

    @abstractmethod
    def delta(self, match: Match) -> Delta:
        """Read `ΔW`, in float64 and in the orientation of the base's tensor."""

    def vocabulary(self, tensor: StoredTensor) -> int | None:
        """How many tokens it knows, where the tensor has a row for each; None if it cannot tell."""
        return None

    def resizes(self, tensor: StoredTensor) -> bool:
        """Whether it has another number of rows than the base's tensor."""
        return False

    @property
    def follows_tie(self) -> bool:
        """Whether PEFT carries it over from an embedding to a head that is tied to it."""
        return False

    def equals(self, other: Part) -> bool:
        """Whether it and another part are known to leave the same numbers in their tensors."""
        return False

    # How it carries a layer weight by itself

    def bakes_into(self, scale_factors: bool) -> BakedInto | None:
        """What carries a layer weight inside the adapter; None if nothing can.

        Args:
            scale_factors: prefer a scaled factor B.
        """
        return None

    @property
    def baked_factor(self) -> StoredTensor:
        """The tensor that a bake scales."""
        raise NotImplementedError
