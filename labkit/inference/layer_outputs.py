"""What the layers of a model gave in one pass, for later passes that differ only above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


class LayerOutputs:
    """The output of every decoder layer in a pass, which stands in for the layer afterwards.

    Where two passes read the same tokens and differ only from one layer on, those below it give the
    same, and need not run again. The rest of the model runs as it is, so that the numbers are those
    of a whole pass, bit for bit. Keeping takes rows × length × hidden numbers for each layer.

    Args:
        layers: the decoder layers, in order.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._outputs: list[Any] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what the layers give in the pass that runs meanwhile."""
        self._outputs = []

        def keep(_module: nn.Module, _given: Any, output: Any) -> None:
            self._outputs.append(output)

        hooks = [layer.register_forward_hook(keep) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def standing_in(self, below: int) -> Iterator[None]:
        """In the pass that runs meanwhile, the layers before number `below` give what was kept."""
        replaced = list(zip(self._layers[:below], self._outputs, strict=False))
        try:
            for layer, output in replaced:
                # Found before the method of the class, for this layer alone.
                vars(layer)["forward"] = lambda *_, _output=output, **__: _output
            yield
        finally:
            for layer, _ in replaced:
                vars(layer).pop("forward", None)
