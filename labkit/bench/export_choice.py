"""What the lab exports to: a format, and the text to calibrate on where the format takes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ipywidgets

from labkit.bench import view
from labkit.bench.passages import TEXTS
from labkit.demonstration.base import adapter_folders
from labkit.errors import LabkitError, shown
from labkit.exporting.calibration import calibration_for
from labkit.exporting.formats import FORMATS
from labkit.probing.text_plane import Given, as_texts
from labkit.probing.texts import Texts

FIRST_FORMAT = "gguf-q4_k_m"
NOTHING, FILE = "nothing", "a file …"


class ExportChoice:
    """Two choices and a path, and in words why they cannot be exported yet.

    Until the user chooses a text, it is the training text of the demo's adapters where the lab has
    some, as `lk.export` does it; else nothing, where the format allows that; else the first of the
    lab's texts, unless that is the one which any lab has; else a file to be named.

    Args:
        domains: the demo's adapters in the lab.
        texts: the two texts that the lab reads, what the merge is for first.

    Attributes:
        format: where the format is chosen.
        text: where its text is.
        path: where a file is named.
        said: what the format is, and what it lacks.
        problem: why an export would fail, as far as is known before; empty if it would not.
        changed: called when `problem` may be another one.
    """

    def __init__(self, domains: Sequence[str], texts: Mapping[str, Given]) -> None:
        self._domains, self._texts = list(domains), dict(texts)
        self._offered: dict[str, Texts | str | None] = {}
        self._by_hand, self._offering = False, False
        self.problem = ""
        self.changed: Callable[[], None] = lambda: None
        whole = {"description_width": "initial"}
        self.format = ipywidgets.Dropdown(
            options=list(FORMATS),
            value=FIRST_FORMAT,
            description="for other programs",
            layout={"width": "250px"},
            style=whole,
        )
        self.text = ipywidgets.Dropdown(
            description="calibrated on", layout={"width": "auto", "max_width": "100%"}, style=whole
        )
        self.path = ipywidgets.Text(
            description="file",
            placeholder="passages.txt or .jsonl, then Enter",
            continuous_update=False,
            layout={"width": "280px"},
            style=whole,
        )
        self.said = ipywidgets.HTML()
        self.format.observe(lambda _: self._offer(), "value")
        self.text.observe(lambda _: self._chose(), "value")
        self.path.observe(lambda _: self._show(), "value")
        self._offer()

    def use(self, texts: Mapping[str, Given]) -> None:
        """Offer two other texts that the lab reads from now on."""
        self._texts = dict(texts)
        self._offer()

    def calibration(self) -> Texts | str | None:
        """The texts to calibrate on, as `lk.export` takes them.

        Raises:
            LabkitError: a file that is none, or a format that needs texts and none are chosen.
        """
        chosen = FORMATS[str(self.format.value)]
        if chosen.calibration == "never":
            return None
        if self.text.value != FILE:
            return self._offered[str(self.text.value)]
        path = str(self.path.value).strip()
        if not path:
            raise LabkitError(
                "write the name of a file with texts of the kind that the merge is for, or choose "
                "another text to calibrate on"
            )
        return calibration_for(chosen, "the merge", (), path)

    def _offer(self) -> None:
        """Offer the texts that the format takes, and choose one where the user did not."""
        kind = FORMATS[str(self.format.value)].calibration
        own = _training_text(self._domains)
        first = next(iter(self._texts))
        self._offered = {own: None} if own else {}
        for name, given in self._texts.items():
            self._offered[shown(name, 60)] = as_texts(name, given)
        for name in adapter_folders():
            if self._domains != [name]:
                self._offered[_training_text([name])] = name
        self._offered |= ({NOTHING: "none"} if kind == "may" else {}) | {FILE: FILE}
        if self._by_hand and self.text.value in self._offered:
            wanted = self.text.value
        elif own:
            wanted = own
        elif kind == "may":
            wanted = NOTHING
        else:
            wanted = FILE if _is_everybodys(first, self._texts[first]) else shown(first, 60)
        self._offering = True
        try:
            self.text.options = list(self._offered)
            self.text.value = wanted
        finally:
            self._offering = False
        self._show()

    def _chose(self) -> None:
        if not self._offering:
            self._by_hand = True
            self._show()

    def _show(self) -> None:
        """Show the fields that the choices need, and what speaks against an export."""
        chosen = FORMATS[str(self.format.value)]
        takes = chosen.calibration != "never"
        self.text.layout.display = None if takes else "none"
        self.path.layout.display = None if takes and self.text.value == FILE else "none"
        try:
            self.calibration()
            self.problem = ""
        except LabkitError as error:
            self.problem = str(error)
        lacks = chosen.missing()
        said = f"{chosen.what}; it needs {chosen.needs}: {lacks}" if lacks else chosen.what
        wrong = view.problem if self.path.value else view.remark
        self.said.value = wrong(self.problem) if self.problem else view.remark(said)
        self.changed()


def _is_everybodys(name: str, given: Given) -> bool:
    """Whether a text is the one that a lab reads when it is given none."""
    return name in TEXTS and as_texts(name, TEXTS[name]) == as_texts(name, given)


def _training_text(names: Sequence[str]) -> str:
    return " and ".join(f"the training text of {name}" for name in names)
