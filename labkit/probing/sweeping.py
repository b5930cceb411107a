"""Points measured one by one, here or on many machines, in a table that a restart continues."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, shown, with_kind
from labkit.probing.grid_points import ERROR, Key, Point, checked_points, key_of, said
from labkit.probing.sweep_file import Rows, columns_of, opened

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    points: Iterable[Mapping[str, Any]],
    measure: Callable[[Point], Any],
    path: str | Path | None = None,
    executor: Executor | None = None,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every point of a grid. A sweep that was stopped goes on where its file ends.

        points = lk.grid(gradient={"early": "1x15,0x15", "late": "0x15,1x15"}, strength=(0.5, 1))
        measure = lk.Evaluation(base, lora, texts)
        lk.sweep(points, measure, "sweep.parquet")

    On many processes or machines, with dask (`pip install 'labkit[cluster]'`):

        from distributed import Client, LocalCluster
        with Client(LocalCluster(n_workers=2, threads_per_worker=1)) as client:
            lk.sweep(points, measure, "sweep.parquet", client.get_executor())

    Each task carries the measure and its point. A worker of dask that is lost is no loss: its tasks
    run again on others. Rows do not depend on who measured them, or when.

    Args:
        points: a `grid`, or other mappings with the same names each.
        measure: takes a point; gives a mapping of numbers and texts, or a table (a DataFrame, a
            list of mappings), which becomes several rows. For other processes it has to be one that
            can be pickled: an `Evaluation`, or a function of a module.
        path: the Parquet file of the rows. It is renamed into place whole, at most a second after
            a row is there; a row in it is not measured again. It belongs to one measure: another
            function, or the same one with another text, is refused. What a function reads
            from elsewhere is not looked at.
        executor: runs the tasks: any of `concurrent.futures`, or like it. None runs them here, one
            after the other.
        progress: show the rows as they come (in a notebook), or a bar (in a terminal).

    Returns:
        one row for each point, or several, in the order of the points: the point, what was
        measured, and `error`. Where a point raises an error, its text is the row, the sweep goes
        on, and a warning says so at the end; the same sweep tries such points again. Ctrl-C ends a
        sweep and keeps the rows so far in the file.

    Raises:
        LabkitError: points that are no mappings of the same names to numbers and texts, or are
            there twice; a result that is neither of the two; a file of another sweep, or one that
            another sweep is writing; pyarrow is missing; or the executor broke down.
    """
    wanted = checked_points(points)
    axes = list(next(iter(wanted.values())))
    with opened(path, axes, measure) as file:
        rows = {key: found for key, found in file.rows.items() if key in wanted}
        missing = [point for key, point in wanted.items() if key not in rows]
        screen = _Screen(len(wanted), len(rows), progress)
        try:
            for point, found in _measured_all(missing, measure, executor):
                rows[key_of(point)] = file.rows[key_of(point)] = _checked(found, point)
                screen.count()
                if file.is_due():
                    file.write()
                    screen.show(_table(wanted, rows, axes))
        except KeyboardInterrupt as error:
            kept = f"in {shown(path)}" if path else "nowhere, for want of a file"
            error.add_note(f"sweep stopped: {len(rows)} of {len(wanted)} points are kept {kept}")
            raise
        finally:
            screen.close()
            file.write()
    table = _table(wanted, rows, axes)
    failed = table[table[ERROR].notna()]
    if len(failed):
        warnings.warn(
            f"{len(failed)} of {len(wanted)} points gave an error, the first: "
            f"{failed[ERROR].iloc[0]}; the same sweep tries them again",
            stacklevel=2,
        )
    return table


def _measured_all(
    points: Sequence[Point], measure: Callable[[Point], Any], executor: Executor | None
) -> Iterator[tuple[Point, Any]]:
    """Each point with its rows, or with the text of its error, as they finish."""
    if executor is None:
        for point in points:
            yield point, _measured(measure, point)
        return
    futures: dict[Any, Point] = {}
    ended: BaseException | None = None
    try:
        try:
            for point in points:
                futures[executor.submit(_measured, measure, point)] = point
        except (RuntimeError, TypeError) as refused:  # it takes no tasks, or cannot send this one
            ended = refused
        for future in as_completed(futures):
            error = _error_of(future)
            if isinstance(error, (BrokenExecutor, CancelledError)):
                ended = error  # of every task that is left; those that finished are not lost
            else:
                yield futures[future], _text(error) if error else future.result()
    finally:
        for future in futures:
            future.cancel()
    if ended is not None:
        raise LabkitError(
            f"the executor ended before the sweep: {_text(ended)}; the rows so far are kept in the "
            "file, if there is one: the same sweep goes on from there"
        ) from ended


def _error_of(future: Any) -> BaseException | None:
    try:
        found: BaseException | None = future.exception()
    except CancelledError as error:
        return error
    return found


def _measured(measure: Callable[[Point], Any], point: Point) -> Any:
    """Runs in the worker. An error becomes text there: not every error can be sent."""
    try:
        found = measure(dict(point))
    except Exception as error:  # noqa: BLE001 - one point's error is its row
        return _text(error)
    if hasattr(found, "to_dict") and hasattr(found, "columns"):
        found = found.to_dict("records")
    return [found] if isinstance(found, Mapping) else found


def _text(error: BaseException) -> str:
    return shown(with_kind(error), 1000)


def _checked(found: Any, point: Point) -> Rows:
    if isinstance(found, str):
        return [{**point, ERROR: found}]
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, Mapping) for one in found):
        raise LabkitError(
            f"the measure gave {shown(repr(found))} at {said(point)}; expected a mapping of names "
            "to numbers, or a table"
        )
    rows = []
    for one in found:
        row: dict[str, Any] = dict(point)
        for name, value in one.items():
            if name in point or name == ERROR:
                raise LabkitError(
                    f"the measure gives {shown(name)!r}, which the points have already; give it "
                    "another name"
                )
            plain = value.item() if hasattr(value, "item") else value
            if plain is not None and not isinstance(plain, (int, float, str)):
                raise LabkitError(
                    f"the measure gives {shown(repr(value))} for {shown(name)!r} at "
                    f"{said(point)}; expected a number or a text"
                )
            row[str(name)] = plain
        rows.append({**row, ERROR: None})
    return rows


def _table(
    wanted: Mapping[Key, Point], rows: Mapping[Key, Rows], axes: Sequence[str]
) -> pd.DataFrame:
    import pandas as pd

    # The names of gradients are those of this sweep, whatever they were when they were measured.
    listed = [{**row, **point} for key, point in wanted.items() for row in rows.get(key, ())]
    return pd.DataFrame(listed, columns=columns_of(listed, axes))


class _Screen:
    """Shows the rows in a notebook, or a bar in a terminal."""

    def __init__(self, total: int, there: int, progress: bool) -> None:
        from tqdm import tqdm

        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        self._cell: Any = None
        if progress and hasattr(shell, "kernel"):
            from IPython import display

            self._cell = display.DisplayHandle()  # type: ignore[no-untyped-call]
            self._cell.display({"text/plain": "sweep"}, raw=True)
        hidden = None if progress and self._cell is None else True  # None: not in a terminal
        self._bar = tqdm(total=total, initial=there, desc="sweep", unit="point", disable=hidden)
        self._there, self._total = there, total

    def count(self) -> None:
        self._there += 1
        self._bar.update(1)

    def show(self, table: pd.DataFrame) -> None:
        if self._cell is not None:
            self._cell.update(table)

    def close(self) -> None:
        self._bar.close()
        if self._cell is not None:  # the table that is returned stands in its place
            text = f"sweep: {self._there} of {self._total} points"
            self._cell.update({"text/plain": text}, raw=True)
