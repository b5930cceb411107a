"""The receipt of an export: what was made of which model, by what, and what the check found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.exporting.checking import Checked
from labkit.files.atomic_folder import EXPORT, RECEIPT
from labkit.probing.intervals import Estimate
from labkit.summary import Summary
from labkit.writing.front_matter import CARD

KIND = EXPORT
"""What tells an export's receipt from a merge's."""


@dataclass(frozen=True, repr=False)
class Export(Summary):
    """What an export did.

    Attributes:
        folder: where it is.
        format: the format's name.
        merged: the merged model's name.
        files: name -> bytes of the files that a program runs.
        sha256: name -> SHA-256 of them.
        beside: the names of others: licences, and the merge's recipe where it has one.
        runs: the one that a program is given; "." for the folder.
        usage: how to run it, for a shell.
        calibration: the name of the texts it was calibrated on; empty if it was not.
        calibration_sha256: their SHA-256.
        calibrated: how many of their tokens were read.
        checked: what the check found; None where nothing was checked.
        tools: what made it: name -> version; none where it is a job, to be carried out elsewhere.
        peak_memory: bytes of memory that the conversion took at most.
        processor_seconds: processor time that it took.
        seconds: how long all of it took, the check included.
        created: when it began, in UTC.
        notes: what is worth knowing.
    """

    folder: Path
    format: str
    merged: str
    files: dict[str, int]
    sha256: dict[str, str]
    beside: tuple[str, ...]
    runs: str
    usage: str
    calibration: str
    calibration_sha256: str
    calibrated: int
    checked: Checked | None
    tools: dict[str, str]
    peak_memory: int
    processor_seconds: float
    seconds: float
    created: str
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of its files in bytes."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """The receipt as `receipt.json` has it."""
        from labkit import __version__

        return {
            "labkit": __version__,
            "created": self.created,
            "seconds": round(self.seconds, 3),
            KIND: self.format,
            "merged": self.merged,
            "tools": self.tools,
            "peak_memory": self.peak_memory,
            "processor_seconds": round(self.processor_seconds, 3),
            "calibration": {
                "texts": self.calibration,
                "sha256": self.calibration_sha256,
                "tokens": self.calibrated,
            }
            if self.calibration
            else None,
            "checked": self.checked.to_json() if self.checked else None,
            "notes": list(self.notes),
            "files_written": self.sha256,
            "files": sorted({*self.files, *self.beside, CARD, RECEIPT}),
        }

    def summary(self) -> Iterator[tuple[str, str]]:
        """The receipt in a few lines: a label and a text each."""
        yield "written", str(self.folder)
        yield "format", f"{self.format} of {self.merged}, {self.nbytes / 1e9:.2f} GB"
        if self.calibration:
            begins = "calibrated" if self.tools else "to be calibrated"
            yield begins, f"on {self.calibrated} tokens of {self.calibration}"
        if self.checked:
            for one in self.checked.texts:
                yield (
                    "checked",
                    f"{one.name}: KL {said(one.kl)}, "
                    f"same token on top at {one.top.value:.1%}, NLL {one.nll.value:.3f} "
                    f"({one.nll_change.value:+.4f})",
                )
            yield (
                "greedy",
                f"{self.checked.greedy} of {self.checked.steps} tokens of the merge's own text",
            )
        yield (
            "took",
            (
                f"{self.processor_seconds:.0f} s of processor time and "
                f"{self.peak_memory / 1e9:.2f} GB of memory to convert, {self.seconds:.0f} s in all"
            ),
        )
        yield "run", self.usage
        for note in self.notes:
            yield "note", note


def said(estimate: Estimate, form: str = ".4f") -> str:
    """An estimate with its interval; of one document there is none."""
    if math.isnan(estimate.low):
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"
