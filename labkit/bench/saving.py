"""What the lab saves under the name in its panel: merge, adapter, export, recipe, picture, runs."""

from __future__ import annotations

import threading
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
    """Ends a merge that the user called off."""


class Saving:
    """The buttons that save, and what they say.

    Args:
        panel: the lab's panel.
        recipe: gives what is drawn.
        runs: gives the table of runs.

    Attributes:
        receipt: of the last merge that was written.
        error: what went wrong last; None once something is saved again.
        worker: where merges are written.
        cancel: set to call off the merge that is being written.
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
        panel.cancel.on_click(lambda _: self.cancel.set())
        panel.write.on_click(lambda _: self._save("", self.write))
        panel.bake.on_click(lambda _: self._save("-adapter", self._bake))
        panel.save_recipe.on_click(lambda _: self._save(".yaml", self._save_recipe))
        panel.save_picture.on_click(lambda _: self._save(".png", self._save_picture))
        panel.save_runs.on_click(lambda _: self._save("-runs.csv", self._save_runs))
        panel.export.on_click(lambda _: self._ask_for_export(str(panel.format.value)))
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

    def write(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the merge in the background. After that, `receipt` holds its receipt."""
        recipe = self._recipe()
        self.cancel.clear()

        def tell(done: int, total: int) -> None:
            if self.cancel.is_set():
                raise _CancelledError
            self._panel.progress.value = done / max(total, 1)

        def job(_: threading.Event) -> None:
            self.error = None
            self._panel.tell("")
            self._panel.writing(True)
            try:
                # What the last press wrote and this one would write again is taken over.
                last = self.receipt.folder if self.receipt else None
                there = last if last and (last / RECEIPT).is_file() else None
                options: Any = {"overwrite": overwrite, "reuse": there, "progress": tell}
                self.receipt = plan(recipe).write(folder, **options)
                self._panel.show("receipt", self.receipt._repr_html_())
            except _CancelledError:
                self._panel.tell(view.done("cancelled; nothing was written"))
            finally:
                self._panel.writing(False)

        self.worker.submit(job)

    def _bake(self, path: Path, overwrite: bool) -> None:
        """Write the adapter that is shown, with its gradient inside it, in the background."""
        from labkit.publishing.baking import bake

        recipe = self._recipe()
        term = recipe.terms[self._panel.selected[0]]

        def job(_: threading.Event) -> None:
            self.error = None
            own = {"weights_for": term.weights_for, "rest": recipe.rest, "overwrite": overwrite}
            bake(term.adapter, term.weights, path, **own)  # type: ignore[arg-type]
            self._saved(path)

        self.worker.submit(job)

    def _ask_for_export(self, format: str) -> None:
        self._save(f"-{format}", partial(self._export, format))

    def _export(self, format: str, path: Path, overwrite: bool) -> None:
        """Convert the merge for other programs, in the background; the merge itself is not kept."""
        recipe = self._recipe()

        def job(_: threading.Event) -> None:
            self.error = None
            self._panel.tell(view.status(f"merges, converts to {format}, runs it and compares …"))
            made = plan(recipe).export(path, format, overwrite=overwrite, progress=False)
            self._panel.show("receipt", made._repr_html_())
            self._saved(path)

        self.worker.submit(job)

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
