"""Which lists of layer weights a fit chooses among: free ones, and lists that people can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64

from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import LiveModel
from labkit.merging.recipe import Term

Family = Literal["free", "anchors", "ramp", "step", "constant"]
FAMILIES = ("free", "anchors", "ramp", "step", "constant")
ANCHORS = 6
DECIMALS = 2
"""Fitted weights are rounded, so that a list can be read and posted; what is measured of them is
measured of the rounded list."""

Cells = Float64[np.ndarray, " cells"]


class LayerWeights:
    """All layer weights of a model's adapters as one vector of cells.

    A cell is the weight of a layer, or of a kind of module in a layer, of one adapter. A chain is
    the cells of one adapter (and kind) from the first layer to the last.

    Args:
        model: the live model.
        by: "layer", or "kind" for the layer weights of each kind of module.

    Attributes:
        chains: the adapter's number and the kind ("" by layer) of each chain.
        layers: how many cells a chain has.
        adapters: how many adapters the model has.

    Raises:
        LabkitError: another `by`.
    """

    def __init__(self, model: LiveModel, by: Literal["layer", "kind"]) -> None:
        if by not in ("layer", "kind"):
            raise LabkitError(f"by is {shown(repr(by))}; expected layer or kind")
        self._model = model
        self.layers, self.adapters = model.base.layers, len(model.adapters)
        kinds = [name.rsplit(".", 1)[-1] if by == "kind" else "" for _, name in model.module_names]
        inside = [model.layer_of(*key) for key in model.module_names]
        self.chains = list(
            dict.fromkeys(
                (adapter, kind)
                for (adapter, _), kind, layer in zip(model.module_names, kinds, inside, strict=True)
                if layer is not None
            )
        )
        numbers = {chain: number for number, chain in enumerate(self.chains)}
        # modules × cells: 1 where a module has the cell's weight. Outside the layers: the rest.
        self._of_module = np.zeros((len(kinds), len(self)))
        self._rest = np.zeros(len(kinds))
        for row, ((adapter, _), kind, layer) in enumerate(
            zip(model.module_names, kinds, inside, strict=True)
        ):
            if layer is None:
                self._rest[row] = model.rest or 0.0
            else:
                self._of_module[row, numbers[adapter, kind] * self.layers + layer] = 1

    def __len__(self) -> int:
        return len(self.chains) * self.layers

    def modules(self, cells: Cells) -> Float64[np.ndarray, " modules"]:
        """The weight of every module."""
        found: Cells = self._of_module @ cells + self._rest
        return found

    def slopes(self, of_modules: Float64[np.ndarray, " modules"]) -> Cells:
        """Derivatives by cells, of those by modules."""
        found: Cells = of_modules @ self._of_module
        return found

    def constant(self, weights: Iterable[float]) -> Cells:
        """One weight for all layers of each adapter."""
        every = list(weights)
        return np.repeat([float(every[adapter]) for adapter, _ in self.chains], self.layers)

    def constants(self, cells: Cells) -> list[float]:
        """The weight of each adapter in the first layer, of lists that `constant` makes."""
        first = {adapter: row[0] for (adapter, _), row in zip(
            reversed(self.chains), reversed(cells.reshape(-1, self.layers)), strict=True
        )}  # fmt: skip
        return [float(first.get(adapter, 0.0)) for adapter in range(self.adapters)]

    def roughness(self) -> Float64[np.ndarray, "cells cells"]:
        """The matrix `R` of `½·wᵀRw`, the sum of `(w_{l+1} - w_l)²`, a mean over chains.

        A sum: the mean over layers charges a shape that is stretched to twice as many of them a
        quarter, and held little together. By the sum thirty layers of one LoRA fit less of what
        is particular to a few passages (benchmarks/README.md).
        """
        steps = np.diff(np.eye(self.layers), axis=0)
        count = len(self.chains)
        return np.kron(np.eye(count), 2 * steps.T @ steps / max(1, count))

    def gradients(self, cells: Cells) -> dict[tuple[int, str], Gradient]:
        """The gradient of each chain."""
        rows = cells.reshape(len(self.chains), self.layers)
        return {chain: Gradient(row) for chain, row in zip(self.chains, rows, strict=True)}

    def mean_weight(self, cells: Cells) -> float:
        """The mean over all cells."""
        return float(cells.mean())

    def terms(self, cells: Cells) -> tuple[Term, ...]:
        """The terms of a recipe; by kind, a term's own weights are the mean of its kinds."""
        found = self.gradients(cells)
        terms = []
        for number, adapter in enumerate(self._model.adapters):
            mine = {kind: one for (index, kind), one in found.items() if index == number}
            if set(mine) == {""}:
                terms.append(Term(adapter, mine[""]))
            else:
                mean = Gradient(np.mean([list(one) for one in mine.values()], axis=0))
                terms.append(Term(adapter, mean.rounded(DECIMALS), mine))
        return tuple(terms)

    def shown(self, cells: Cells) -> Gradient | Mapping[str, Gradient]:
        """The gradient; of several adapters or kinds, by the key that `live.weights` takes."""
        found = self.gradients(cells)
        if self.chains == [(0, "")]:
            return found[0, ""]
        names = [adapter.name for adapter in self._model.adapters]
        return {
            names[adapter] + (f":{kind}" if kind else ""): one
            for (adapter, kind), one in found.items()
        }

    def bases(self, family: Family) -> list[Float64[np.ndarray, "parameters cells"]]:
        """The lists of a family: `parameters @ basis`, for one of the bases.

        - "free": every cell for itself.
        - "anchors": six weights spread evenly over the depth, straight lines between
          (`Gradient.from_anchors`).
        - "ramp": one straight line from the first layer to the last.
        - "step": one weight before a layer and another from it on; the layer is the same for all
          chains, and each layer has a basis.
        - "constant": one weight for each adapter.

        Raises:
            LabkitError: an unknown family.
        """
        if family == "free":
            return [np.eye(len(self))]
        if family == "constant":
            own = np.eye(self.adapters)
            return [np.stack([self.constant(row) for row in own])]
        each = np.eye(len(self.chains))
        if family == "step":
            before = np.arange(self.layers)[None, :] < np.arange(1, self.layers)[:, None]
            return [np.kron(each, np.stack([one, ~one]).astype(float)) for one in before]
        if family in ("anchors", "ramp"):
            count = min(self.layers, ANCHORS if family == "anchors" else 2)
            shapes = [
                list(Gradient.from_anchors(self.layers, row)) for row in np.eye(count).tolist()
            ]
            return [np.kron(each, np.array(shapes))]
        raise LabkitError(
            f"the family {shown(repr(family))} is unknown; known are {', '.join(FAMILIES)}"
        )
