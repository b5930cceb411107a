"""NLL and KL with derivatives: as the reader of passages has them, and as finite differences do."""

import numpy as np
import pytest

from labkit.gradients.gradient import Gradient
from labkit.probing import scores as module
from labkit.probing.objective import Objective
from labkit.probing.scores import Reader
from labkit.probing.texts import Passage, Texts

TARGETS = [
    Texts("a", ["In the beginning was", "And the earth was void"]),
    Texts("b", [Passage("Let there be light", "What?"), "So it was so"]),
]
KEEP = Texts("keep", ["The train leaves at nine", "We should be early today"])


def test_values_are_those_of_the_reader(loud):
    mix = loud.mix(Gradient([0.2, 0.7, -0.3, 1.0]))
    modules = np.array(mix.flat())
    objective = Objective(loud, TARGETS, [KEEP], 1000)
    value, scores = objective.value(modules), objective.scores(modules)
    readers = [Reader(loud, one) for one in TARGETS]
    for reader, sums in zip(readers, scores.nll, strict=True):
        np.testing.assert_allclose(sums, reader.nll(mix), rtol=1e-5)
    nll = np.mean([reader.nll(mix).sum() / reader.counts.sum() for reader in readers])
    keep = Reader(loud, KEEP)
    np.testing.assert_allclose(scores.kl[0], keep.kl_from_base(mix), rtol=1e-4)
    assert (value.nll, value.kl) == pytest.approx(objective.means(scores), rel=1e-5)
    assert value.nll == pytest.approx(nll, rel=1e-5)
    assert value.kl == pytest.approx(keep.kl_from_base(mix).sum() / keep.counts.sum(), rel=1e-4)


def test_derivatives_are_those_of_finite_differences(loud):
    objective = Objective(loud, TARGETS, [KEEP], 1000)
    modules = np.array(loud.mix(Gradient([0.2, 0.7, 0.3, 1.0])).flat())
    value = objective.value(modules)
    for number in (0, 9, 27):
        step = np.zeros(len(modules))
        step[number] = 0.002
        up, down = objective.value(modules + step), objective.value(modules - step)
        assert value.nll_slopes[number] == pytest.approx((up.nll - down.nll) / 0.004, abs=4e-3)
        assert value.kl_slopes[number] == pytest.approx((up.kl - down.kl) / 0.004, abs=4e-3)


@pytest.fixture
def passes(loud, monkeypatch):
    """One entry for each pass of the model from here on."""
    made = []
    forward = type(loud).forward_weighted
    monkeypatch.setattr(type(loud), "forward_weighted", lambda *a: made.append(1) or forward(*a))
    return made


def test_the_base_is_read_once_where_its_logits_fit(loud, passes, monkeypatch):
    kept = Objective(loud, TARGETS, [KEEP], 1000)
    kept.scores(np.array(loud.mix(0.4).flat()))
    passes.clear()
    first = kept.scores(np.array(loud.mix(0.6).flat()))
    assert len(passes) == 3  # two targets and the texts to keep, a batch each
    monkeypatch.setattr(module, "KEPT_BYTES", 10)
    passes.clear()
    again = Objective(loud, TARGETS, [KEEP], 999).scores(np.array(loud.mix(0.6).flat()))
    assert len(passes) == 4
    np.testing.assert_array_equal(again.kl[0], first.kl[0])


def test_nothing_is_measured_twice_of_a_model(loud, loud_base, passes):
    modules = np.array(loud.mix(0.7).flat())
    first = Objective(loud, TARGETS, [KEEP], 7).scores(modules)
    passes.clear()
    assert Objective(loud, TARGETS, [KEEP], 7).scores(modules.copy()) is first
    assert passes == []
    # Other weights, other texts, another part of them, a text to keep as target: all is read.
    Objective(loud, TARGETS, [KEEP], 7).scores(modules * 0.5)
    for targets, keeps, tokens in (
        (TARGETS, [Texts("keep", [*KEEP, "Rain!"])], 7),
        (TARGETS, [KEEP], 6),
        ([*TARGETS, KEEP], [KEEP], 7),
    ):
        passes.clear()
        assert Objective(loud, targets, keeps, tokens).scores(modules) is not first
        assert len(passes) >= 4


def test_the_base_is_no_distance_from_itself(loud, passes):
    nothing = np.zeros(len(loud.module_names))
    objective = Objective(loud, TARGETS, [KEEP], 8)
    passes.clear()
    scores = objective.scores(nothing)
    assert len(passes) == 2
    np.testing.assert_array_equal(scores.kl[0], [0, 0])
    reader = Reader(loud, TARGETS[1])
    assert (scores.nll[1] <= reader.nll(loud.mix(0)) + 1e-4).all()


def test_passages_are_cut_to_their_first_tokens_that_count(loud):
    modules = np.array(loud.mix(0.5).flat())
    short = Objective(loud, TARGETS, [KEEP], 5)
    assert [read.counts.tolist() for read in short.targets] == [[5, 5], [5, 5]]
    # Of "In the beginning was" the five letters behind the first.
    whole = Reader(loud, Texts("a", ["In the"])).nll(loud.mix(0.5))
    assert short.scores(modules).nll[0][0] == pytest.approx(whole[0], rel=1e-4)


def test_nothing_is_left_in_the_model(loud):
    before = "".join(loud.generate("In", 12))
    Objective(loud, TARGETS, [KEEP], 9).value(np.array(loud.mix(0.3).flat()))
    assert "".join(loud.generate("In", 12)) == before
