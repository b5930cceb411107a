"""Asks the runtime of a format, in a process of its own, what a converted model expects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from labkit.exporting.job import Answers, Questions
from labkit.exporting.processes import run


def ask(
    worker: str,
    told: Mapping[str, object],
    questions: Questions,
    folder: Path,
    what: str,
    go_on: Callable[[], None],
    command: Sequence[str] = (sys.executable,),
) -> Answers:
    """Ask.

    Args:
        worker: the script of `workers/`, which leaves a `.npy` file for each sequence.
        told: what it is told beside the sequences.
        questions: what to ask.
        folder: a folder to make, for the process and the files.
        what: the runtime's name, for the error.
        go_on: as in `run`.
        command: as in `run`.

    Raises:
        LabkitError: it cannot load the model.
    """
    sequences = [list(one) for one in questions.sequences]
    done = run(worker, {**told, "sequences": sequences}, folder, what, go_on, command)
    return Answers(
        log_probabilities=[folder / f"{number}.npy" for number in range(len(sequences))],
        tokens=done.result.get("tokens"),
        chat_template=done.result.get("chat_template"),
        tools=done.result["tools"],
    )
