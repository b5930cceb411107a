"""Slopes by layer weights through merged tensors, against differences of written merges' losses."""

from __future__ import annotations

import numpy as np
import pytest

from labkit import Gradient
from labkit.inference.live_model import Mix, free, live
from labkit.probing.scores import Reader
from labkit.probing.texts import Texts
from tests.inference.helpers import source_of

KINDS = (
    ("llama", "dora"), ("llama", "embedding saved"), ("qwen2", "bias all"), ("gpt2", "dora"),
    ("qwen3_moe", "experts"), ("qwen3_moe", "each expert"), ("qwen2", "a model"),
)  # fmt: skip
STEP = 0.02


@pytest.fixture
def slopes(made, tmp_path, request):
    architecture, kind = request.param
    base = made(architecture)
    yield live(base, source_of(kind, base, tmp_path / "source"), rest=0.4, device="cpu")
    free()


@pytest.mark.parametrize("slopes", KINDS, indirect=True)
def test_slopes_are_those_of_differences(slopes):
    reader = Reader(slopes, Texts("some", ["In the beginning was the Word", "light of men"]))
    mix = slopes.mix(Gradient([0.5, -0.25, 1.0]))
    sums, found = reader.gradient(mix)
    assert reader.nll(mix) == pytest.approx(sums, rel=1e-6)  # the value is not touched
    expected = np.zeros_like(found)
    for column, (_, module) in enumerate(slopes.module_names):
        either = []
        for step in (STEP, -STEP):
            moved = {**mix.weights[0], module: mix.weights[0][module] + step}
            either.append(reader.nll(Mix((moved,))))
        expected[:, column] = (either[0] - either[1]) / (2 * STEP)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
