"""Fits for several strengths: what each evaluation serves, the curve, errors."""

import numpy as np
import pytest

import labkit as lk
from labkit.errors import LabkitError
from labkit.inference.live_model import free, live
from labkit.probing.texts import Texts
from tests.probing.written import written
from tests.tiny import make_adapter

KEEP = Texts("keep", ["The train leaves at nine", "We should be early", "Two cups of tea", "Rain!"])


@pytest.fixture
def quiet(loud_base, tmp_path):
    adapter = make_adapter(tmp_path / "quiet", loud_base, scale=0.15)
    yield live(loud_base, adapter, device="cpu")
    free()


def test_a_front_trades_nll_against_kl(quiet):
    text = written(quiet, "early", [1, 1, 0, 0], passages=20)
    strengths = (0.0, 1.0, 30.0)
    found = lk.pareto(
        quiet, text, KEEP, strengths, smooth=0.0, evaluations=4, passages=None, progress=False
    )
    assert tuple(found.gradients) == tuple(found.terms) == tuple(found.sentences) == strengths
    assert len(found.history) <= 4 + 2 + 2
    rows = found.table.set_index(["gradient", "metric"])["estimate"]
    kl = [rows[f"fit, strength {strength:g}", "kl"] for strength in strengths]
    assert kl[0] >= kl[1] > kl[2]
    # The first strength is a fit like any other.
    alone = lk.fit(
        quiet, text, KEEP, 0.0, smooth=0.0, evaluations=4, passages=None, progress=False, rivals=()
    )
    assert alone.gradient == found.gradients[0.0]
    assert alone.sentence == found.sentences[0.0]
    assert found.terms[30.0][0].fitted.strength == 30
    assert found.terms[30.0][0].fitted.said == found.sentences[30.0]
    # The curve goes through base and full LoRA.
    assert found.curve["constant"].iloc[[0, -1]].tolist() == [0, 1]
    for end, name in ((0, "base"), (-1, "full LoRA")):
        for metric in ("nll", "kl"):
            assert found.curve[metric].iloc[end] == pytest.approx(rows[name, metric], abs=1e-6)
    assert repr(found).startswith("0 ")
    assert "fit, strength 30" in found._repr_html_()
    assert np.isfinite(found.curve.to_numpy()).all()


@pytest.mark.parametrize("strengths", [(), (1, 1.0)])
def test_strengths_are_different(loud, strengths):
    text = Texts("t", ["In the beginning was", "And the earth was void"])
    with pytest.raises(LabkitError, match="strengths are different numbers, at least one"):
        lk.pareto(loud, text, KEEP, strengths)
