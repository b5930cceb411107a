"""Layer weights as a vector of cells, and the lists that a family holds."""

import numpy as np
import pytest

import labkit as lk
from labkit.errors import LabkitError
from labkit.inference.live_model import free, live
from labkit.probing.families import LayerWeights


@pytest.fixture
def two(loud_base, loud_adapter, tmp_path):
    from tests.tiny import make_adapter

    other = make_adapter(tmp_path / "other", loud_base, target_modules=["q_proj", "down_proj"])
    yield live(loud_base, loud_adapter, other, device="cpu")
    free()


@pytest.mark.parametrize("by", ["layer", "kind"])
def test_cells_terms_and_modules_agree(two, by):
    weights = LayerWeights(two, by)
    assert len(weights) == 4 * (2 if by == "layer" else 7 + 2)
    cells = np.random.default_rng(0).random(len(weights))
    np.testing.assert_allclose(weights.modules(cells), two.mix(weights.terms(cells)).flat())
    slopes = np.random.default_rng(1).random(len(two.module_names))
    # The derivative along a direction is the same in both.
    along = np.random.default_rng(2).random(len(weights))
    moved = weights.modules(cells + along) - weights.modules(cells)
    assert weights.slopes(slopes) @ along == pytest.approx(slopes @ moved)
    # What is shown can be put in force.
    two.weights = weights.shown(cells)
    np.testing.assert_allclose(two.mix(two.terms).flat(), weights.modules(cells))


def test_roughness_is_the_sum_of_squared_steps(loud):
    weights = LayerWeights(loud, "layer")
    cells = np.array([0, 1, 1, 0.5])
    assert cells @ weights.roughness() @ cells / 2 == pytest.approx(1 + 0 + 0.25)
    # A list that all kinds of module have costs what it costs by layer.
    kinds = LayerWeights(loud, "kind")
    every = np.tile(cells, len(kinds.chains))
    assert every @ kinds.roughness() @ every / 2 == pytest.approx(1 + 0 + 0.25)


def test_families_hold_the_lists_they_are_named_for(loud):
    weights = LayerWeights(loud, "layer")
    assert weights.bases("free")[0].tolist() == np.eye(4).tolist()
    (ramp,) = weights.bases("ramp")
    ramp_list = lk.Gradient.ramp(4, 0, 3, 0.3, 0.9)
    np.testing.assert_allclose(np.array([0.3, 0.9]) @ ramp, list(ramp_list), atol=0.005)
    steps = [np.array([0.2, 0.7]) @ one for one in weights.bases("step")]
    expected = [list(lk.Gradient.step(4, at, 0.2, 0.7)) for at in (1, 2, 3)]
    np.testing.assert_allclose(steps, expected)
    (anchors,) = weights.bases("anchors")
    assert anchors.shape == (4, 4)  # no more anchors than layers
    (constant,) = weights.bases("constant")
    assert (0.4 * constant).tolist() == [[0.4] * 4]


def test_a_family_of_two_adapters_has_parameters_for_each(two):
    weights = LayerWeights(two, "layer")
    (constant,) = weights.bases("constant")
    assert (np.array([0.2, 0.6]) @ constant).tolist() == [0.2] * 4 + [0.6] * 4
    assert [len(one) for one in weights.bases("step")] == [4, 4, 4]
    for by in ("layer", "kind"):
        weights = LayerWeights(two, by)
        assert weights.constants(weights.constant([0.2, 0.6])) == [0.2, 0.6]


def test_what_is_no_family(loud):
    with pytest.raises(LabkitError, match="by is 'row'; expected layer or kind"):
        LayerWeights(loud, "row")
    with pytest.raises(LabkitError, match="the family 'bell' is unknown; known are free, anchors"):
        LayerWeights(loud, "layer").bases("bell")
