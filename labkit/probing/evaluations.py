"""The evaluations that a fit has made: in memory, as a table, and as a file to go on from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.files.small_files import read_text
from labkit.probing.families import Cells

if TYPE_CHECKING:
    import pandas as pd

LONGEST_FILE = 100_000_000


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: where it was made and what was found.

    Attributes:
        family: the family that was searched.
        objective: what was minimised, smoothness included.
        nll: mean NLL of the target, in nats a token.
        kl: mean KL to the base on the texts to keep, likewise.
        seconds: of processor time.
        weights: all layer weights in one list (see `labkit.probing.families.LayerWeights`).
        nll_slopes: `∂nll/∂w`; empty where nothing was differentiated.
        kl_slopes: likewise.
        problem: what ties it to a model, its adapters and the texts.
    """

    family: str
    objective: float
    nll: float
    kl: float
    seconds: float
    weights: list[float]
    nll_slopes: list[float]
    kl_slopes: list[float]
    problem: str

    @property
    def point(self) -> Cells:
        """The weights as a vector."""
        return np.array(self.weights)

    def slopes(self, strength: float) -> Cells:
        """Derivatives of `nll + strength · kl`."""
        return np.array(self.nll_slopes) + strength * np.array(self.kl_slopes)


class History:
    """Evaluations in order, also in a file where one is named.

    Args:
        source: an earlier result's `.history`, or a file to go on from and write to (JSON, an
            evaluation a line); nothing to begin anew.
        problem: what the evaluations have to belong to.

    Raises:
        LabkitError: evaluations of another model or other texts, or a file that is no history.
    """

    def __init__(self, source: pd.DataFrame | str | Path | None, problem: str) -> None:
        self.problem = problem
        self.made: list[Evaluation] = []
        self._path = user_path(source) if isinstance(source, (str, Path)) else None
        for where, entry in _entries(source, self._path):
            try:
                found = Evaluation(**{key: entry[key] for key in Evaluation.__dataclass_fields__})
            except (KeyError, TypeError):
                raise LabkitError(
                    f"{where} is no evaluation of a fit; expected what an earlier fit left as its "
                    "history"
                ) from None
            if found.problem != problem:
                raise LabkitError(
                    f"{where} was made with another model or adapter, other texts, or another "
                    "`by`; go on with the same ones, or begin without it"
                )
            self.made.append(found)

    def add(self, one: Evaluation) -> None:
        """Note an evaluation, in the file too."""
        self.made.append(one)
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one)) + "\n")
        except OSError as error:
            raise LabkitError(
                f"cannot write the history {shown(self._path)}: {error.strerror}; choose a file "
                "that can be written"
            ) from error

    def table(self) -> pd.DataFrame:
        """The evaluations, one a row."""
        import pandas as pd

        columns = list(Evaluation.__dataclass_fields__)
        table = pd.DataFrame([asdict(one) for one in self.made], columns=columns)
        table.insert(0, "evaluation", range(1, len(table) + 1))
        return table


def _entries(source: Any, path: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    if path is not None:
        if not path.exists():
            return
        lines = read_text(path, "history", LONGEST_FILE).splitlines()
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                if number == len(lines):
                    return  # the last line of a search that was killed while it wrote
                entry = None
            yield f"{shown(path)}, line {number},", entry if isinstance(entry, dict) else {}
    elif source is not None:
        for number, entry in enumerate(source.to_dict("records"), 1):
            yield f"evaluation {number} of the history", entry
