"""A LoRA on the stacked matrices of all experts of a layer (PEFT's `target_parameters`).

The base keeps the experts as one stack of matrices, or, as most checkpoints on disk do, each expert
in tensors of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labkit.deltas.delta import Delta
from labkit.deltas.low_rank import LowRank
from labkit.deltas.row_block import RowBlock
from labkit.deltas.total import Total
from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor
from labkit.models.adapter_config import CONFIG, AdapterConfig
from labkit.models.kinds.part import BakedInto, Match, Part

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint

TRANSPOSED_EXPERTS = ("gpt_oss",)
"""Models whose stacked experts are stored as experts × in × out and say so (`is_transposed`)."""


@dataclass(frozen=True)
class ExpertLora(Part):
    """A LoRA on one stack of experts.

    Attributes:
        name: the module that holds the stack: `model.layers.0.mlp.experts`.
        parameter: the stack's name in it: `gate_up_proj`.
        a: all factors `A`, of shape (experts · r) × in, one expert after the other.
        b: all factors `B`, of shape out × (r · experts), the experts' columns interleaved.
        scaling: `s`.
        rank: r of each expert.
    """

    name: str
    parameter: str
    a: StoredTensor
    b: StoredTensor
    scaling: float
    rank: int

    @property
    def experts(self) -> int:
        """How many experts the stack has."""
        return self.a.shape[0] // self.rank

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of one expert's `ΔW`: out × in."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensors in the file."""
        return self.a, self.b

    @property
    def memory(self) -> int:
        """Bytes of its factors in float64."""
        return sum(self.shape) * self.rank * self.experts * 8

    def matches(self, base: Checkpoint) -> list[Match] | str:
        """The stack; or every expert's own matrices."""
        whole = base.find(f"{self.name}.{self.parameter}")
        if isinstance(whole, StoredTensor):
            return [Match(whole)]
        return self._single(base) or whole

    def _single(self, base: Checkpoint) -> list[Match]:
        out = self.shape[0]
        halves = {"gate_up_proj": (("gate_proj", (0, out // 2)), ("up_proj", (out // 2, out)))}
        found = []
        for expert in range(self.experts):
            for leaf, rows in halves.get(self.parameter, ((self.parameter, None),)):
                tensor = base.find(f"{self.name}.{expert}.{leaf}.weight")
                if isinstance(tensor, str):
                    return []
                found.append(Match(tensor, expert, rows))
        beyond = base.find(f"{self.name}.{self.experts}.{leaf}.weight")
        return found if isinstance(beyond, str) else []

    def shape_in(self, match: Match) -> tuple[int, ...]:
        """One expert's shape; or that of some of its rows, where the tensor gets no more."""
        if match.rows:
            return match.rows[1] - match.rows[0], self.shape[1]
        return self.shape

    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """By the shape; where that is square, as the model's class says of its stacks."""
        found, expected = match.tensor.shape, self.shape_in(match)
        if match.expert is None and len(found) == 3 and found[0] == self.experts:
            found = found[1:]
        straight, turned = found == expected, found == expected[::-1]
        if straight and turned:
            known = base.config.get("model_type") in TRANSPOSED_EXPERTS
            return match.expert is None and known
        return turned if straight or turned else None

    def delta(self, match: Match) -> Delta:
        """Read one expert's product; or all of them, each in its rows of the stack."""
        if match.expert is not None:
            product = self._product(match.expert)
            if match.rows:
                left = np.ascontiguousarray(product.left[slice(*match.rows)])
                product = LowRank(left, product.right)
            return product.transposed() if match.transposed else product
        rows = match.tensor.shape[-2]
        products = map(self._product, range(self.experts))
        oriented = (one.transposed() if match.transposed else one for one in products)
        blocks = [RowBlock(one, expert * rows) for expert, one in enumerate(oriented)]
        return Total(blocks, match.tensor)

    def _product(self, expert: int) -> LowRank:
        """Read one expert's `s·B_e·A_e`, as `peft.tuners.lora.layer.ParamWrapper` lays it out."""
        a = self.a.read_rows(expert * self.rank, (expert + 1) * self.rank)
        b = self.b.read()[:, expert :: self.experts] * self.scaling
        return LowRank(np.ascontiguousarray(b), a)

    def bakes_into(self, scale_factors: bool) -> BakedInto:
        """The factor B: PEFT names the experts' stacks in another way in `alpha_pattern`."""
        return "lora_B"

    @property
    def baked_factor(self) -> StoredTensor:
        """The factors B."""
        return self.b


def read(
    module: str, layers: list[tuple[int, dict[str, StoredTensor]]], config: AdapterConfig
) -> Iterator[ExpertLora]:
    """Read the factors of a module's stacks.

    Args:
        module: the module that holds the stacks.
        layers: for each stack, how many wrappers (`base_layer`) its factors lie inside, and they.
        config: the adapter's config.

    Raises:
        LabkitError: another number of stacks than the config names, or factors of other shapes.
    """
    parameters = config.parameters(module)
    where = f"module {shown(module)!r} of {shown(config.name)}"
    if len(parameters) != len(layers):
        raise LabkitError(
            f"{where} has factors for {len(layers)} parameters, but target_parameters in {CONFIG} "
            f"names {len(parameters)} of it; the config belongs to another adapter"
        )
    # Of nested wrappers the innermost holds the first parameter.
    for parameter, (_, tensors) in zip(
        parameters, sorted(layers, key=lambda layer: -layer[0]), strict=True
    ):
        name = f"{module}.{parameter}"
        rank = config.rank_of(name)
        a, b = tensors.get("lora_A"), tensors.get("lora_B")
        if a is None or b is None or set(tensors) != {"lora_A", "lora_B"}:
            raise LabkitError(f"{where} needs exactly lora_A and lora_B for {shown(parameter)!r}")
        shapes = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
        if not shapes or a.shape[0] % rank or not a.shape[0]:
            raise LabkitError(
                f"{where} has factors A {a.shape} and B {b.shape} for {shown(parameter)!r}; "
                f"expected A (experts·{rank}) × in and B out × ({rank}·experts)"
            )
        yield ExpertLora(module, parameter, a, b, config.scaling_of(name, rank), rank)
