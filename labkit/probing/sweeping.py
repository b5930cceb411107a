"""Many points measured one by one, here or on many machines, in a table that a restart continues.

Points are flat mappings of names to numbers and texts, and so is what is measured at each, so that
tasks are small and rows can be kept in one Parquet file.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from labkit.errors import LabkitError, shown
from labkit.files.paths import user_path
from labkit.gradients.calls import as_gradient
from labkit.gradients.gradient import Gradient
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.probing.texts import Texts

if TYPE_CHECKING:
    import pandas as pd

    from labkit.inference.live_model import LiveModel, Mix
    from labkit.probing.scores import Reader

Value = float | str
Point = dict[str, Value]
Rows = list[dict[str, Any]]
Key = tuple[Value, ...]

GRADIENT, WEIGHTS, ERROR = "gradient", "weights", "error"
BETWEEN_WRITES = 1.0
"""Seconds from one writing of the file to the next; or more, where writing takes long."""
WRITING_SHARE = 0.05
"""The share of the time that may go into writing the file."""
METADATA = b"labkit.sweep"


def grid(**axes: Any) -> list[Point]:
    """Every combination of some values: the points of a sweep, the last axis changing fastest.

        lk.grid(gradient={"early": "1x15,0x15", "late": "0x15,1x15"}, strength=(0.5, 1.0))

    Args:
        axes: name -> its values, numbers or texts; one value alone stands for itself. `gradient`
            takes gradients in a list, or by name.

    Returns:
        one mapping for each point. A gradient stands in it twice: its name as `gradient`, and its
        list as `weights` (text that `Gradient.parse` reads).

    Raises:
        LabkitError: an axis without values, or with values of another kind.
    """
    columns: list[list[Point]] = []
    for name, given in axes.items():
        if name == GRADIENT:
            columns.append(_gradients(given))
            continue
        single = isinstance(given, str) or not isinstance(given, Iterable)
        columns.append([{name: _value(name, one)} for one in ([given] if single else given)])
        if not columns[-1]:
            raise LabkitError(f"the axis {shown(name)!r} of the grid has no values")
    return [
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*columns)
    ]


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
    wanted = _points(points)
    axes = list(next(iter(wanted.values())))
    with _opened(path, axes, measure) as file:
        rows = {key: found for key, found in file.rows.items() if key in wanted}
        missing = [point for key, point in wanted.items() if key not in rows]
        screen = _Screen(len(wanted), len(rows), progress)
        try:
            for point, found in _measured_all(missing, measure, executor):
                rows[_key(point)] = file.rows[_key(point)] = _checked(found, point)
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


@dataclass(frozen=True, init=False, repr=False)
class Evaluation:
    """Measures texts at a point, with the base and adapters that a worker keeps in memory.

    A point may have `gradient` and `weights` (for every adapter; 1 everywhere if left out),
    `strength` (multiplies the gradient), `adapter` (the name of the only one in force; the others
    have the weight 0), and `seed` (of the intervals' draws). The rows are those of `lk.evaluate`:
    `text`, `metric`, `estimate`, `low`, `high`, `from_base` with its interval, `mean_weight`,
    `passages`, `tokens`. Strength 0 is the base, strength 1 without a gradient the full LoRA.

    Attributes:
        base: the base model: a folder or hub id that every worker can read.
        adapters: one LoRA, or several.
        texts: one set of texts, or several. They go along with every task.
        metrics: as in `lk.evaluate`.
        rest: as in `lk.live`; likewise `device` and `dtype`.
    """

    base: str
    adapters: tuple[str, ...]
    texts: tuple[Texts, ...]
    metrics: tuple[str, ...]
    rest: float | None
    device: str
    dtype: str

    def __init__(
        self,
        base: Checkpoint | str | Path,
        adapters: Adapter | str | Path | Sequence[Adapter | str | Path],
        texts: Texts | Sequence[Texts],
        metrics: Sequence[str] = ("nll", "kl"),
        *,
        rest: float | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        listed = [adapters] if isinstance(adapters, (Adapter, str, Path)) else adapters
        known = {
            "base": _reference(base),
            "adapters": tuple(map(_reference, listed)),
            "texts": (texts,) if isinstance(texts, Texts) else tuple(texts),
            "metrics": tuple(metrics),
            "rest": rest,
            "device": device,
            "dtype": dtype,
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)
        unknown = [metric for metric in self.metrics if metric not in ("nll", "kl")]
        if unknown:
            raise LabkitError(f"the metric {shown(unknown[0])!r} is unknown; known are nll and kl")
        if not self.texts:
            raise LabkitError("an evaluation needs at least one set of texts")

    def __repr__(self) -> str:
        texts = ", ".join(f"{one.name} {one.sha256[:16]}" for one in self.texts)
        return (
            f"Evaluation({self.base!r}, {list(self.adapters)}, texts=[{texts}], "
            f"metrics={list(self.metrics)}, rest={self.rest}, dtype={self.dtype!r})"
        )

    def __call__(self, point: Point) -> Rows:
        """Measure the texts at a point.

        Raises:
            LabkitError: names in the point that mean nothing here, an adapter that is not there,
                or a gradient of the wrong length.
        """
        from labkit.probing.intervals import Bootstrap

        kept = _kept(self)
        mix = self._mix(kept.model, point)
        rows = []
        for reader, base in zip(kept.readers, kept.base_nll, strict=True):
            documents = [one.document for one in reader.texts]
            draws = Bootstrap(documents, reader.counts, int(point.get("seed", 0)))
            for metric in self.metrics:
                sums = reader.nll(mix) if metric == "nll" else reader.kl_from_base(mix)
                estimate = draws.estimate(sums)
                change = draws.estimate(sums - base) if metric == "nll" else estimate
                rows.append(
                    {
                        "text": reader.texts.name,
                        "metric": metric,
                        "estimate": estimate.value,
                        "low": estimate.low,
                        "high": estimate.high,
                        "from_base": change.value,
                        "from_base_low": change.low,
                        "from_base_high": change.high,
                        "mean_weight": math.fsum(mix.flat()) / len(mix.flat()),
                        "passages": len(reader.texts),
                        "tokens": int(reader.counts.sum()),
                    }
                )
        return rows

    def _mix(self, model: LiveModel, point: Point) -> Mix:
        from labkit.merging.recipe import Term

        known = (GRADIENT, WEIGHTS, "strength", "adapter", "seed")
        for name in point:
            if name not in known:
                raise LabkitError(
                    f"an Evaluation does not know {shown(name)!r}; a point for it has "
                    f"{', '.join(known)}"
                )
        names = [adapter.name for adapter in model.adapters]
        chosen = point.get("adapter")
        if chosen is not None and chosen not in names:
            raise LabkitError(
                f"no adapter {shown(chosen)!r}; the evaluation has {', '.join(map(shown, names))}"
            )
        layers = model.base.layers
        strength = float(point.get("strength", 1.0))
        whole = Gradient.parse(str(point.get(WEIGHTS, f"1x{layers}"))) * strength
        none = Gradient.constant(layers, 0.0)
        return model.mix(
            [
                Term(adapter, whole if chosen in (None, adapter.name) else none)
                for adapter in model.adapters
            ]
        )


@dataclass(frozen=True)
class _Kept:
    """What a process keeps between its tasks: the model, the texts as tokens, the base's NLL."""

    model: LiveModel
    readers: list[Reader]
    base_nll: list[Any]


_one_at_a_time = threading.Lock()


def _kept(evaluation: Evaluation) -> _Kept:
    with _one_at_a_time:
        found = _prepared(evaluation)
        if found.model.freed:
            _prepared.cache_clear()
            found = _prepared(evaluation)
        return found


@lru_cache(maxsize=1)
def _prepared(evaluation: Evaluation) -> _Kept:
    # torch is imported here: a worker with a measure of its own may do without.
    from labkit.inference.live_model import live
    from labkit.probing.scores import Reader

    model = live(
        evaluation.base,
        *evaluation.adapters,
        rest=evaluation.rest,
        device=evaluation.device,
        dtype=evaluation.dtype,
    )
    readers = [Reader(model, texts) for texts in evaluation.texts]
    return _Kept(model, readers, [reader.nll(model.mix(0.0)) for reader in readers])


def _reference(source: Checkpoint | Adapter | str | Path) -> str:
    return str(source.folder if isinstance(source, (Checkpoint, Adapter)) else source)


# Points


def _gradients(given: Any) -> list[Point]:
    if isinstance(given, (str, Gradient)):
        given = [given]
    named = isinstance(given, Mapping)
    points: list[Point] = []
    for number, one in enumerate(given):
        weights = given[one] if named else one
        if not isinstance(weights, (str, Gradient, Sequence, Mapping)):
            raise LabkitError(
                f"gradient {number} of the grid is {shown(repr(weights))}; expected gradients, in "
                'a list or by name, such as {"late": "0x15,1x15"}'
            )
        runs = as_gradient(weights).runs()
        points.append({GRADIENT: str(one) if named else runs, WEIGHTS: runs})
    if not points:
        raise LabkitError("the axis 'gradient' of the grid has no values")
    return points


def _value(name: str, value: Any) -> Value:
    plain = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
    if isinstance(plain, str) or (
        isinstance(plain, (int, float)) and math.isfinite(plain) and abs(plain) < 2**63
    ):
        return plain
    raise LabkitError(
        f"{shown(name)!r} of a point is {shown(repr(value))}; expected a number or a text"
    )


def _points(given: Iterable[Mapping[str, Any]]) -> dict[Key, Point]:
    points: dict[Key, Point] = {}
    names: set[str] = set()
    kinds: dict[str, bool] = {}
    for number, one in enumerate(given):
        if not isinstance(one, Mapping):
            raise LabkitError(
                f"point {number} is {shown(repr(one))}; expected a mapping, as lk.grid makes them"
            )
        point: Point = {}
        for name, value in one.items():
            if name == GRADIENT and WEIGHTS not in one:
                point |= _gradients([value])[0]
            else:
                point[str(name)] = _value(str(name), value)
        names = names or set(point)
        if set(point) != names:
            odd = min(set(point) ^ names)
            raise LabkitError(f"point {number} and those before it do not share {shown(odd)!r}")
        for name, plain in point.items():
            if kinds.setdefault(name, isinstance(plain, str)) != isinstance(plain, str):
                raise LabkitError(
                    f"{shown(name)!r} is a text in some points and a number in others"
                )
        if _key(point) in points:
            raise LabkitError(f"point {number}, {_said(point)}, is there twice")
        points[_key(point)] = point
    if not points or not names:
        raise LabkitError("the sweep has no points; make them with lk.grid(gradient=[…], …)")
    if ERROR in names:
        raise LabkitError(f"a point cannot have {ERROR!r}, which is a column of the table")
    return points


def _key(point: Mapping[str, Any]) -> Key:
    """What makes a point the one that it is: a gradient's list, and not its name."""
    return tuple(point[name] for name in sorted(point) if name != GRADIENT or WEIGHTS not in point)


def _said(point: Point) -> str:
    return ", ".join(f"{name} {shown(value, 60)}" for name, value in point.items())


# Measuring


def _measured_all(
    points: Sequence[Point], measure: Callable[[Point], Any], executor: Executor | None
) -> Iterator[tuple[Point, Any]]:
    """Each point with its rows, or with the text of its error, as they finish."""
    if executor is None:
        for point in points:
            yield point, _measured(measure, point)
        return
    futures: dict[Any, Point] = {}
    try:
        for point in points:
            futures[executor.submit(_measured, measure, point)] = point
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                raise error
            yield futures[future], _text(error) if error else future.result()
    except (BrokenExecutor, CancelledError, RuntimeError, TypeError) as error:
        raise LabkitError(
            f"the executor ended before the sweep: {_text(error)}; the rows so far are kept in the "
            "file, if there is one: the same sweep goes on from there"
        ) from error
    finally:
        for future in futures:
            future.cancel()


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
    kind = "" if isinstance(error, LabkitError) else f"{type(error).__name__}: "
    return kind + shown(error, 1000)


def _checked(found: Any, point: Point) -> Rows:
    if isinstance(found, str):
        return [{**point, ERROR: found}]
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, Mapping) for one in found):
        raise LabkitError(
            f"the measure gave {shown(repr(found))} at {_said(point)}; expected a mapping of names "
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
                    f"{_said(point)}; expected a number or a text"
                )
            row[str(name)] = plain
        rows.append({**row, ERROR: None})
    return rows


def _columns(rows: Iterable[Mapping[str, Any]], axes: Sequence[str]) -> list[str]:
    names = dict.fromkeys(axes) | dict.fromkeys(name for row in rows for name in row)
    names.pop(ERROR, None)
    return [*names, ERROR]


def _table(
    wanted: Mapping[Key, Point], rows: Mapping[Key, Rows], axes: Sequence[str]
) -> pd.DataFrame:
    import pandas as pd

    # The names of gradients are those of this sweep, whatever they were when they were measured.
    listed = [{**row, **point} for key, point in wanted.items() for row in rows.get(key, ())]
    return pd.DataFrame(listed, columns=_columns(listed, axes))


# The file


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


class _File:
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
                rows.setdefault(_key({name: row[name] for name in self.axes}), []).append(row)
        return rows

    def _write(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        rows = [row for found in self.rows.values() for row in found]
        made = json.dumps({"measure": self.measure, "axes": sorted(self.axes)})
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            columns = {name: [row.get(name) for row in rows] for name in _columns(rows, self.axes)}
            table = pyarrow.table(columns).replace_schema_metadata({METADATA: made.encode()})
            with beside.open("wb") as opened:
                pyarrow.parquet.write_table(table, opened)
                opened.flush()
                os.fsync(opened.fileno())
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
def _opened(path: str | Path | None, axes: Sequence[str], measure: Any) -> Iterator[_File]:
    if path is None:
        yield _File(None, axes, "")
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
        yield _File(where, axes, described)
    finally:
        lock.release()


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
