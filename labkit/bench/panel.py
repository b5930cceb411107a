"""The widgets of the lab, without what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets

from labkit.bench import view
from labkit.bench.export_choice import ExportChoice
from labkit.bench.painting import Painting
from labkit.errors import shown
from labkit.inference.prompts import CHAT, PLAIN, TEMPLATES
from labkit.widgets.choice_slider import ChoiceSlider

NAMES = {"self_attn": "attention", "attn": "attention", "mlp": "MLP"}
"""The name of a decoder block's part in a model -> what people call it."""


STRENGTHS = (0.1, 0.14, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
"""Round numbers, each larger than the one before by about the same factor."""


class Panel:
    """All controls of a lab; `around` puts them around its editor."""

    def __init__(
        self,
        adapters: Sequence[str],
        scopes: Sequence[str],
        painting: Painting,
        exporting: ExportChoice,
    ) -> None:
        wide = ipywidgets.Layout(width="auto")  # 100 % and its margins would make a scroll bar
        self.which = ipywidgets.Dropdown(
            options=[(name, index) for index, name in enumerate(adapters)],
            description="adapter",
        )
        self.scope = ipywidgets.ToggleButtons(
            description="modules",
            style={"button_width": "auto", "description_width": "initial"},
        )
        self.set_scopes(scopes)
        self._painting = painting
        self._adapters = list(adapters)
        self._buttons: dict[tuple[int, str], ipywidgets.Button] = {}
        self._own, self._own_said = row(), ipywidgets.HTML()
        self.matters = ipywidgets.ToggleButton(
            False,
            description="What matters",
            tooltip="measure which layers matter for the two texts, whenever the hand rests",
            # Beside the buttons of the modules, whose label stands above them.
            layout={"width": "auto", "align_self": "flex-end", "margin": "2px 2px 0"},
        )
        self.prompt = ipywidgets.Textarea(
            description="prompt",
            rows=2,
            layout=wide,
            style={"description_width": "initial"},
        )
        self.kind = ipywidgets.Dropdown(options=[PLAIN, CHAT, *TEMPLATES], description="format")
        self.length = ipywidgets.BoundedIntText(48, min=1, max=2000, description="tokens")
        self.temperature = ipywidgets.BoundedFloatText(
            0.0, min=0.0, max=5.0, step=0.1, description="temperature"
        )
        self.seed = ipywidgets.BoundedIntText(0, min=0, max=2**31, description="seed")
        self.again = ipywidgets.Button(
            description="Roll again",
            icon="random",
            tooltip="other random numbers, the same for all three answers",
            layout={"width": "112px", "display": "none"},
        )
        self.settings = {
            "prompt": self.prompt,
            "format": self.kind,
            "tokens": self.length,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        widths = (
            (self.kind, "180px"), (self.length, "105px"), (self.temperature, "130px"),
            (self.seed, "105px"),
        )  # fmt: skip
        for field, width in widths:
            field.layout = ipywidgets.Layout(width=width)
            field.style = {"description_width": "initial"}
        # Random numbers are thrown above temperature 0 alone.
        self.seed.layout.display = "none"
        self.temperature.observe(lambda _: self._show_dice(), "value")
        self.live = ipywidgets.Checkbox(
            True, description="answer while I draw", indent=False, layout={"width": "auto"}
        )
        narrow = {"width": "80px"}
        self.fit = ipywidgets.Button(
            description="Fit to the first text",
            icon="crosshairs",
            tooltip="search the gradient that makes the first text likely and keeps the second",
            layout={"width": "auto"},
        )
        self.stop_fit = ipywidgets.Button(
            description="Stop",
            icon="stop",
            tooltip="end the search, and draw the best so far",
            disabled=True,
            layout=narrow,
        )
        self.strength = ChoiceSlider(STRENGTHS, 0.3, "strength of keeping λ")
        self.fit_progress = ipywidgets.FloatProgress(
            0, min=0, max=1, layout={"width": "140px", "display": "none"}
        )
        self.fit_status, self.fit_said = ipywidgets.HTML(), ipywidgets.HTML()
        self.answer = ipywidgets.Button(description="Answer", icon="play", layout={"width": "92px"})
        self.stop = ipywidgets.Button(description="Stop", icon="stop", layout=narrow)
        self.folder = ipywidgets.Text(
            "merged",
            description="folder",
            layout={"width": "150px"},
            style={"description_width": "initial"},
        )
        self.write = ipywidgets.Button(
            description="Write the merge",
            icon="save",
            tooltip="write the merged model into the folder",
            button_style="primary",
        )
        self.cancel = ipywidgets.Button(description="Cancel", icon="times", layout=narrow)
        self.progress = ipywidgets.FloatProgress(0, min=0, max=1, layout={"width": "140px"})
        self._does, self._doing, self._so_far = "", ipywidgets.HTML(), ipywidgets.HTML()
        self._at_work = row(self.cancel, self.progress, self._doing, self._so_far)
        self.saved = ipywidgets.HTML()
        self.replace = ipywidgets.Button(
            description="Replace", button_style="warning", layout={"width": "80px"}
        )
        self.replace.layout.display = "none"
        saving = {"width": "auto"}
        self.bake = ipywidgets.Button(
            description="Bake adapter",
            tooltip="write the adapter with its gradient inside it",
            layout=saving,
        )
        self.save_recipe = ipywidgets.Button(description="Save recipe", layout=saving)
        self.save_picture = ipywidgets.Button(description="Save picture", layout=saving)
        self.save_runs = ipywidgets.Button(
            description="Export runs",
            tooltip="save the table of runs as a CSV file",
            layout=saving,
        )
        self.exporting = exporting
        self.export = ipywidgets.Button(
            description="Export",
            icon="share",
            tooltip="merge, convert, run it and compare it with the merge; the export alone stays",
            layout=saving,
        )
        self._makers = {one: one.tooltip for one in (self.write, self.bake, self.export)}
        exporting.changed = self._show_makers
        self.working("")
        self.problem, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self._shown = {name: ipywidgets.HTML() for name in ("columns", "next", "compared")}
        self._shown |= {name: ipywidgets.HTML() for name in ("plan", "rounding", "receipt")}
        self.show("columns", view.columns([[], [], []]))

    @property
    def selected(self) -> tuple[int, str]:
        """Which gradient the editor shows: the adapter's number, and a kind of module.

        The kind is empty for the gradient of all modules.
        """
        return int(self.which.value), str(self.scope.value)

    def set_scopes(self, scopes: Sequence[str]) -> None:
        """Set the kinds of modules that can be chosen; the one that is chosen stays, if it can."""
        options = [("all modules", ""), *((NAMES.get(one, one), one) for one in scopes)]
        if list(self.scope.options) == options:
            return
        chosen = self.scope.value
        self.scope.options = options
        self.scope.tooltips = [
            "one gradient for all modules", *("a gradient of its own" for _ in scopes)
        ]  # fmt: skip
        self.scope.value = chosen if chosen in scopes else ""

    def name_of(self, adapter: int, pattern: str) -> str:
        """What people call a gradient: the adapter, where there are several, and the modules."""
        names = [shown(self._adapters[adapter], 40)] if len(self._adapters) > 1 else []
        if pattern or not names:
            names.append(self.modules_name(pattern))
        return " ".join(names)

    def modules_name(self, pattern: str) -> str:
        """What people call the modules of a pattern."""
        return NAMES.get(pattern, shown(pattern, 40)) if pattern else "all modules"

    def show_own(
        self,
        means: Mapping[tuple[int, str], float],
        idle: str,
        clear: Callable[[int, str], None],
    ) -> None:
        """Show a button for each gradient that some modules have of their own, to clear it.

        Args:
            means: adapter and pattern -> the gradient's mean weight.
            idle: what is drawn in the editor, if it counts for no module; else "".
            clear: called with adapter and pattern when the button is pressed.
        """
        for key, mean in means.items():
            if key not in self._buttons:
                button = ipywidgets.Button(icon="times", layout={"width": "auto"})
                button.on_click(partial(_press, clear, *key))
                self._buttons[key] = button
            name = self.name_of(*key)
            self._buttons[key].description = f"{name}: mean weight {mean:.2f}"
            self._buttons[key].tooltip = f"clear the gradient of {name}"
        said = "A gradient of its own, in place of that of all modules (press to clear):"
        if idle:
            said = f"What is drawn for {idle} counts nowhere: {said[0].lower()}{said[1:]}"
        self._own_said.value = view.remark(said)
        children = (self._own_said, *(self._buttons[key] for key in means)) if means else ()
        if children != self._own.children:
            self._own.children = children

    def show(self, name: str, content: str) -> None:
        """Show HTML in "columns", "next", "plan", "rounding" or "receipt"."""
        self._shown[name].value = content

    def show_compared(self, content: str) -> None:
        """Show HTML of two runs beside each other, below the runs."""
        self._shown["compared"].value = content

    def say(self, text: str) -> None:
        """Show in the status line what is going on; an empty text empties it."""
        self.status.value = view.status(text) if text else ""

    def tell(self, content: str, replaceable: bool = False) -> None:
        """Show HTML beside the buttons that save; nothing ends what is shown.

        Args:
            content: what became of the last press.
            replaceable: with a button to replace what is there already.
        """
        self.saved.value = content
        self.replace.layout.display = None if replaceable else "none"

    def fitting(self, now: bool) -> None:
        """Show that a search begins or has ended."""
        # A strength that is measured would end the search.
        self.fit.disabled = self.strength.disabled = now
        self.stop_fit.disabled = not now
        self.fit_progress.value, self.fit_status.value = 0, ""
        self.fit_progress.layout.display = None if now else "none"

    def tell_fit(self, said: str, share: float = 0.0) -> None:
        """Show how far a search is."""
        self.fit_status.value = view.status(said)
        self.fit_progress.value = share

    def _show_dice(self) -> None:
        shown_now = None if self.temperature.value > 0 else "none"
        self.seed.layout.display = self.again.layout.display = shown_now

    def working(self, does: str, cancellable: bool = True) -> None:
        """Show what is being made, which one can cancel, and that other presses wait for it.

        Args:
            does: what is being made; nothing if that has ended.
            cancellable: whether it can be cancelled.
        """
        self._does = does
        self._at_work.layout.display = "flex" if does else "none"
        self.cancel.disabled = not (does and cancellable)
        self.cancel.tooltip = "end it; nothing is written" if cancellable else "it takes seconds"
        self.progress.value = 0
        self.progress.layout.display = "none"
        self.tell_work(does)
        self._show_makers()

    def tell_work(
        self, said: str, share: float | None = None, seconds: float | None = None
    ) -> None:
        """Show how far it is.

        Args:
            said: in words.
            share: from 0 to 1; None where nobody knows.
            seconds: since it began; None where they need not be shown.
        """
        self._doing.value = view.status(said) if said else ""
        # Beside the status, which a screen reader reads out whenever it changes.
        self._so_far.value = "" if seconds is None else view.remark(f"· {seconds:.0f} s so far")
        if share is not None:
            self.progress.value = share
            self.progress.layout.display = None

    def _show_makers(self) -> None:
        """Only one thing is made at a time; a button that cannot act says why."""
        for button, tooltip in self._makers.items():
            why = f"waits until this has ended: {self._does}" if self._does else ""
            if button is self.export and not why:
                why = self.exporting.problem
            button.disabled, button.tooltip = bool(why), why or tooltip

    def runs(self, table: Any) -> ipywidgets.VBox:
        """The fold of the runs: as rows, and two of them beside each other."""
        return ipywidgets.VBox([table, self._shown["compared"]])

    def around(
        self, editor: Any, conversation: Any, plane: Any, folds: Mapping[str, Any]
    ) -> ipywidgets.VBox:
        """The whole lab.

        Args:
            editor: the gradient editor.
            conversation: what stands below the prompt.
            plane: what shows the runs as points.
            folds: the title of a fold -> what is in it; the first one is open.
        """
        choosers = [self.which] if len(self.which.options) > 1 else []
        choosers += [self.scope] if len(self.scope.options) > 2 else []
        shown, choice = self._shown, self.exporting
        fit = ipywidgets.VBox(
            [
                row(self.fit, self.stop_fit, self.fit_progress, self.fit_status),
                self.strength,
                self.fit_said,
            ]
        )
        all_folds = {**folds, "Ledger and forecast": shown["plan"]}
        details = ipywidgets.Accordion(
            list(all_folds.values()), titles=tuple(all_folds), selected_index=0
        )
        made = ipywidgets.VBox(
            [
                ipywidgets.HTML(view.STYLE, layout={"display": "none"}),
                row(*choosers, self._painting.toggle, self.matters),
                self._own,
                editor,
                self._painting.box,
                ipywidgets.Accordion([fit], titles=("Fit",)),
                self.prompt,
                row(
                    *(self.kind, self.length, self.temperature, self.seed, self.again),
                    *(self.live, self.answer, self.stop),
                ),
                conversation,
                self.problem,
                shown["columns"],
                self.status,
                row(shown["next"], plane, gap="8px 20px"),
                shown["rounding"],
                details,
                row(
                    *(self.folder, self.write, self.bake),
                    *(self.save_recipe, self.save_picture, self.save_runs),
                ),
                row(choice.format, choice.text, choice.path, self.export, choice.said),
                self._at_work,
                row(self.saved, self.replace),
                shown["receipt"],
            ]
        )
        made.add_class("labkit-lab")
        return made


def _press(clear: Callable[[int, str], None], adapter: int, pattern: str, _: Any) -> None:
    clear(adapter, pattern)


def row(*children: Any, gap: str = "4px") -> ipywidgets.Box:
    """Widgets beside each other, on as many lines as they need."""
    layout = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
    layout.grid_gap = gap
    return ipywidgets.Box(children, layout=layout)
