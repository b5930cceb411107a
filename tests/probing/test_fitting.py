"""Fits on texts that a model wrote itself: weights come back, noise is called noise."""

import math
import threading

import numpy as np
import pytest

import labkit as lk
from labkit.errors import LabkitError
from labkit.inference.live_model import LiveModel, free, live
from labkit.probing.objective import Objective
from labkit.probing.texts import Texts
from tests.probing.written import written
from tests.tiny import make_adapter

KEEP = Texts("keep", ["The train leaves at nine", "We should be early", "Two cups of tea", "Rain!"])
QUICK = {"progress": False, "smooth": 0.0, "passages": None, "rivals": ()}


@pytest.fixture(scope="module")
def quiet(loud_base, tmp_path_factory):
    """A model whose adapter changes little enough that its texts lie near the base's."""
    adapter = make_adapter(tmp_path_factory.mktemp("fit") / "quiet", loud_base, scale=0.15)
    yield live(loud_base, adapter, device="cpu")
    free()


@pytest.fixture(scope="module")
def early(quiet):
    """Texts that the model wrote with the first two layers' changes and without the others'."""
    return written(quiet, "early", [1, 1, 0, 0], passages=30)


def test_the_weights_that_wrote_a_text_are_found(quiet, early):
    options = {**QUICK, "tokens": 48, "rivals": ("ramp", "step"), "beside": {"own": "1,1,0,0"}}
    found = lk.fit(quiet, early, KEEP, strength=0.0, **options)
    assert np.abs(np.array(list(found.gradient)) - [1, 1, 0, 0]).max() < 0.35
    assert found.better
    assert found.sentence.startswith("better than the constant 0.")
    assert "on early at the same KL (nats a token)" in found.sentence
    rows = found.table.set_index(["gradient", "metric"])
    assert list(dict.fromkeys(found.table["gradient"]))[:3] == ["base", "full LoRA", "fit"]
    assert {"best ramp", "best step", "own"} <= set(found.table["gradient"])
    # What wrote the text is a step; it and the fit lie below all others.
    nll = rows["estimate"].xs("nll", level="metric")
    from_constant = rows["from_constant"].xs("nll", level="metric")
    constants = [name for name in nll.index if name.startswith("constant")]
    assert len(constants) == 1
    assert (from_constant[["base", "full LoRA", *constants]] == 0).all()
    assert nll["fit"] < min(nll["base"], nll["full LoRA"])
    assert nll["own"] == pytest.approx(nll["best step"], abs=0.05)
    own = quiet.mix(lk.Gradient([1, 1, 0, 0]))
    held = early.split(seed=0)[1]
    lengths = [quiet.tokens(one.text).shape[1] - 1 for one in held]
    sums = [quiet.nll_of([one.text], [own])[0] * count
            for one, count in zip(held, lengths, strict=True)]  # fmt: skip
    assert nll["own"] == pytest.approx(sum(sums) / sum(lengths), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_texts_of_the_base_ask_for_no_lora(quiet, seed):
    text = written(quiet, "base", [0, 0, 0, 0], passages=24, seed=seed)
    found = lk.fit(quiet, text, KEEP, evaluations=4, **QUICK)
    assert not found.better
    assert found.sentence.startswith("no better than the constant 0.0")
    assert np.abs(list(found.gradient)).max() < 0.3


def test_evaluations_are_counted_exactly(quiet, early, monkeypatch):
    passes = []
    value = Objective.value
    monkeypatch.setattr(Objective, "value", lambda *a: passes.append(1) or value(*a))
    for evaluations, rivals, expected in ((1, (), 1), (3, (), 3), (2, ("step",), 4)):
        passes.clear()
        options = {**QUICK, "evaluations": evaluations, "rivals": rivals}
        found = lk.fit(quiet, early, KEEP, **options)
        assert len(passes) == len(found.history) == expected
    assert list(found.history["evaluation"]) == list(range(1, len(found.history) + 1))


def test_a_search_goes_on_from_a_history_and_from_a_file(quiet, early, tmp_path):
    file = tmp_path / "history.jsonl"
    first = lk.fit(quiet, early, KEEP, evaluations=3, history=file, **QUICK)
    more = lk.fit(quiet, early, KEEP, evaluations=2, history=first.history, **QUICK)
    with file.open("a") as open_file:
        open_file.write('{"family": "fr')  # the process ended while it wrote
    same = lk.fit(quiet, early, KEEP, evaluations=2, history=file, **QUICK)
    count = len(first.history)
    assert same.gradient == more.gradient
    np.testing.assert_array_equal(more.history["objective"][:count], first.history["objective"])
    # Neither begins anew: the best is at least as good at once.
    assert more.history["objective"].min() <= first.history["objective"].min()
    # For another strength the same evaluations count.
    other = lk.fit(quiet, early, KEEP, 2.0, evaluations=1, history=more.history, **QUICK)
    assert len(other.history) == len(more.history) + 1


def test_a_stop_keeps_the_best(quiet, early, monkeypatch):
    stop, passes = threading.Event(), []
    value = Objective.value

    def counted(*arguments):
        passes.append(1)
        if len(passes) == 3:
            stop.set()
        return value(*arguments)

    monkeypatch.setattr(Objective, "value", counted)
    found = lk.fit(quiet, early, KEEP, stop=stop, **QUICK)
    assert found.stopped
    assert len(passes) == len(found.history) == 3
    best = found.history["weights"][found.history["objective"].argmin()]
    np.testing.assert_allclose(list(found.gradient), best, atol=0.005)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Objective, "value", interrupted)
    at_once = lk.fit(quiet, early, KEEP, **QUICK)
    assert at_once.stopped
    assert len(set(at_once.gradient)) == 1  # the best constant
    assert not at_once.better
    assert at_once.sentence == (
        f"no better than the constant {at_once.gradient[0]:.2f} at the same KL: "
        "NLL +0.000 [+0.000, +0.000] on early (nats a token)"
    )
    assert not at_once.table.empty


def test_an_interrupt_while_it_measures(quiet, early, monkeypatch):
    from labkit.probing.fitting import HeldOut

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldOut, "rows", interrupted)
    found = lk.fit(quiet, early, KEEP, evaluations=2, **QUICK)
    assert found.table.empty
    assert not found.better
    assert found.sentence == "not measured on held-out text: the measuring was interrupted"
    assert "<table>" in found._repr_html_()


def test_lists_that_people_can_read(quiet, early):
    for family, check in (
        ("ramp", lambda w: np.ptp(np.diff(w)) < 0.025),
        ("step", lambda w: len(set(w)) <= 2),
        ("constant", lambda w: len(set(w)) == 1),
    ):
        options = {**QUICK, "family": family, "evaluations": 3}
        found = lk.fit(quiet, early, KEEP, **{**options, "rivals": ("ramp",)})
        assert check(np.array(list(found.gradient))), family
        assert ("best ramp" in set(found.table["gradient"])) == (family != "ramp")


def test_weights_of_each_kind_can_be_put_in_force(quiet, early):
    found = lk.fit(quiet, early, KEEP, 0.0, by="kind", evaluations=4, **QUICK)
    assert set(found.gradient) == {
        f"quiet:{kind}" for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                     "up_proj", "down_proj")
    }  # fmt: skip
    quiet.weights = found.gradient
    in_force = quiet.mix(quiet.terms).flat()
    assert in_force == quiet.mix(found.terms).flat()
    assert len(set(in_force)) > 4


def test_bounds_hold(quiet, early):
    found = lk.fit(quiet, early, KEEP, 0.0, bounds=(-0.1, 0.4), evaluations=4, **QUICK)
    assert -0.1 <= min(found.gradient) <= max(found.gradient) == 0.4
    assert np.vstack(found.history["weights"]).max() <= 0.4 + 1e-9


def test_two_loras_have_a_gradient_each(loud_base, tmp_path):
    one = make_adapter(tmp_path / "one", loud_base, scale=0.15)
    two = make_adapter(tmp_path / "two", loud_base, scale=0.2, r=2, target_modules=["v_proj"])
    model = live(loud_base, one, two, device="cpu")
    texts = [written(model, name, [1, 1, 0, 0], seed=seed, passages=16)
             for seed, name in enumerate("ab")]  # fmt: skip
    found = lk.fit(model, texts, KEEP, 1.0, evaluations=4, **QUICK)
    assert set(found.gradient) == {"one", "two"}
    assert repr(found).startswith("gradient one ")
    assert found.history["family"][0] == "constant"
    assert "the constants 0." in found.sentence
    assert " and 0." in found.sentence
    assert " on a and " in found.sentence
    assert [term.adapter.name for term in found.terms] == ["one", "two"]
    stop = threading.Event()
    stop.set()
    at_once = lk.fit(model, texts, KEEP, stop=stop, **QUICK)
    assert at_once.stopped
    assert at_once.history.empty
    model.free()


def test_smoothness_draws_neighbours_together(quiet, early):
    rough, smooth = (
        np.abs(np.diff(list(lk.fit(quiet, early, KEEP, 0.0, **{**QUICK, "smooth": weight})
                            .gradient))).sum()
        for weight in (0.0, 3.0)
    )  # fmt: skip
    assert smooth < rough / 2


def test_optuna_where_no_gradient_goes(quiet, early):
    pytest.importorskip("optuna")
    before = quiet.terms
    options = {"method": "optuna", "family": "anchors", "evaluations": 8, **QUICK}
    found = lk.fit(quiet, early, KEEP, 0.0, **options)
    again = lk.fit(quiet, early, KEEP, 0.0, **options)
    assert found.gradient == again.gradient
    assert len(found.history) == 8
    assert found.history["objective"].min() < found.history["objective"][0]

    def own(model: LiveModel) -> float:
        return abs(model.weights.mean - 0.25)

    mine = lk.fit(quiet, early, KEEP, objective=own, **options)
    worth = mine.history["objective"]
    assert abs(mine.gradient.mean - 0.25) == pytest.approx(worth.min(), abs=0.006)
    assert worth.min() < worth[0]
    assert mine.history["nll"].isna().all()
    assert quiet.terms == before


def test_without_optuna_one_line_says_what_to_install(quiet, early, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(LabkitError, match=r'not installed: pip install "labkit\[optuna\]"'):
        lk.fit(quiet, early, KEEP, method="optuna", family="anchors", **QUICK)


def test_how_a_fit_shows_itself_and_what_its_terms_say(quiet, early):
    found = lk.fit(quiet, early, KEEP, evaluations=2, **QUICK)
    assert repr(found).startswith("gradient ")
    assert found.sentence[:30] in found._repr_html_()
    shown = found._repr_html_()
    assert "nll of early" in shown
    # The comparison that the sentence is made of stands in the table as well.
    assert "nll of early, from the constant of the same KL" in shown
    row = found.table.query("gradient == 'fit' and metric == 'nll'").iloc[0]
    columns = ["from_constant", "from_constant_low", "from_constant_high"]
    assert "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row[columns]) in shown
    (term,) = found.terms
    assert term.fitted.said == found.sentence
    assert [(one.role, one.name, one.sha256) for one in term.fitted.texts] == [
        ("target", "early", early.sha256), ("keep", "keep", KEEP.sha256),
    ]  # fmt: skip
    estimates = found.table["estimate"].tolist()
    assert [row.estimate for row in term.fitted.held_out] == estimates
    assert all(map(math.isfinite, estimates))


def test_the_lists_of_the_rivals_are_there(quiet, early):
    found = lk.fit(quiet, early, KEEP, evaluations=2, **{**QUICK, "rivals": ("ramp", "anchors")})
    assert list(found.rivals) == ["best ramp", "best anchors"]
    assert np.ptp(np.diff(list(found.rivals["best ramp"]))) < 0.025
    means = found.table.set_index("gradient")["mean_weight"]
    for name, gradient in found.rivals.items():
        assert means[name].iloc[0] == pytest.approx(gradient.mean, abs=1e-9)


def test_the_bar_is_full_where_a_search_needs_fewer_evaluations(quiet, early, monkeypatch):
    import tqdm.auto

    bars = []

    class Seen(tqdm.auto.tqdm):
        def close(self):
            bars.append((self.n, self.total, self.desc))
            super().close()

    monkeypatch.setattr(tqdm.auto, "tqdm", Seen)
    options = {**QUICK, "family": "constant", "evaluations": 30, "progress": True}
    found = lk.fit(quiet, early, KEEP, **options)
    count = len(found.history)
    assert count < 30
    assert bars[0] == (count, count, "fit, measuring held-out text: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1}, "strength is -1; expected a number of at least 0"),
        ({"smooth": math.nan}, "smooth is nan; expected a number of at least 0"),
        ({"bounds": (1, 0)}, "bounds are 1 and 0; expected the smallest and the largest"),
        ({"evaluations": 0}, "evaluations is 0; expected at least 1"),
        ({"passages": 0}, "passages is 0; expected at least 1, or None for all"),
        ({"tokens": 0}, "tokens is 0; expected at least 1"),
        ({"method": "adam"}, "the method is 'adam'; expected gradient or optuna"),
        ({"family": "bell"}, "the family 'bell' is unknown; known are free, anchors"),
        ({"rivals": ("bell",)}, "the family 'bell' is unknown"),
        ({"by": "row"}, "by is 'row'; expected layer or kind"),
        ({"objective": len}, "has no gradient; use it with method='optuna'"),
        ({"beside": {"mine": "1,1"}}, "2 weights for 4 layers .beside, mine."),
        ({"beside": {"fit": "1x4"}}, "the name 'fit' in beside is that of a row which the table"),
        ({"beside": {"base": "1x4"}}, "of its own; choose another"),
        ({"beside": {"best ramp": "1x4"}}, "the name 'best ramp' in beside"),
        ({"beside": {"constant 0.5": "0.5x4"}}, "the name 'constant 0.5' in beside"),
        ({"keep": Texts("early", ["of the target's name", "x y"])}, "sets of different names"),
        ({"keep": Texts("one", ["only one"])}, "'one' are one document, and cannot be split"),
    ],
)
def test_what_cannot_be_fitted(quiet, options, message):
    target = Texts("early", ["In the beginning was", "And the earth was void"])
    given = {"keep": KEEP, "progress": False, **options}
    with pytest.raises(LabkitError, match=message):
        lk.fit(quiet, target, **given)


def test_too_many_parameters_for_optuna(quiet, early):
    pytest.importorskip("optuna")
    with pytest.raises(LabkitError, match="24 parameters at most, and the family free has 28 here"):
        lk.fit(quiet, early, KEEP, method="optuna", by="kind", **QUICK)


def test_histories_of_something_else(quiet, early, tmp_path):
    found = lk.fit(quiet, early, KEEP, evaluations=1, **QUICK)
    with pytest.raises(LabkitError, match="evaluation 1 of the history was made with another"):
        lk.fit(quiet, early, KEEP, history=found.history, by="kind", **QUICK)
    file = tmp_path / "history.jsonl"
    file.write_text("no json\n{}\n")
    with pytest.raises(LabkitError, match=r"history.jsonl, line 1, is no evaluation of a fit"):
        lk.fit(quiet, early, KEEP, history=file, **QUICK)
    with pytest.raises(LabkitError, match="cannot write the history .*; choose a file"):
        lk.fit(quiet, early, KEEP, history=tmp_path / "missing" / "h.jsonl", **QUICK)


def test_nothing_is_fitted_through_a_method(loud):
    loud.use(lk.Recipe(loud.base, [lk.Term(loud.adapters[0], "1x4")], method="ties"))
    target = Texts("early", ["In the beginning was", "And the earth was void"])
    for call in (lk.fit, lk.pareto):
        with pytest.raises(
            LabkitError, match="^a fit needs a plain sum, and the model has the method ties in for"
        ):
            call(loud, target, KEEP, progress=False)
