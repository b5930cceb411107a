"""What the lab saves under the name in its panel: merge, adapter, export, recipe, picture, runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.bench import view
from labkit.bench.background import Latest
from labkit.bench.panel import Panel
from labkit.errors import LabkitError, shown
from labkit.figures import recipe_picture, save_picture
from labkit.files.atomic_folder import RECEIPT
from labkit.merging.planning import plan
from labkit.merging.recipe import Recipe
from labkit.writing.receipt import Receipt

if TYPE_CHECKING:
    import pandas as pd


class _CancelledError(Exception):
    """Ends what the user called off."""


class Saving:
    """The buttons that save, and what they say.

    Args:
        panel: the lab's panel.
        recipe: gives what is drawn.
        runs: gives the table of runs.

    Attributes:
        receipt: of the last merge that was written.
        error: what went wrong last; None once something is saved again.
        worker: where merges and exports are made, one at a time.
        cancel: set to call off what is being made.
    """

    def __init__(
        self, panel: Panel, recipe: Callable[[], Recipe], runs: Callable[[], pd.DataFrame]
    ) -> None:
        self._panel, self._recipe, self._runs = panel, recipe, runs
        self.receipt: Receipt | None = None
        self.error: BaseException | None = None
        self.worker = Latest(self._failed)
        self.cancel = threading.Event()
        self._wanted: Callable[[], None] = lambda: None
        self._does = ""
        panel.cancel.on_click(lambda _: self._cancel())
        panel.write.on_click(lambda _: self._save("", self.write))
        panel.bake.on_click(lambda _: self._save("-adapter", self._bake))
        panel.save_recipe.on_click(lambda _: self._save(".yaml", self._save_recipe))
        panel.save_picture.on_click(lambda _: self._save(".png", self._save_picture))
        panel.save_runs.on_click(lambda _: self._save("-runs.csv", self._save_runs))
        panel.export.on_click(lambda _: self._ask_for_export())
        panel.replace.on_click(lambda _: self._wanted())
        panel.folder.observe(lambda _: panel.tell(""), "value")

    def _save(self, ending: str, save: Callable[[Path, bool], None], replace: bool = False) -> None:
        """Save under the name in the panel, if there is a name, and nothing has it already."""
        name = self._panel.folder.value.strip()
        path = Path(f"{name}{ending}")
        self._wanted = lambda: self._save(ending, save, replace=True)
        if not name:
            self._panel.tell(view.problem("write a name into the field “folder” first"))
        elif path.exists() and not replace:
            said = f"{shown(path)} is there already; replace it, or write another name"
            self._panel.tell(view.problem(said), replaceable=True)
        else:
            self.error = None
            self._panel.tell("")
            try:
                save(path, replace)
            except (LabkitError, OSError) as error:
                self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self._panel.tell(view.problem(error))

    def _begin(self, does: str, job: Callable[[], None], cancellable: bool = True) -> None:
        """Do something in the background.

        Args:
            does: what, to be said after "the lab".
            job: does it.
            cancellable: whether it raises `_CancelledError` soon after `cancel` is set.

        Raises:
            LabkitError: something else is being done.
        """
        if self._does:
            raise LabkitError(
                f"the lab {self._does}, and makes one thing at a time; wait for it (lab.wait()), "
                "or press Cancel"
            )
        self._does, self.error = does, None
        self.cancel.clear()
        self._panel.tell("")
        self._panel.working(does, cancellable)

        def run(_: threading.Event) -> None:
            try:
                job()
            except _CancelledError:
                self._panel.tell(view.done("cancelled; nothing was written"))
            finally:
                self._does = ""
                self._panel.working("")

        self.worker.submit(run)

    def _cancel(self) -> None:
        self.cancel.set()
        self._panel.cancel.disabled = True
        self._panel.tell_work(f"ends it: {self._does}")

    def _go_on(self) -> None:
        if self.cancel.is_set():
            raise _CancelledError

    def write(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the merge in the background. After that, `receipt` holds its receipt.

        Raises:
            LabkitError: something else is being written.
        """
        recipe, does = self._recipe(), f"writes {shown(folder)}"

        def tell(done: int, total: int) -> None:
            self._go_on()
            self._panel.tell_work(does, done / max(total, 1))

        def job() -> None:
            # What the last press wrote and this one would write again is taken over.
            last = self.receipt.folder if self.receipt else None
            there = last if last and (last / RECEIPT).is_file() else None
            options: Any = {"overwrite": overwrite, "reuse": there, "progress": tell}
            self.receipt = plan(recipe).write(folder, **options)
            self._panel.show("receipt", self.receipt._repr_html_())

        self._begin(does, job)

    def _bake(self, path: Path, overwrite: bool) -> None:
        """Write the adapter that is shown, with its gradient inside it, in the background."""
        from labkit.publishing.baking import bake

        recipe = self._recipe()
        term = recipe.terms[self._panel.selected[0]]

        def job() -> None:
            own = {"weights_for": term.weights_for, "rest": recipe.rest, "overwrite": overwrite}
            bake(term.adapter, term.weights, path, **own)  # type: ignore[arg-type]
            self._saved(path)

        self._begin(f"bakes {shown(path)}", job, cancellable=False)

    def _ask_for_export(self) -> None:
        format = str(self._panel.exporting.format.value)
        self._save(f"-{format}", partial(self._export, format))

    def _export(self, format: str, path: Path, overwrite: bool) -> None:
        """Convert the merge for other programs, in the background; the merge itself is not kept.

        Raises:
            LabkitError: it must be calibrated, and there is no text for it.
        """
        recipe, calibration = self._recipe(), self._panel.exporting.calibration()
        began = time.monotonic()

        def tell(step: str) -> None:
            self._go_on()
            self._panel.tell_work(step, seconds=time.monotonic() - began)

        def job() -> None:
            options: Any = {"calibration": calibration, "overwrite": overwrite, "progress": tell}
            made = plan(recipe).export(path, format, **options)
            self._panel.show("receipt", made._repr_html_())
            self._saved(path)

        self._begin(f"exports to {format}", job)

    def _save_recipe(self, path: Path, _: bool) -> None:
        self._recipe().save(path)
        self._saved(path)

    def _save_runs(self, path: Path, _: bool) -> None:
        self._runs().to_csv(path, index=False)
        self._saved(path)

    def _save_picture(self, path: Path, _: bool) -> None:
        save_picture(recipe_picture(self._recipe(), dark=False), path)
        self._saved(path)

    def _saved(self, path: Path) -> None:
        self._panel.tell(view.done(f"saved {shown(path)}"))
