"""RunsPlane: the NLLs on two texts as points in a plane, each of which brings its run back.

The browser draws the points and says which one was pressed (`runs_plane.js`, `runs.css`); what
then happens is decided in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from labkit.errors import LabkitError
from labkit.widgets.sources import scripted, styled


class RunsPlane(anywidget.AnyWidget):
    """Points in a plane: a click on one, or Enter, brings its run back.

    Args:
        recall: called with the key of a point that was pressed. A `LabkitError` from it is shown.
    """

    _esm = scripted("axes.js", "runs_plane.js")
    _css = styled("runs.css")

    points = traitlets.List(traitlets.Dict()).tag(sync=True)
    """For each point its `key`; its `kind`: "run", "base", "full" or "best"; where it lies, `x` and
    `y`; the ends of its whiskers, `across` and `up`, or None; the `label` beside it, which may be
    empty; what is `said` of it where it is pointed at. Runs are in the order they were tried."""
    line = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    """The points of constants, from base to full LoRA."""
    texts = traitlets.List(traitlets.Unicode(), ["", ""]).tag(sync=True)
    """The text along the horizontal axis, and along the vertical one."""
    current = traitlets.Unicode("").tag(sync=True)
    """The key of the run that is on the screen; "" for none."""
    problem = traitlets.Unicode("").tag(sync=True)

    def __init__(self, recall: Callable[[str], None], **traits: Any) -> None:
        super().__init__(**traits)
        self._recall = recall
        self.on_msg(self._pressed)

    def _pressed(self, _: Any, content: Any, __: Any) -> None:
        self.problem = ""
        try:
            self._recall(str(content.get("key")) if isinstance(content, dict) else "")
        except (LabkitError, traitlets.TraitError) as error:
            self.problem = str(error)
