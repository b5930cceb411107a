"""Plain sliders for a gradient: for hosts that show ipywidgets but not anywidget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ipywidgets
import traitlets

from labkit.gradients.gradient import Gradient
from labkit.widgets.editor import GradientEditor


class Sliders(ipywidgets.VBox):
    """One vertical slider for each layer. Has the `weights` and `gradient` of a GradientEditor."""

    weights = traitlets.List(traitlets.Float())
    link: Any = None
    """The link to an editor, if there is one; `link.unlink()` ends it."""

    def __init__(
        self, gradient: Gradient, bounds: tuple[float, float] = (0.0, 1.0), step: float = 0.01
    ) -> None:
        low, high = min(bounds[0], *gradient), max(bounds[1], *gradient)
        self._sliders = [
            ipywidgets.FloatSlider(
                value=weight,
                min=low,
                max=high,
                step=step,
                description=str(layer),
                orientation="vertical",
                readout_format=".2f",
                continuous_update=True,
                layout=ipywidgets.Layout(width="44px", height="180px", flex="0 0 auto"),
            )
            for layer, weight in enumerate(gradient)
        ]
        self._mean = ipywidgets.Label()
        row = ipywidgets.HBox(
            self._sliders,
            # Many layers do not fit in one row: the row scrolls instead of squeezing them.
            layout=ipywidgets.Layout(overflow="auto", width="100%"),
        )
        super().__init__([row, self._mean])
        self.weights = list(gradient)
        self._say_mean()
        for layer, slider in enumerate(self._sliders):
            slider.observe(lambda change, layer=layer: self._slid(layer, change["new"]), "value")
        self.observe(lambda _: self._show(), "weights")

    @property
    def gradient(self) -> Gradient:
        """What the sliders show, as a value."""
        return Gradient(self.weights)

    @gradient.setter
    def gradient(self, gradient: Gradient | Iterable[float]) -> None:
        checked = gradient if isinstance(gradient, Gradient) else Gradient(gradient)
        checked.require(len(self._sliders), "the sliders")
        self.weights = list(checked)

    def _slid(self, layer: int, value: float) -> None:
        if self.weights[layer] != value:
            self.weights = [*self.weights[:layer], value, *self.weights[layer + 1 :]]

    def _show(self) -> None:
        for slider, weight in zip(self._sliders, self.weights, strict=True):
            # A slider clips what it cannot reach, which would change the weights in silence.
            slider.min, slider.max = min(slider.min, weight), max(slider.max, weight)
            slider.value = weight
        self._say_mean()

    def _say_mean(self) -> None:
        self._mean.value = f"mean weight {self.gradient.mean:.2f}"


def sliders(gradient: Gradient | GradientEditor | Iterable[float]) -> Sliders:
    """Plain ipywidgets sliders for a gradient, or on the same state as an editor.

    Args:
        gradient: the weights to start with; or a `GradientEditor`, and then editor and sliders
            always show the same weights, whichever of the two is moved.

    Raises:
        LabkitError: as `Gradient` says for bad weights.
    """
    if isinstance(gradient, GradientEditor):
        made = Sliders(gradient.gradient, gradient.bounds, gradient.step)
        made.link = traitlets.link((gradient, "weights"), (made, "weights"))
        return made
    return Sliders(gradient if isinstance(gradient, Gradient) else Gradient(gradient))
