"""FrontPicker: a picture of dots, one of which is picked with mouse or keyboard.

The browser draws the dots and says which one was pressed (`front_picker.js`, `front_picker.css`);
what then happens is decided in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from labkit.errors import LabkitError, shown
from labkit.widgets.sources import scripted, styled


class FrontPicker(anywidget.AnyWidget):
    """Dots over a curve: a click on one, or Enter, picks it.

    Args:
        dots: for each dot its `name`; where it lies, `x` and `y`; the ends of its whisker, `low`
            and `high`, or None; the `label` beside it; what is `said` of it where it is pointed at;
            its `color`.
        curve: the points that a line is drawn through.
        axes: what lies along the horizontal axis, and along the vertical one.
        pick: called with the name of a dot that was pressed. A `LabkitError` from it is shown.
    """

    _esm = scripted("axes.js", "front_picker.js")
    _css = styled("front_picker.css")

    dots = traitlets.List(traitlets.Dict()).tag(sync=True)
    curve = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    axes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    chosen = traitlets.Unicode("").tag(sync=True)
    """The name of the dot that is marked; "" for none."""
    problem = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        dots: Sequence[Mapping[str, Any]],
        curve: Sequence[Sequence[float]],
        axes: tuple[str, str],
        pick: Callable[[str], None],
        **traits: Any,
    ) -> None:
        super().__init__(
            dots=[dict(dot) for dot in dots],
            curve=[[float(one) for one in point] for point in curve],
            axes=[shown(axis, 120) for axis in axes],
            **traits,
        )
        self._pick = pick
        self.on_msg(self._pressed)

    def _pressed(self, _: Any, content: Any, __: Any) -> None:
        name = str(content.get("name")) if isinstance(content, dict) else ""
        self.problem = ""
        try:
            if name not in [dot["name"] for dot in self.dots]:
                raise LabkitError(f"there is no dot {shown(name)!r}")
            self._pick(name)
        except (LabkitError, traitlets.TraitError) as error:
            self.problem = str(error)
