"""The lab's fit: the search of `lk.fit`, and what its evaluations say of other strengths."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import labkit as lk
from labkit.bench import strength_fit
from labkit.bench.strength_fit import StrengthFit, Worth
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import free, live
from labkit.probing.text_plane import excerpt
from labkit.probing.texts import Texts
from tests.probing.written import written
from tests.tiny import make_adapter

KEEP = Texts("keep", ["The train leaves at nine", "We should be early", "Two cups of tea", "Rain!"])


@pytest.fixture(scope="module")
def quiet(loud_base, tmp_path_factory):
    adapter = make_adapter(tmp_path_factory.mktemp("quiet"), loud_base, scale=0.15)
    yield live(loud_base, adapter, device="cpu")
    free()


@pytest.fixture(scope="module")
def texts(quiet):
    return {"early": written(quiet, "early", [1, 1, 0, 0], passages=8), "keep": KEEP}


@pytest.fixture
def fit(quiet, texts):
    return StrengthFit(quiet, texts)


def search(fit, strength, told=None):
    fit.search(strength, threading.Event(), lambda *said: told is None or told.append(said))


def expected(model, texts, weights):
    """NLL and KL, by the tables of `lk.evaluate`."""
    read = [excerpt(model, *each, 40) for each in texts.items()]
    table = lk.evaluate(model, {"it": Gradient(weights)}, read)
    rows = table.set_index(["gradient", "text", "metric"])["estimate"]
    return rows["it", "early", "nll"], rows["it", "keep", "kl"]


def test_it_is_the_search_of_fit(fit, quiet, texts):
    told = []
    search(fit, 0.3, told)
    assert fit.evaluations == len(told) == told[-1][0] <= strength_fit.EVALUATIONS
    assert told[0][1].startswith("objective ")
    target, keep = (excerpt(quiet, *each, 40) for each in texts.items())
    alone = lk.fit(quiet, target, keep, 0.3, held_out=(target, keep), passages=None, tokens=40,
                   rivals=(), progress=False)  # fmt: skip
    assert fit.terms(fit.best(0.3))[0].weights == alone.gradient
    # What was searched for is better than the best constant, on what was searched.
    made = fit.measured(fit.best(0.3), 0.3, threading.Event())
    constant = fit.constant(fit.best_constant(0.3))
    assert made.nll + 0.3 * made.kl < constant.nll + 0.3 * constant.kl
    # A second search goes on from there, and counts anew.
    before = fit.evaluations
    search(fit, 1.0, told)
    assert told[-1][0] == fit.evaluations - before


def test_measured_is_what_the_tables_say(fit, quiet, texts):
    search(fit, 0.3)
    cells = np.array([0.9, 0.4, 0.1, 0.0])
    made = fit.measured(cells, 0.3, threading.Event())
    assert (made.nll, made.kl) == pytest.approx(expected(quiet, texts, cells), abs=1e-5)
    constant = fit.constant(fit.best_constant(0.3))
    weights = [fit.best_constant(0.3)] * 4
    assert (constant.nll, constant.kl) == pytest.approx(expected(quiet, texts, weights), abs=1e-5)
    # It is the best of all constants, or nearly, between which it was interpolated.
    others = [fit.constant(weight) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert constant.nll + 0.3 * constant.kl < min(one.nll + 0.3 * one.kl for one in others) + 0.05


def test_a_stronger_wish_to_keep_moves_the_model_less(fit):
    search(fit, 0.3)
    kls = []
    for strength in (0.1, 1.0, 10.0):
        cells = fit.proposed(strength)
        assert np.array_equal(cells, cells.round(2))
        assert cells.min() >= 0
        assert cells.max() <= 1
        kls.append(fit.measured(cells, strength, threading.Event()).kl)
    assert kls[0] > kls[1] > kls[2]


def test_a_prediction_is_what_was_measured_and_near_it_what_will_be(fit, quiet, texts):
    search(fit, 0.3)
    for here in (fit.best(0.3), fit.best(3.0)):
        made = fit.measured(here, 0.3, threading.Event())
        found = fit.predicted(here)
        assert (found.nll, found.kl) == pytest.approx((made.nll, made.kl), abs=1e-3)
        there = here + np.where(here < 0.5, 0.03, -0.03)
        found, changed = fit.predicted(there), expected(quiet, texts, there)
        assert found.nll - made.nll == pytest.approx(changed[0] - made.nll, rel=0.3, abs=2e-3)
        assert found.kl - made.kl == pytest.approx(changed[1] - made.kl, rel=0.3, abs=2e-3)


def test_a_predicted_kl_is_that_of_a_divergence(fit):
    search(fit, 0.3)
    assert fit.predicted(np.zeros(4)).kl == 0
    for cells in np.random.default_rng(0).random((50, 4)):
        found = fit.predicted(cells)
        assert isinstance(found, Worth)
        assert 0 <= found.kl < 3


def test_stopped_it_evaluates_nothing_and_goes_on_later(fit):
    stopped = threading.Event()
    stopped.set()
    fit.search(0.3, stopped, lambda *_: None)
    assert (fit.evaluations, fit.best(0.3)) == (0, None)
    assert fit.measured(np.full(4, 0.5), 0.3, stopped) is None
    search(fit, 0.3)
    assert fit.evaluations > 1
