"""The fold "Texts": which two texts the plane, "What matters" and the fit read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import ipywidgets

from labkit.bench import view
from labkit.errors import LabkitError, shown
from labkit.probing.text_plane import Given, as_texts
from labkit.probing.texts import Texts

FILE, OWN = "a file …", "own text …"
AXES = ("first text: what the merge is for", "second text: what it should leave alone")
OWN_NAMES = ("own first text", "own second text")


class TextChoice:
    """Two choices of a text: of those known, from a file, or typed in.

    Args:
        known: texts by name.
        now: the names of the two that are read now.
        use: told the two texts when another one is chosen.

    Attributes:
        widget: what is shown.
    """

    def __init__(
        self,
        known: Mapping[str, Given],
        now: Sequence[str],
        use: Callable[[dict[str, Given]], None],
    ) -> None:
        self._known, self._use = dict(known), use
        self._now = [(name, self._known[name]) for name in now]
        self._axes = [
            _Axis(title, list(known), name) for title, name in zip(AXES, now, strict=True)
        ]
        self._problem = ipywidgets.HTML()
        for number, axis in enumerate(self._axes):
            for field in (axis.choice, axis.path, axis.own):
                field.observe(lambda _, number=number: self._changed(number), "value")
        said = view.remark(
            "Runs keep the numbers of the texts that they were measured on; the plane shows those "
            "of these two. A .txt holds passages with a blank line between them, a .jsonl an "
            "object a line: text, or prompt and answer."
        )
        self.widget = ipywidgets.VBox(
            [*(axis.widget for axis in self._axes), self._problem, ipywidgets.HTML(said)]
        )

    def complain(self, error: LabkitError) -> None:
        """Show why the texts that were chosen cannot be measured."""
        self._problem.value = view.problem(error)

    def _changed(self, number: int) -> None:
        """Read the text of an axis, and use both if it can be read."""
        axis = self._axes[number]
        axis.show()
        self._problem.value = axis.problem.value = ""
        try:
            found = self._read(axis, OWN_NAMES[number])
            if found is None:
                return
            if found[0] == self._now[1 - number][0]:
                raise LabkitError(
                    f"both texts are {shown(found[0])!r}; choose two, or give a file another name"
                )
        except LabkitError as error:
            axis.problem.value = view.problem(error)
            return
        self._now[number] = found
        self._use(dict(self._now))

    def _read(self, axis: _Axis, own_name: str) -> tuple[str, Given] | None:
        """The name and the passages of an axis; None while nothing is written yet."""
        if axis.choice.value == FILE:
            path = axis.path.value.strip()
            texts = Texts.read(path) if path else None
            return (texts.name, texts) if texts else None
        if axis.choice.value == OWN:
            blocks = [" ".join(one.split()) for one in re.split(r"\n\s*\n", axis.own.value)]
            passages = [block for block in blocks if block]
            return (own_name, as_texts(own_name, passages)) if passages else None
        name = str(axis.choice.value)
        return name, self._known[name]


class _Axis:
    """The fields of one text."""

    def __init__(self, title: str, known: Sequence[str], name: str) -> None:
        whole = {"style": {"description_width": "initial"}}  # the description is never cut
        one_line = whole | {"layout": {"width": "auto", "max_width": "520px"}}
        self.choice = ipywidgets.Dropdown(
            options=[*((shown(one, 60), one) for one in known), (FILE, FILE), (OWN, OWN)],
            value=name,
            description=title,
            **one_line,
        )
        self.path = ipywidgets.Text(
            description="file",
            placeholder="passages.txt or passages.jsonl, then Enter",
            continuous_update=False,
            **one_line,
        )
        self.own = ipywidgets.Textarea(
            description="text",
            placeholder="passages, with a blank line between them; read when you leave the field",
            continuous_update=False,
            rows=4,
            layout={"width": "auto"},
            **whole,
        )
        self.problem = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.choice, self.path, self.own, self.problem])
        self.show()

    def show(self) -> None:
        """Show the field that the choice needs."""
        self.path.layout.display = None if self.choice.value == FILE else "none"
        self.own.layout.display = None if self.choice.value == OWN else "none"
