"""ChoiceSlider: a slider over a few numbers, which a screen reader can name.

The sliders of ipywidgets have a handle without a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from labkit.widgets.sources import HERE, scripted


class ChoiceSlider(anywidget.AnyWidget):
    """A slider whose places are numbers of a list.

    Args:
        options: the numbers, from left to right.
        value: the one that is chosen at first.
        description: what it is called.
    """

    _esm = scripted("choice_slider.js")
    _css = HERE / "choice_slider.css"

    options = traitlets.List(traitlets.Float()).tag(sync=True)
    value = traitlets.Float().tag(sync=True)
    description = traitlets.Unicode().tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, options: Sequence[float], value: float, description: str, **traits: Any
    ) -> None:
        super().__init__(options=[*options], value=value, description=description, **traits)

    @traitlets.validate("value")
    def _is_an_option(self, proposal: Any) -> float:
        if proposal.value not in self.options:
            known = ", ".join(f"{one:g}" for one in self.options)
            raise traitlets.TraitError(f"{proposal.value:g} is none of {known}")
        return float(proposal.value)
