"""A LoRA on a linear module: `w·s·B·A`.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.deltas.delta import Delta
from labkit.deltas.low_rank import LowRank
from labkit.deltas.row_block import RowBlock
from labkit.errors import LabkitError, shown
from labkit.files.tensor_file import StoredTensor
from labkit.models.adapter_config import CONFIG
from labkit.models.kinds.part import (
    CONV1D_MODELS,
    BakedInto,
    Match,
    ModuleTensors,
    Part,
    require_saved,
)
from labkit.models.names import EXPERT_RENAMED

if TYPE_CHECKING:
    from labkit.models.checkpoint import Checkpoint


FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Modules that some models keep as one (Phi-3, say), and those that others keep in their place."""
OTHER_STACKS = ("gpt_oss", "llama4", "llama4_text")
"""Models whose stacks of experts are transposed, or whose gate and up matrices are interleaved."""


KEYS = ((r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.[^.]+)?\.weight", "lora_"),)
"""How PEFT names the factors. Adapters saved from memory carry the adapter's name in the key:
`lora_A.default.weight`."""
MLX_KEYS = ((r"(?P<module>.+)\.lora_(?P<factor>[ab])", "lora_"),)
"""How MLX-LM names them."""


@dataclass(frozen=True)
class LoraModule(Part):
    """One linear module that a LoRA changes, as it lies in the adapter's file.

    Attributes:
        name: the module's name in the base model: `model.layers.0.self_attn.q_proj`.
        a: the factor `A`, of shape r × in.
        b: the factor `B`, of shape out × r.
        scaling: `s` in `ΔW = s·B·A`: alpha / r, or alpha / √r for rsLoRA.
        turned: the file holds `Aᵀ` and `Bᵀ`, as MLX-LM writes them.
        rank: r.
    """

    name: str
    a: StoredTensor
    b: StoredTensor
    scaling: float
    turned: bool = False
    parameter: str = "weight"
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", self.a.shape[1] if self.turned else self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of `ΔW`: out × in."""
        if self.turned:
            return self.b.shape[1], self.a.shape[0]
        return self.b.shape[0], self.a.shape[1]

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensors in the file."""
        return self.a, self.b

    @property
    def memory(self) -> int:
        """Bytes of its factors in float64."""
        return sum(self.shape) * self.rank * 8

    @property
    def factors(self) -> LoraModule:
        """Itself."""
        return self

    @property
    def plain(self) -> bool:
        """It adds `w·s·B·A` and nothing else."""
        return True

    @property
    def needs_selection(self) -> bool:
        """PEFT loads it only where `target_modules` names it."""
        return True

    def matches(self, base: Checkpoint) -> list[Match] | str:
        """Its module; or the tensor that holds it beside others, or those that it stands for."""
        found = super().matches(base)
        if isinstance(found, str) and type(self) is LoraModule:
            return _inside(self, base) or _over(self, base) or found
        return found

    def shape_in(self, match: Match) -> tuple[int, ...]:
        """Its own shape; or that of some of its rows, where the tensor gets no more."""
        if match.rows:
            return match.rows[1] - match.rows[0], self.shape[1]
        return self.shape

    def orientation(self, match: Match, base: Checkpoint) -> bool | None:
        """By the shape; where that is square, by how the model's class stores its modules."""
        found, expected = match.tensor.shape, self.shape_in(match)
        if match.block is not None:
            first, last = match.block
            return False if expected == (last - first, match.tensor.shape[-1]) else None
        straight, turned = found == expected, found == expected[::-1]
        if straight and turned:
            return base.config.get("model_type") in CONV1D_MODELS
        if straight or turned:
            return turned
        # A head may know more tokens than the base's, which then grows.
        grows = match.tensor.name in base.vocabulary and found[1:] == expected[1:]
        return False if grows and expected[0] > found[0] else None

    def vocabulary(self, tensor: StoredTensor) -> int | None:
        """How many tokens a head's knows: its rows."""
        return self.shape[0]

    def misfit(self, match: Match) -> str:
        """Say which rows are meant, where the base's tensor holds other modules too."""
        if match.block is None:
            return super().misfit(match)
        first, last = match.block
        return (
            f"changes a tensor of shape {self.shape}, but the base keeps that module in rows "
            f"{first} to {last - 1} of {shown(match.tensor.name)!r}, which are {last - first} rows "
            f"of width {match.tensor.shape[-1]}"
        )

    def product(self) -> LowRank:
        """Read the factors: `s·B·A` in float64, of shape out × in, never multiplied out."""
        a, b = self.a.read(), self.b.read()
        if self.turned:
            a, b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
        return LowRank(b * self.scaling, a)

    def delta(self, match: Match) -> Delta:
        """Read `s·B·A`, in the orientation and at the place that it has in the base's tensor."""
        product = self.product()
        if match.rows:
            product = LowRank(np.ascontiguousarray(product.left[slice(*match.rows)]), product.right)
        if match.block is not None:
            return RowBlock(product, match.block[0])
        return product.transposed() if match.transposed else product

    def bakes_into(self, scale_factors: bool) -> BakedInto:
        """Its own alpha; the factor B where that is asked for, or MLX-LM knows no such alpha."""
        return "lora_B" if scale_factors or self.turned else "alpha_pattern"

    @property
    def baked_factor(self) -> StoredTensor:
        """The factor B."""
        return self.b


def read(found: ModuleTensors) -> LoraModule:
    """Read a module's two factors, and check them.

    Raises:
        LabkitError: a factor is missing, is no matrix, or has another rank than the config says.
    """
    mlx = found.config.mlx
    a, b = take_factors(found, ("lora_a", "lora_b") if mlx else ("lora_A", "lora_B"))
    rank = found.config.rank_of(found.module)
    require_rank(found, a, b, rank)
    scaling = found.config.scaling_of(found.module, rank)
    return LoraModule(found.module, a, b, scaling, turned=mlx)


def take_factors(found: ModuleTensors, names: tuple[str, str]) -> tuple[StoredTensor, StoredTensor]:
    """Take the two factors of a module.

    Raises:
        LabkitError: one is missing, or is no matrix.
    """
    a, b = (found.tensors.get(name) for name in names)
    if a is None or b is None:
        raise LabkitError(
            f"{found.where} has only {next(iter(found.tensors))}; both {names[0]} and {names[1]} "
            "are needed; get the adapter's file again"
        )
    require_saved(found.where, a, b)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise LabkitError(
            f"{found.where} has factors of shape {a.shape} and {b.shape}; expected two matrices: "
            "only linear modules, embeddings and target_parameters are merged"
        )
    return a, b


def require_rank(found: ModuleTensors, a: StoredTensor, b: StoredTensor, rank: int) -> None:
    """Check that two factors have the rank that the config says.

    Raises:
        LabkitError: they have another.
    """
    mlx = found.config.mlx
    ranks = (a.shape[1], b.shape[0]) if mlx else (a.shape[0], b.shape[1])
    if ranks == (rank, rank):
        return
    expected = f"A {rank} × in and B out × {rank}"
    if mlx:
        expected = f"A in × {rank} and B {rank} × out"
    raise LabkitError(
        f"{found.where} has factors A {a.shape} and B {b.shape}, but its rank in {CONFIG} is "
        f"{rank}; expected {expected}; the config belongs to another adapter, or its "
        "rank_pattern is incomplete"
    )


def only_whole(part: Part, found: list[Match] | str, base: Checkpoint) -> list[Match] | str:
    """Say of a module that is no plain LoRA where the base keeps it, if not in a tensor of its own.

    Args:
        part: what changes the module.
        found: its matches, or why there are none.
        base: the base.
    """
    places = [] if isinstance(found, list) else _inside(part, base) or _over(part, base)
    if not places:
        return found
    names = ", ".join(shown(match.tensor.name) for match in places)
    return f"the base keeps it in {names}, where labkit merges plain LoRA only"


def _inside(lora: Part, base: Checkpoint) -> list[Match]:
    """The tensor that holds the module beside others: a stack of experts, a fused projection."""
    parent, _, leaf = lora.name.rpartition(".")
    for fused, leaves in FUSED.items():
        if leaf not in leaves:
            continue
        tensor = base.find(f"{parent}.{fused}.weight")
        sizes = _rows_of(fused, base, tensor) if isinstance(tensor, StoredTensor) else None
        if isinstance(tensor, StoredTensor) and sizes:
            first = sum(sizes[: leaves.index(leaf)])
            return [Match(tensor, block=(first, first + sizes[leaves.index(leaf)]))]
    experts, _, number = parent.rpartition(".")
    if not (number.isdecimal() and experts.endswith("experts")):
        return []
    if base.config.get("model_type") in OTHER_STACKS:
        return []
    leaf = EXPERT_RENAMED.get(leaf, leaf)
    of_fused = leaf in FUSED["gate_up_proj"]
    stack = base.find(f"{experts}.{'gate_up_proj' if of_fused else leaf}")
    if not isinstance(stack, StoredTensor) or len(stack.shape) != 3:
        return []
    if int(number) >= stack.shape[0]:
        return []
    rows = stack.shape[1]
    first = int(number) * rows
    half = first + rows // 2
    blocks = {"gate_proj": (first, half), "up_proj": (half, first + rows)}
    return [Match(stack, block=blocks.get(leaf, (first, first + rows)))]


def _over(lora: Part, base: Checkpoint) -> list[Match]:
    """The tensors that a fused module stands for, each with its rows of it."""
    parent, _, leaf = lora.name.rpartition(".")
    tensors = [base.find(f"{parent}.{one}.weight") for one in FUSED.get(leaf, ())]
    found, first = [], 0
    for tensor in tensors:
        if isinstance(tensor, str) or len(tensor.shape) != 2:
            return []
        found.append(Match(tensor, rows=(first, first + tensor.shape[0])))
        first += tensor.shape[0]
    return found if first == lora.shape[0] else []


def _rows_of(fused: str, base: Checkpoint, tensor: StoredTensor) -> list[int] | None:
    """How many rows of a fused tensor each of its modules has; None if that is not known."""
    rows = tensor.shape[0]
    if fused == "gate_up_proj":
        return [rows // 2, rows // 2] if rows % 2 == 0 else None
    config = base.language_config
    heads, width = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    groups = _count(config, "num_key_value_heads") or heads
    size = _count(config, "head_dim") or (width // heads if heads else 0)
    sizes = [heads * size, groups * size, groups * size]
    return sizes if sum(sizes) == rows else None


def _count(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if type(value) is int and value > 0 else 0
