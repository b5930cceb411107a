"""The parts of an adapter: each changes one parameter of the base, and says how.

part            what it holds                         what it adds at weight w
LoraModule      A, B, scaling                         w·s·B·A
  with magnitude (DoRA)                               w·(m/‖W+sBA‖·(W + sBA) − W)
ExpertLora      A and B of all experts of a stack     w·s·B_e·A_e to expert e
BiasOfB         the bias of lora_B                    w·s·b
WholeTensor     a parameter that was trained whole    w·(W_adapter − W)
TokenRows       rows of an embedding                  w·(W_adapter − W), in those rows
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labkit.files.tensor_file import StoredTensor

if TYPE_CHECKING:
    from labkit.deltas.delta import LowRank


@dataclass(frozen=True)
class LoraModule:
    """One module that a LoRA changes, as it lies in the adapter's file.

    Attributes:
        name: the module's name in the base model: `model.layers.0.self_attn.q_proj`.
        a: the factor `A`, of shape r × in.
        b: the factor `B`, of shape out × r.
        scaling: `s` in `ΔW = s·B·A`: alpha / r, or alpha / √r for rsLoRA.
        magnitude: DoRA's `m`, one number for each output; None for a plain LoRA.
        embedding: the module is an embedding, whose weight is stored as in × out.
        turned: the file holds `Aᵀ` and `Bᵀ`, as MLX-LM writes them.
    """

    name: str
    a: StoredTensor
    b: StoredTensor
    scaling: float
    magnitude: StoredTensor | None = None
    embedding: bool = False
    turned: bool = False
    parameter: str = "weight"

    @property
    def rank(self) -> int:
        """The rank r of its factors."""
        return self.a.shape[1] if self.turned else self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of `ΔW`: out × in."""
        if self.turned:
            return self.b.shape[1], self.a.shape[0]
        return self.b.shape[0], self.a.shape[1]

    @property
    def plain(self) -> bool:
        """Whether it adds `w·s·B·A` and nothing else, to a linear module."""
        return self.magnitude is None and not self.embedding

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensors in the file."""
        return (self.a, self.b) if self.magnitude is None else (self.a, self.b, self.magnitude)

    @property
    def memory(self) -> int:
        """Bytes of its factors in float64."""
        return sum(self.shape) * self.rank * 8

    def delta(self) -> LowRank:
        """Read the factors: `s·B·A` in float64, of shape out × in, never multiplied out.

        For DoRA that is the direction's change only; the magnitude comes on top.
        """
        from labkit.deltas.delta import LowRank

        a, b = self.a.read(), self.b.read()
        if self.turned:
            a, b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
        return LowRank(b * self.scaling, a)


@dataclass(frozen=True)
class ExpertLora:
    """A LoRA on the stacked matrices of all experts (PEFT's `target_parameters`).

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

    def factors_of(self, expert: int) -> LowRank:
        """Read one expert's `s·B_e·A_e`, as `peft.tuners.lora.layer.ParamWrapper` lays it out."""
        from labkit.deltas.delta import LowRank

        a = self.a.read_rows(expert * self.rank, (expert + 1) * self.rank)
        b = self.b.read()[:, expert :: self.experts] * self.scaling
        return LowRank(np.ascontiguousarray(b), a)


@dataclass(frozen=True)
class BiasOfB:
    """The bias that `lora_bias` gives to `lora_B`: `s·b` is added to the module's bias."""

    name: str
    tensor: StoredTensor
    scaling: float
    parameter: str = "bias"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what it changes."""
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Its tensor in the file."""
        return (self.tensor,)

    @property
    def memory(self) -> int:
        """Bytes in float64."""
        return 16 * self.tensor.elements

    def delta(self) -> LowRank:
        """Read it: a matrix of one column."""
        from labkit.deltas.delta import LowRank

        column = self.tensor.read().reshape(-1, 1) * self.scaling
        return LowRank(column, np.ones((1, 1)))


@dataclass(frozen=True)
class WholeTensor:
    """A parameter that the adapter holds whole: `modules_to_save`, a trained bias or embedding."""

    name: str
    parameter: str
    tensor: StoredTensor

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


@dataclass(frozen=True)
class TokenRows:
    """Single rows of an embedding (`trainable_token_indices`), which replace the base's rows."""

    name: str
    tensor: StoredTensor
    indices: tuple[int, ...]
    parameter: str = "weight"

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

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows' numbers, and the rows in float64."""
        return np.array(self.indices, dtype=np.int64), self.tensor.read()


Part = LoraModule | ExpertLora | BiasOfB | WholeTensor | TokenRows
