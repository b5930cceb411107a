"""RunsTable: runs as rows that are sorted, named, starred, compared and brought back.

The browser draws the rows and says what was pressed (`runs_table.js`, `runs.css`); what then
happens is decided in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import traitlets

from labkit.errors import LabkitError, shown
from labkit.widgets.sources import scripted, styled

MOST_COMPARED = 2


class RunsTable(anywidget.AnyWidget):
    """A table of runs.

    Args:
        actions: what a press does, by its name: "recall" (key), "rename" (key, name), "star" (key,
            whether), "compare" (keys). A `LabkitError` from one is shown below the table.
    """

    _esm = scripted("runs_table.js")
    _css = styled("runs.css")

    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    """For each run its `key`, `name`, whether it is `fixed` (always there) and `starred`; `said`,
    the line below its name; its `gradient` in words, the `bars` of its gradients, each a list of
    weights, and the `mean` weight; `first`, `second` and `kl`, each a number with the ends of its
    interval to the base, or None; `seconds` or None, `time` in seconds since 1970 or None."""
    texts = traitlets.List(traitlets.Unicode(), ["", ""]).tag(sync=True)
    """The names of the two texts."""
    current = traitlets.Unicode("").tag(sync=True)
    """The key of the run that is on the screen; "" for none."""
    compared = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """The keys of the runs that are marked to be compared."""
    problem = traitlets.Unicode("").tag(sync=True)

    def __init__(self, actions: Mapping[str, Callable[..., None]], **traits: Any) -> None:
        super().__init__(**traits)
        self._actions = dict(actions)
        self.on_msg(self._pressed)

    def _pressed(self, _: Any, content: Any, __: Any) -> None:
        self.problem = ""
        given = content if isinstance(content, dict) else {}
        key, kind = str(given.get("key")), given.get("kind")
        try:
            if kind == "compare":
                self.compared = [str(one) for one in given.get("keys", ())][-MOST_COMPARED:]
                self._actions["compare"](list(self.compared))
            elif kind == "recall":
                self._actions["recall"](key)
            elif kind == "rename":
                self._actions["rename"](key, str(given.get("name")))
            elif kind == "star":
                self._actions["star"](key, bool(given.get("starred")))
            else:
                raise LabkitError(f"the table of runs does not know the request {shown(kind)!r}")
        except (LabkitError, traitlets.TraitError) as error:
            self.problem = str(error)
