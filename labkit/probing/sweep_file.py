"""The Parquet file of a sweep: whole at any time, of one measure, and read by what comes later."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.probing.grid_points import ERROR, Key, key_of

Rows = list[dict[str, Any]]

BETWEEN_WRITES = 1.0
"""Seconds from one writing of the file to the next; or more, where writing takes long."""
WRITING_SHARE = 0.05
"""The share of the time that may go into writing the file."""
METADATA = b"labkit.sweep"


class SweepFile:
    """Keeps rows, in a Parquet file where one is wanted.

    Attributes:
        rows: of each point, also of points of earlier sweeps.
    """

    def __init__(self, path: Path | None, axes: Sequence[str], measure: str) -> None:
        self.path, self.axes, self.measure = path, list(axes), measure
        self.rows = self._read() if path is not None and path.exists() else {}
        self._written = len(self.rows)
        self._last, self._wait = -math.inf, BETWEEN_WRITES

    def is_due(self) -> bool:
        """Whether it is time to write again, and to show what there is."""
        return time.monotonic() - self._last >= self._wait

    def write(self) -> None:
        """Write all rows beside the file, and rename them into place."""
        begun = time.monotonic()
        if self.path is not None and self._written < len(self.rows):
            self._write(self.path)
            self._written = len(self.rows)
        self._last = time.monotonic()
        self._wait = max(BETWEEN_WRITES, (self._last - begun) / WRITING_SHARE)

    def _read(self) -> dict[Key, Rows]:
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(self.path)
            made = json.loads((table.schema.metadata or {})[METADATA])
        except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
            raise LabkitError(
                f"{shown(self.path)} is no file of a sweep; choose another name"
            ) from error
        for what, mine in (("axes", sorted(self.axes)), ("measure", self.measure)):
            if made.get(what) != mine:
                raise LabkitError(
                    f"{shown(self.path)} is of another sweep: its {what} is "
                    f"{shown(made.get(what), 400)}, and here it is {shown(mine, 400)}; choose "
                    "another file"
                )
        rows: dict[Key, Rows] = {}
        for row in table.to_pylist():
            # An error may have had to do with its day: such a point is tried again.
            if row[ERROR] is None:
                rows.setdefault(key_of({name: row[name] for name in self.axes}), []).append(row)
        return rows

    def _write(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        rows = [row for found in self.rows.values() for row in found]
        made = json.dumps({"measure": self.measure, "axes": sorted(self.axes)})
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            columns = {
                name: [row.get(name) for row in rows] for name in columns_of(rows, self.axes)
            }
            table = pyarrow.table(columns).replace_schema_metadata({METADATA: made.encode()})
            with beside.open("wb") as target:
                pyarrow.parquet.write_table(table, target)
                target.flush()
                os.fsync(target.fileno())
            beside.replace(path)
        except pyarrow.ArrowException as error:
            raise LabkitError(
                f"the rows fit no table ({shown(error)}); a measure gives numbers or texts, the "
                "same kind for a name each time"
            ) from error
        except OSError as error:
            raise LabkitError(f"cannot write {shown(path)}: {error.strerror or error}") from error
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def opened(path: str | Path | None, axes: Sequence[str], measure: Any) -> Iterator[SweepFile]:
    """Open the file of a sweep, and keep others from writing it; None keeps rows in memory.

    Raises:
        LabkitError: as `sweep`.
    """
    if path is None:
        yield SweepFile(None, axes, "")
        return
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise LabkitError(
            "the file of a sweep needs pyarrow; install it with pip install 'labkit[cluster]'"
        ) from error
    where = user_path(path)
    if not where.parent.is_dir():
        raise LabkitError(f"cannot write {shown(where)}: no folder {shown(where.parent)}; make it")
    described = _described(measure)
    lock = FileLock(where.with_name(f".{where.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise LabkitError(f"another sweep is writing {shown(where)}; wait for it") from error
    except OSError as error:
        raise LabkitError(f"cannot write {shown(where)}: {error.strerror or error}") from error
    try:
        yield SweepFile(where, axes, described)
    finally:
        lock.release()


def columns_of(rows: Iterable[Mapping[str, Any]], axes: Sequence[str]) -> list[str]:
    """The columns of a table: the axes, what was measured, and last the error."""
    names = dict.fromkeys(axes) | dict.fromkeys(name for row in rows for name in row)
    names.pop(ERROR, None)
    return [*names, ERROR]


def _described(measure: Any) -> str:
    """What a measure is, the same tomorrow and in another process."""
    if isinstance(measure, partial):
        given = [*map(repr, measure.args), *(f"{k}={v!r}" for k, v in measure.keywords.items())]
        said = f"{_described(measure.func)}({', '.join(given)})"
    elif inspect.isroutine(measure) and not hasattr(measure, "__self__"):
        try:
            source = inspect.getsource(measure)
        except (OSError, TypeError):
            source = ""
        digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        said = f"{measure.__module__}.{measure.__qualname__} {digest}"
    else:
        said = repr(measure)
    if " at 0x" in said:
        raise LabkitError(
            f"the measure {shown(said)} does not say what it is, so that its file could not be "
            "told from another's; make it a function, or a dataclass"
        )
    return said
