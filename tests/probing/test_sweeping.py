"""Sweeps: every point once, rows that are kept, errors as rows, and the same rows from anywhere."""

import functools
import os
import pickle
import signal
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit.errors import LabkitError
from labkit.probing.texts import Texts

parquet = pytest.importorskip("pyarrow.parquet", reason="the file of a sweep needs pyarrow")

TARGET = Texts("target", ["In the beginning was", "And the earth was void", "Let there be light"])
KEEP = Texts("keep", ["The train leaves at nine", "We should be early"])
SHAPES = {"late": "0x2,1x2", "mine": "0,0.5,1,-0.5"}
calls = []


def product(point):
    calls.append(dict(point))
    return {"value": point["a"] * point["b"]}


def product_but_one(point):
    if (point["a"], point["b"]) == (2, 10):
        raise ValueError("no such point\nhere")
    return {"value": point["a"] * point["b"]}


def stopped_at_two(point):
    if point["a"] == 2:
        raise KeyboardInterrupt
    return {"value": point["a"] * 10}


@pytest.fixture(autouse=True)
def _no_calls():
    calls.clear()


def test_a_grid_is_every_combination():
    points = lk.grid(gradient={"late": "0,0,1,1"}, strength=(0.5, np.float32(1)), seed=range(2))
    late = {"gradient": "late", "weights": "0x2,1x2"}
    assert points == [
        {**late, "strength": strength, "seed": seed} for strength in (0.5, 1.0) for seed in (0, 1)
    ]
    assert all(type(value) in (str, float, int) for one in points for value in one.values())
    unnamed = lk.grid(gradient=[lk.Gradient([0.5] * 4), [1, 0, 0, 0]], adapter="kjv")
    assert unnamed == [
        {"gradient": "0.5x4", "weights": "0.5x4", "adapter": "kjv"},
        {"gradient": "1,0x3", "weights": "1,0x3", "adapter": "kjv"},
    ]


def test_rows_stand_in_the_order_of_the_points():
    table = lk.sweep(lk.grid(a=(1, 2), b=(10, 20)), product)
    assert list(table.columns) == ["a", "b", "value", "error"]
    assert list(table["value"]) == [10, 20, 20, 40]
    assert table["error"].isna().all()
    with ThreadPoolExecutor(3) as pool:
        same = lk.sweep(lk.grid(a=(1, 2), b=(10, 20)), product, executor=pool)
    pd.testing.assert_frame_equal(same, table)


def test_a_measure_may_give_several_rows():
    def two(point):
        return pd.DataFrame({"text": ["x", "y"], "value": [point["a"], np.float64(0.5)]})

    table = lk.sweep([{"a": 1}, {"a": 2}], two)
    assert table["a"].tolist() == [1, 1, 2, 2]
    assert table["value"].tolist() == [1, 0.5, 2, 0.5]


def test_a_sweep_goes_on_where_its_file_ends(tmp_path):
    path = tmp_path / "sweep.parquet"
    first = lk.sweep(lk.grid(a=(1, 2), b=10), product, path)
    assert len(calls) == 2
    whole = lk.sweep(lk.grid(a=(1, 2, 3), b=(10, 20)), product, path)
    assert calls[2:] == [{"a": 1, "b": 20}, {"a": 2, "b": 20}, {"a": 3, "b": 10}, {"a": 3, "b": 20}]
    assert list(whole["value"]) == [10, 20, 20, 40, 30, 60]
    pd.testing.assert_frame_equal(lk.sweep(lk.grid(a=(1, 2), b=10), product, path), first)
    assert len(calls) == 6
    # What other programs read, and nothing half-written beside it.
    assert sorted(pd.read_parquet(path)["value"]) == [10, 20, 20, 30, 40, 60]
    assert {one.name for one in tmp_path.iterdir()} <= {path.name, f".{path.name}.lock"}


def test_a_gradient_is_its_list_whatever_its_name(tmp_path):
    def mean(point):
        calls.append(point)
        return {"mean": lk.Gradient.parse(point["weights"]).mean}

    path = tmp_path / "sweep.parquet"
    lk.sweep(lk.grid(gradient={"a": "0,1"}), mean, path)
    table = lk.sweep(lk.grid(gradient={"b": "0,1", "c": "1,1"}), mean, path)
    assert table[["gradient", "mean"]].values.tolist() == [["b", 0.5], ["c", 1.0]]
    assert [one["gradient"] for one in calls] == ["a", "c"]


def test_an_error_is_a_row_and_is_tried_again(tmp_path):
    path = tmp_path / "sweep.parquet"
    points = lk.grid(a=(1, 2), b=(10, 20))
    said = (
        r"1 of 4 points gave an error, the first: ValueError: no such point\\nhere; the same "
        "sweep tries them again"
    )
    for _ in range(2):  # in the file, too, the error is no row that counts
        with pytest.warns(UserWarning, match=said):
            table = lk.sweep(points, product_but_one, path)
        assert table["error"].isna().tolist() == [True, True, False, True]
        assert table["value"].isna().tolist() == [False, False, True, False]
    assert pd.read_parquet(path)["error"].notna().sum() == 1


def test_ctrl_c_keeps_the_rows(tmp_path):
    path = tmp_path / "sweep.parquet"
    with pytest.raises(KeyboardInterrupt) as caught:
        lk.sweep(lk.grid(a=(1, 2, 3)), stopped_at_two, path)
    assert caught.value.__notes__ == [f"sweep stopped: 1 of 3 points are kept in {path}"]
    assert pd.read_parquet(path)["value"].tolist() == [10]
    with pytest.raises(KeyboardInterrupt) as caught:
        lk.sweep(lk.grid(a=(1, 2, 3)), stopped_at_two)
    assert caught.value.__notes__ == [
        "sweep stopped: 1 of 3 points are kept nowhere, for want of a file"
    ]


def test_rows_reach_the_file_while_the_sweep_runs(tmp_path, monkeypatch):
    path = tmp_path / "sweep.parquet"
    monkeypatch.setattr("labkit.probing.sweep_file.BETWEEN_WRITES", 0.0)
    seen = []

    def look(point):
        seen.append(len(pd.read_parquet(path)) if path.exists() else 0)
        return {"value": 1}

    monkeypatch.setattr("labkit.probing.sweep_file.WRITING_SHARE", 1e9)
    lk.sweep(lk.grid(a=range(4)), look, path)
    assert seen == [0, 1, 2, 3]


def test_the_file_of_another_sweep_is_refused(tmp_path):
    path = tmp_path / "sweep.parquet"
    lk.sweep(lk.grid(a=1, b=2), product, path)
    with pytest.raises(
        LabkitError, match=r"is of another sweep: its measure is .*product [0-9a-f]{16}"
    ):
        lk.sweep(lk.grid(a=1, b=2), product_but_one, path)
    with pytest.raises(LabkitError, match=r"its axes is \['a', 'b'\], and here it is \['a'\]"):
        lk.sweep(lk.grid(a=1), product, path)
    added = functools.partial(product, b=1)
    with pytest.raises(LabkitError, match=r"here it is .*product [0-9a-f]{16}\(b=1\)"):
        lk.sweep(lk.grid(a=1, b=2), added, path)
    with pytest.raises(LabkitError, match="does not say what it is, so that its file could not"):
        lk.sweep(lk.grid(a=1, b=2), Silent(), path)
    other = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(other)
    with pytest.raises(LabkitError, match="is no file of a sweep; choose another name"):
        lk.sweep(lk.grid(a=1, b=2), product, other)
    other.write_text("no parquet")
    with pytest.raises(LabkitError, match="is no file of a sweep; choose another name"):
        lk.sweep(lk.grid(a=1, b=2), product, other)
    with pytest.raises(LabkitError, match="cannot write .*: no folder .*none; make it"):
        lk.sweep(lk.grid(a=1, b=2), product, tmp_path / "none" / "sweep.parquet")


class Silent:
    def __call__(self, point):
        return {}


def test_one_sweep_writes_a_file(tmp_path):
    path = tmp_path / "sweep.parquet"

    def inner(point):
        with pytest.raises(LabkitError, match="another sweep is writing .*; wait for it"):
            lk.sweep(lk.grid(a=1, b=2), product, path)
        return {"value": 1}

    table = lk.sweep([{"a": 1}], inner, path)
    assert table["error"].isna().all()


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LabkitError, match=r"needs pyarrow; install it with pip install 'labkit\["):
        lk.sweep(lk.grid(a=1, b=2), product, tmp_path / "sweep.parquet")
    assert len(lk.sweep(lk.grid(a=1, b=2), product)) == 1


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], r"the sweep has no points; make them with lk.grid\(gradient="),
        ([1], "point 0 is 1; expected a mapping, as lk.grid makes them"),
        ([{"a": 1}, {"b": 1}], "point 1 and those before it do not share 'a'"),
        ([{"a": 1}, {"a": "x"}], "'a' is a text in some points and a number in others"),
        ([{"a": 1}, {"a": 1.0}], "point 1, a 1.0, is there twice"),
        ([{"a": None}], "'a' of a point is None; expected a number or a text"),
        ([{"a": float("nan")}], "'a' of a point is nan; expected a number or a text"),
        ([{"error": 1}], "a point cannot have 'error', which is a column of the table"),
        ([{"gradient": 1}], "gradient 0 of the grid is 1; expected gradients, in a list or by"),
    ],
)
def test_points_of_other_forms(points, said):
    with pytest.raises(LabkitError, match=said):
        lk.sweep(points, product)


def test_grids_of_other_forms():
    for axes in ({"gradient": []}, {"a": []}):
        with pytest.raises(LabkitError, match="the axis '(gradient|a)' of the grid has no values"):
            lk.grid(**axes)
    with pytest.raises(LabkitError, match="gradient 1 of the grid is 1; expected gradients"):
        lk.grid(gradient=["0,1", 1])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (3, "the measure gave 3 at a 1; expected a mapping of names to numbers, or a table"),
        ({"a": 2}, "the measure gives 'a', which the points have already; give it another name"),
        ({"x": [1]}, r"the measure gives \[1\] for 'x' at a 1; expected a number or a text"),
    ],
)
def test_results_of_other_forms(found, said):
    with pytest.raises(LabkitError, match=said):
        lk.sweep([{"a": 1}], lambda point: found)


def test_rows_that_fit_no_table(tmp_path):
    def mixed(point):
        return {"value": "x" if point["a"] == 2 else 1}

    with pytest.raises(LabkitError, match="the rows fit no table .* the same kind for a name each"):
        lk.sweep(lk.grid(a=(1, 2)), mixed, tmp_path / "sweep.parquet")


def test_an_executor_that_breaks_down_keeps_the_rows(tmp_path):
    path = tmp_path / "sweep.parquet"
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(LabkitError, match="the executor ended before the sweep: RuntimeError: "):
        lk.sweep(lk.grid(a=1, b=2), product, path, pool)
    assert not path.exists()


class LosesAProcess(Executor):
    """Runs tasks, until one of its processes is lost."""

    def submit(self, function, /, *arguments):
        future = Future()
        if len(calls) < 2:
            future.set_result(function(*arguments))
        else:
            future.set_exception(BrokenProcessPool("a process was terminated"))
        return future


def test_a_pool_that_lost_a_process_ends_the_sweep_and_the_next_one_goes_on(tmp_path):
    path = tmp_path / "sweep.parquet"
    points = lk.grid(a=(1, 2, 3), b=1)
    with pytest.raises(LabkitError, match="BrokenProcessPool: a process was terminated; the rows"):
        lk.sweep(points, product, path, LosesAProcess())
    assert len(pd.read_parquet(path)) == 2  # what had finished, whatever was seen first
    calls.clear()
    table = lk.sweep(points, product, path)
    assert table["value"].tolist() == [1, 2, 3]
    assert calls == [{"a": 3, "b": 1}]


def test_a_notebook_shows_the_rows_as_they_come(monkeypatch):
    shown = []

    class Cell:
        def display(self, what, raw=False):
            shown.append(what)

        def update(self, what, raw=False):
            shown.append(what)

    monkeypatch.setattr("labkit.probing.sweep_file.BETWEEN_WRITES", 0.0)
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr("IPython.display.DisplayHandle", Cell)
    lk.sweep(lk.grid(a=(1, 2), b=1), product)
    assert [len(one) for one in shown[1:-1]] == [1, 2]
    assert shown[-1] == {"text/plain": "sweep: 2 of 2 points"}
    shown.clear()
    lk.sweep(lk.grid(a=(1, 2), b=1), product, progress=False)
    assert shown == []


# Evaluations: what is measured of a live model


def test_an_evaluation_says_what_evaluate_says(loud, loud_base, loud_adapter):
    measure = lk.Evaluation(loud_base, loud_adapter, [TARGET, KEEP], device="cpu")
    table = lk.sweep(lk.grid(gradient=SHAPES, strength=(0, 0.5, 1)), measure)
    scaled = {"late": "0x2,0.5x2", "mine": "0,0.25,0.5,-0.25"}
    for strength, gradients in ((1, SHAPES), (0.5, scaled)):
        expected = lk.evaluate(loud, gradients, [TARGET, KEEP])
        keys = ["gradient", "text", "metric"]
        mine = table[table["strength"] == strength].set_index(keys).sort_index()
        theirs = expected[expected["gradient"].isin(SHAPES)].set_index(keys).sort_index()
        names = ["estimate", "low", "high", "from_base", "from_base_low", "from_base_high",
                 "mean_weight", "passages", "tokens"]  # fmt: skip
        pd.testing.assert_frame_equal(mine[names], theirs[names], rtol=1e-6, atol=1e-7)


def test_a_sweep_of_answers(loud, loud_base, loud_adapter):
    (answer,) = ["".join(loud.generate("In the", 3))]
    texts = Texts("answers", [("In the", answer), ("And then", "no such end")])
    measure = lk.Evaluation(loud_base, loud_adapter, texts, ["exact_match"], device="cpu")
    table = lk.sweep(lk.grid(strength=(0, 1)), measure)
    expected = lk.evaluate(loud, {}, texts, ["exact_match"]).set_index("gradient")
    for row, name in zip(table.itertuples(), ("base", "full LoRA"), strict=True):
        assert (row.estimate, row.low) == tuple(expected.loc[name][["estimate", "low"]])
    base = table[table["strength"] == 0]
    assert (base[["from_base", "from_base_low", "from_base_high"]].abs() < 1e-6).all(axis=None)


def test_an_adapter_alone_is_that_adapter(tiny_base, words, tiny_adapter, second_adapter):
    both = lk.Evaluation(words, [tiny_adapter, second_adapter], TARGET, ["nll"], device="cpu")
    table = lk.sweep(lk.grid(adapter=["tiny-lora", "second"], seed=(0, 1)), both)
    for folder in (tiny_adapter, second_adapter):
        alone = lk.sweep(
            [{"seed": 0}, {"seed": 1}], lk.Evaluation(words, folder, TARGET, ["nll"], device="cpu")
        )
        mine = table[table["adapter"] == folder.name].reset_index()
        names = ["estimate", "low", "high", "from_base"]
        pd.testing.assert_frame_equal(mine[names], alone[names], rtol=1e-6)
    with pytest.warns(
        UserWarning, match="no adapter 'third'; the evaluation has tiny-lora, second"
    ):
        lk.sweep(lk.grid(adapter="third"), both)
    with pytest.warns(
        UserWarning, match="an Evaluation does not know 'colour'; a point for it has"
    ):
        lk.sweep(lk.grid(colour="red"), both)
    with pytest.warns(UserWarning, match="2 weights for 4 layers"):
        lk.sweep(lk.grid(gradient="1,1"), both)
    lk.free()


def test_points_have_methods(words, tiny_adapter, second_adapter):
    both = lk.Evaluation(words, [tiny_adapter, second_adapter], TARGET, ["nll"], device="cpu")
    model = lk.live(words, tiny_adapter, second_adapter, device="cpu")
    methods = {"sum": "sum", "dare": "dare", "{ties: {density: 0.5}}": {"ties": {"density": 0.5}}}
    table = lk.sweep(lk.grid(method=methods, gradient={"mine": SHAPES["mine"]}, strength=2), both)
    names = ["estimate", "low", "high", "from_base", "mean_weight"]
    twice = lk.Gradient.parse(SHAPES["mine"]) * 2

    def expected(terms, method):
        recipe = lk.Recipe(words, terms, method=method)
        rows = lk.evaluate(model, {"mine": recipe}, TARGET, ["nll"])
        return rows[rows["gradient"] == "mine"].reset_index()[names]

    for text, method in methods.items():
        mine = table[table["method"] == text].reset_index()[names]
        theirs = expected([lk.Term(one, twice) for one in model.adapters], method)
        pd.testing.assert_frame_equal(mine, theirs, rtol=1e-6, atol=1e-7)
    # A method may count its terms: an adapter alone is the only one.
    alone = lk.sweep(lk.grid(method="slerp", adapter="second"), both).reset_index()[names]
    theirs = expected([lk.Term(second_adapter, "1x4")], "slerp")
    pd.testing.assert_frame_equal(alone, theirs, rtol=1e-6, atol=1e-7)
    with pytest.warns(UserWarning, match="the method 'tie' of a point: 'tie' is no method of mer"):
        lk.sweep(lk.grid(method="tie"), both)
    with pytest.warns(UserWarning, match=r"the method '\{ties' of a point: it is no YAML"):
        lk.sweep(lk.grid(method="{ties"), both)
    lk.free()


def test_an_evaluation_says_what_it_is_made_of(loud_base, loud_adapter):
    one = lk.Evaluation(loud_base, loud_adapter, TARGET)
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(pickle.loads(pickle.dumps(one))) == repr(one)
    other = lk.Evaluation(loud_base, loud_adapter, Texts("target", ["In the end was"]))
    assert repr(one) != repr(other)
    with pytest.raises(
        LabkitError, match="the metric 'bleu' is unknown; known are nll, kl, exact_m"
    ):
        lk.Evaluation(loud_base, loud_adapter, TARGET, ["bleu"])
    with pytest.raises(LabkitError, match="an evaluation needs at least one set of texts"):
        lk.Evaluation(loud_base, loud_adapter, [])


def test_a_freed_model_is_loaded_again(loud, loud_base, loud_adapter):
    measure = lk.Evaluation(loud_base, loud_adapter, TARGET, ["nll"], device="cpu")
    first = lk.sweep([{"strength": 1}], measure)
    lk.free()
    pd.testing.assert_frame_equal(lk.sweep([{"strength": 1}], measure), first)


# On other processes


class KilledOnce:
    """Measures, but the first process that comes to a certain point is killed there."""

    def __init__(self, evaluation, mark):
        self.evaluation, self.mark = evaluation, mark

    def __repr__(self):
        return f"KilledOnce({self.evaluation})"

    def __call__(self, point):
        if (point["gradient"], point["strength"]) == ("late", 0.75) and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.evaluation(point)


@pytest.fixture
def distributed():
    """dask.distributed, whose workers are forked from a process that has read the libraries."""
    found = pytest.importorskip("distributed", reason="install labkit[cluster]")
    import dask

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        found.utils.get_mp_context().set_forkserver_preload(
            ["distributed", "labkit.inference.live_model", "peft", "transformers.models.llama"]
        )
        yield found


def test_a_worker_of_dask_is_killed_and_nothing_is_lost(
    tmp_path, loud_base, loud_adapter, distributed
):
    evaluation = lk.Evaluation(loud_base, loud_adapter, [TARGET, KEEP], device="cpu")
    points = lk.grid(gradient=SHAPES, strength=(0.25, 0.5, 0.75, 1))
    mark = tmp_path / "killed"
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        for nanny in cluster.workers.values():
            nanny.auto_restart = False  # a third process would read all libraries, for nothing
        path = tmp_path / "sweep.parquet"
        table = lk.sweep(points, KilledOnce(evaluation, mark), path, client.get_executor())
    assert mark.exists()
    assert table["error"].isna().all()
    pd.testing.assert_frame_equal(table, lk.sweep(points, evaluation), rtol=1e-6, atol=1e-7)
    assert len(pd.read_parquet(path)) == len(table) == 2 * 4 * 4
    lk.free()
