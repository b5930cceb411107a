"""The receipt: what a merge did, tensor by tensor and file by file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.summary import Summary
from labkit.surveys.rounding_loss import MUCH_LOST

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TensorReceipt:
    """What was done to one tensor.

    Attributes:
        name: the base's tensor.
        layer: its layer; None outside the layers.
        weights: the weight of each adapter that changed it.
        asked: `‖Σ w·ΔW‖_F`, the change that was asked for.
        achieved: `‖W' - W‖_F`, the change that is there after rounding.
        missing: `‖(W' - W) - Σ w·ΔW‖_F`, what rounding made of the difference between the two.
    """

    name: str
    layer: int | None
    weights: tuple[float, ...]
    asked: float
    achieved: float
    missing: float = 0.0

    @staticmethod
    def from_json(content: dict[str, Any]) -> TensorReceipt:
        """Read what `Receipt.to_json` wrote of it; a norm that was no number is NaN.

        Raises:
            KeyError, TypeError: it is not there.
        """
        norms = (content[f"{name}_norm"] for name in ("asked", "achieved", "missing"))
        return TensorReceipt(
            content["name"],
            content["layer"],
            tuple(content["weights"]),
            *(math.nan if norm is None else float(norm) for norm in norms),
        )

    @property
    def is_finite(self) -> bool:
        """Whether its norms are: the base held neither NaN nor infinity there."""
        return math.isfinite(self.asked + self.achieved + self.missing)


@dataclass(frozen=True)
class MadeOf:
    """What a merge's bytes hang on; see `labkit.writing.earlier`.

    Attributes:
        base: the SHA-256 of the base's files, by name.
        tensors: of each tensor that changed the SHA-256 of all else that decides its bytes.
    """

    base: dict[str, str]
    tensors: dict[str, str]


@dataclass(frozen=True)
class TakenOver:
    """What a merge took over from an earlier one.

    Attributes:
        folder: the earlier merge's.
        tensors: the names of those that changed the base.
        linked: files that the two share by hard links.
    """

    folder: Path
    tensors: tuple[str, ...]
    linked: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Receipt(Summary):
    """What a merge did.

    Attributes:
        folder: where the merged model is.
        base: the base's name.
        adapters: the adapters' names.
        device: where it was calculated.
        seconds: how long it took.
        created: when it began, in UTC.
        tensors: every tensor that changed.
        untouched: how many tensors kept their bytes.
        linked: files that are shared with the base by hard links.
        files_read: path -> SHA-256; empty without hashing.
        files_written: name -> SHA-256, all but the receipt and its companions.
        notes: what the plan noted, and what is worth knowing of the files.
        files: the names of all files in the folder.
        made_of: what its bytes hang on; None without hashing.
        taken_over: what came from an earlier merge; None if nobody named one.
    """

    folder: Path
    base: str
    adapters: tuple[str, ...]
    device: str
    seconds: float
    created: str
    tensors: tuple[TensorReceipt, ...]
    untouched: int
    linked: tuple[str, ...]
    files_read: dict[str, str]
    files_written: dict[str, str]
    notes: tuple[str, ...]
    files: tuple[str, ...] = ()
    made_of: MadeOf | None = None
    taken_over: TakenOver | None = None

    @property
    def asked(self) -> float:
        """The norm of the whole change that was asked for."""
        return math.hypot(*(tensor.asked for tensor in self.tensors))

    @property
    def achieved(self) -> float:
        """The norm of the whole change that is there after rounding."""
        return math.hypot(*(tensor.achieved for tensor in self.tensors))

    @property
    def lost(self) -> float:
        """The part of the whole change that rounding lost: `‖(W' - W) - Σ w·ΔW‖ / ‖Σ w·ΔW‖`."""
        missing = math.hypot(*(tensor.missing for tensor in self.tensors))
        return missing / self.asked if self.asked > 0 else 0.0

    def table(self) -> pd.DataFrame:
        """One row for each tensor that changed."""
        import pandas as pd

        return pd.DataFrame([vars(tensor) for tensor in self.tensors])

    def to_json(self) -> dict[str, Any]:
        """The receipt as `receipt.json` has it. Paths are left out: files are named."""
        from labkit import __version__

        return {
            "labkit": __version__,
            "created": self.created,
            "seconds": round(self.seconds, 3),
            "device": self.device,
            "base": self.base,
            "adapters": list(self.adapters),
            "untouched_tensors": self.untouched,
            "linked_files": list(self.linked),
            "notes": list(self.notes),
            "files_read": {Path(path).name: digest for path, digest in self.files_read.items()},
            "files_written": self.files_written,
            "files": list(self.files),
            "tensors": [
                {
                    "name": tensor.name,
                    "layer": tensor.layer,
                    "weights": list(tensor.weights),
                    "asked_norm": _number(tensor.asked),
                    "achieved_norm": _number(tensor.achieved),
                    "missing_norm": _number(tensor.missing),
                }
                for tensor in self.tensors
            ],
            **({"made_of": vars(self.made_of)} if self.made_of else {}),
            **({"taken_over": self._taken_over()} if self.taken_over else {}),
        }

    def _taken_over(self) -> dict[str, Any]:
        assert self.taken_over is not None  # noqa: S101 - asked for only then
        return {
            "from": self.taken_over.folder.name,
            "tensors": list(self.taken_over.tensors),
            "linked_files": list(self.taken_over.linked),
        }

    def summary(self) -> Iterator[tuple[str, str]]:
        """The receipt in a few lines: a label and a text each."""
        yield "written", str(self.folder)
        yield "merged", f"{' + '.join((self.base, *self.adapters))}, in {self.seconds:.1f} s"
        yield (
            "tensors",
            f"{len(self.tensors)} changed, {self.untouched} with the base's own bytes",
        )
        if self.taken_over:
            yield (
                "reused",
                f"{len(self.taken_over.tensors)} of the {len(self.tensors)} changed tensors, from "
                f"{self.taken_over.folder}",
            )
            if self.taken_over.linked:
                yield "linked", f"{', '.join(self.taken_over.linked)}: shared with that folder"
        if self.tensors:
            yield (
                "change",
                f"norm {self.achieved:.4g} after rounding, of {self.asked:.4g} asked for",
            )
        if self.lost > MUCH_LOST:
            yield (
                "rounding",
                f"{self.lost:.1%} of the change is lost to rounding; dtype float32 keeps it",
            )
        if self.linked:
            yield "linked", f"{', '.join(self.linked)}: shared with the base's folder"
        for note in self.notes:
            yield "note", note


def _number(value: float) -> float | None:
    # JSON has no NaN: a base that holds one has no norm.
    return value if math.isfinite(value) else None
