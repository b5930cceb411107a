"""The fold "A file of prompts": runs answer every prompt of a file, and a CSV file keeps it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ipywidgets

from labkit.bench import view
from labkit.bench.background import Latest
from labkit.bench.panel import row
from labkit.bench.runs import Question
from labkit.errors import LabkitError, shown, with_kind
from labkit.inference.live_model import LiveModel, Mix
from labkit.probing.prompt_grid import answer_each, prompts_of

ENDING = "-answers.csv"


class ManyPrompts:
    """Lets runs answer a file of prompts.

    Args:
        model: gives the live model.
        mixes: gives the mixtures that answer, by the names of their runs.
        question: how the models are asked at the moment; its prompt is not used.

    Attributes:
        widget: what is shown.
        worker: where the models are asked.
        error: what went wrong last.
    """

    def __init__(
        self,
        model: Callable[[], LiveModel],
        mixes: Callable[[LiveModel], Mapping[str, Mix]],
        question: Callable[[], Question],
    ) -> None:
        self._model, self._mixes, self._question = model, mixes, question
        self.worker = Latest(self._failed)
        self.error: BaseException | None = None
        self.path = ipywidgets.Text(
            description="file",
            placeholder="prompts.txt, a prompt a line, or prompts.jsonl",
            style={"description_width": "initial"},
            layout={"width": "auto", "flex": "1 1 220px", "max_width": "420px"},
        )
        self.answer = ipywidgets.Button(
            description="Answer a file of prompts",
            icon="list",
            tooltip="base, full LoRA and the starred runs answer each prompt",
            layout={"width": "auto"},
        )
        self.stop = ipywidgets.Button(
            description="Stop", icon="stop", disabled=True, layout={"width": "80px"}
        )
        self.progress = ipywidgets.FloatProgress(
            0, min=0, max=1, layout={"width": "140px", "display": "none"}
        )
        self.said = ipywidgets.HTML()
        self.answer.on_click(lambda _: self._begin())
        self.stop.on_click(lambda _: self.worker.stop())
        said = (
            "Base, full LoRA and the runs with a star answer (without a star, what is drawn), with "
            "the format, tokens, temperature and seed above. Saved beside the file, as its name "
            f"with {ENDING}."
        )
        self.widget = ipywidgets.VBox(
            [
                row(self.path, self.answer, self.stop, self.progress),
                self.said,
                ipywidgets.HTML(view.remark(said)),
            ]
        )

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self.said.value = view.problem(with_kind(error))

    def _begin(self) -> None:
        self.error = None
        try:
            if not self.path.value.strip():
                raise LabkitError("write the path of a file of prompts first")
            path = Path(self.path.value.strip())
            prompts = prompts_of(path)
        except LabkitError as error:
            self._failed(error)
            return
        out = path.with_name(f"{path.stem}{ENDING}")
        self.worker.submit(lambda stopped: self._answer(prompts, out, stopped))

    def _answer(self, prompts: Sequence[str], out: Path, stopped: threading.Event) -> None:
        import pandas as pd

        self._working(True)
        try:
            model, question = self._model(), self._question()
            mixes = self._mixes(model)
            rows = []
            settings = question.tokens, question.temperature, question.seed, question.format
            for answered in answer_each(model, prompts, mixes, *settings):
                rows.append(answered)
                self.progress.value = len(rows) / (len(prompts) * len(mixes))
                if stopped.is_set():
                    break
            try:
                pd.DataFrame(rows).to_csv(out, index=False)
            except OSError as error:
                raise LabkitError(f"cannot write {shown(out)}: {error.strerror}") from error
            asked = f"{len(prompts)} prompts × {len(mixes)} gradients"
            how = f"stopped after {len(rows)} answers to {asked}" if stopped.is_set() else asked
            self.said.value = view.done(f"saved {shown(out)}: {how}")
        finally:
            self._working(False)

    def _working(self, now: bool) -> None:
        self.answer.disabled, self.stop.disabled = now, not now
        self.progress.value = 0
        self.progress.layout.display = None if now else "none"
        if now:
            self.said.value = ""
