"""DoRA: a LoRA that changes the direction of each output's weights, and a magnitude for each.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv 2402.09353.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from labkit.deltas.delta import NORM_ELEMENTS
from labkit.deltas.low_rank import LowRank
from labkit.deltas.scaling import Scaling
from labkit.deltas.total import Total
from labkit.errors import LabkitError
from labkit.files.tensor_file import StoredTensor
from labkit.models.adapter_config import CONFIG
from labkit.models.kinds.lora import LoraModule, only_whole
from labkit.models.kinds.part import Match, ModuleTensors, Part
from labkit.models.kinds.whole import WholeTensor

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint


KEYS = (
    (r"(?P<module>.+)\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?", "magnitude"),
)
MLX_KEYS = ((r"(?P<module>.+)\.m", "magnitude"),)


@dataclass(frozen=True)
class DoraModule(Part):
    """A module whose merged weight is `m/‖W + sBA‖ · (W + sBA)`, one norm for each output.

    Attributes:
        direction: the LoRA, of a linear module or an embedding.
        magnitude: `m`, one number for each output.
        replaced: the module's weight, where the adapter holds that whole: it is `W` then, as it is
            for PEFT, which loads it in place of the base's.
        name: the module's name.
        rank: the LoRA's.
        scaling: the LoRA's.
    """

    direction: LoraModule
    magnitude: StoredTensor
    replaced: WholeTensor | None = None
    name: str = field(init=False)
    parameter: str = field(init=False, default="weight")
    rank: int = field(init=False)
    scaling: float = field(init=False)

    def __post_init__(self) -> None:
        for attribute in ("name", "rank", "scaling"):
            object.__setattr__(self, attribute, getattr(self.direction, attribute))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `B·A`: out × in."""
        return self.direction.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensors in the file."""
        return (*self.direction.tensors, self.magnitude)

    @property
    def memory(self) -> int:
        """Bytes of the LoRA's factors in float64, and what its weight takes where that is whole."""
        return self.direction.memory + (self.replaced.memory if self.replaced else 0)

    @property
    def factors(self) -> LoraModule:
        """The direction's LoRA."""
        return self.direction

    @property
    def needs_selection(self) -> bool:
        """As for a LoRA."""
        return True

    def matches(self, base: Checkpoint) -> list[Match] | str:
        """Its module, in a tensor of its own."""
        return only_whole(self, super().matches(base), base)

    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """As the LoRA's; but rows for new tokens would need norms of what the base lacks."""
        transposed = self.direction.orientation(match, base)
        expected = self.shape[::-1] if transposed else self.shape
        return transposed if match.tensor.shape == expected else None

    def delta(self, match: Match) -> Total:
        """Read `m/‖W + sBA‖·(W + sBA) − W`: the base's rows scaled, and a product of factors."""
        source = match.tensor
        replaced = self.replaced.delta(match) if self.replaced else None
        product = self.direction.product()
        product = product.transposed() if match.transposed else product
        magnitude = self.magnitude.read().reshape(-1)
        blocks = replaced.blocks() if replaced else source.blocks(NORM_ELEMENTS)
        factors = magnitude / _norms(source, blocks, product, match.transposed)
        scaled = (
            LowRank(product.left, product.right * factors)
            if match.transposed
            else LowRank(product.left * factors[:, None], product.right)
        )
        scaling = Scaling(factors - 1, match.transposed, source, replaced)
        return Total([scaling, scaled], source)

    def vocabulary(self, tensor: StoredTensor) -> int | None:
        """As the LoRA's."""
        return self.direction.vocabulary(tensor)


def read(direction: LoraModule, found: ModuleTensors) -> Part:
    """Put a magnitude to a LoRA, where config and file say that it is DoRA.

    Raises:
        LabkitError: only one of the two says so, or a magnitude of another length.
    """
    magnitude = found.tensors.get("magnitude")
    if found.config.dora and magnitude is None:
        raise LabkitError(
            f"{found.where} has no magnitude, though {CONFIG} says DoRA; get the adapter's file "
            "again"
        )
    if magnitude is None:
        return direction
    if not found.config.dora:
        raise LabkitError(
            f"{found.where} has a magnitude of DoRA, but {CONFIG} does not say DoRA (use_dora), "
            "and would be merged without it; correct the config"
        )
    if magnitude.elements != direction.shape[0]:
        raise LabkitError(
            f"{found.where} has a magnitude of shape {magnitude.shape}; expected "
            f"{direction.shape[0]} numbers, one for each output"
        )
    return DoraModule(direction, magnitude)


def on_replaced(parts: Sequence[Part]) -> list[Part]:
    """Tell DoRA's modules whose weight the adapter holds whole."""
    wholes = {
        part.name: part
        for part in parts
        if isinstance(part, WholeTensor) and part.parameter == "weight"
    }
    return [
        replace(part, replaced=wholes[part.name])
        if isinstance(part, DoraModule) and part.name in wholes
        else part
        for part in parts
    ]


def _norms(
    source: StoredTensor,
    blocks: Iterator[tuple[int, np.ndarray]],
    product: LowRank,
    transposed: bool,
) -> Float64[np.ndarray, " n"]:
    """`‖W + s·B·A‖` for each output of the module, in float64 (equation 5 of the paper).

    The norm runs over the inputs: over columns where the tensor is stored as out × in, over rows
    where as in × out. Sums are taken in a fixed order, so that the norms are the same everywhere.
    """
    rows, columns = source.matrix_shape
    squared = np.zeros(columns if transposed else rows)
    for start, total in blocks:
        for k in range(product.rank):
            total += product.left[start : start + len(total), k, None] * product.right[k]
        total *= total
        if transposed:
            squared += _sum_in_order(total.T)
        else:
            squared[start : start + len(total)] = _sum_in_order(total)
    return np.sqrt(squared)


def _sum_in_order(values: Float64[np.ndarray, "rows n"]) -> Float64[np.ndarray, " rows"]:
    """Sum each row by halves: element by element, so that no library chooses the order."""
    while values.shape[1] > 1:
        half = (values.shape[1] + 1) // 2
        other = values[:, half:]
        values = values[:, :half].copy()
        values[:, : other.shape[1]] += other
    return values[:, 0]
