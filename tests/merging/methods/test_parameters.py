"""Parameters that may be gradients over layers."""

import re

import numpy as np
import pytest

import labkit as lk
from labkit.merging.methods.parameters import as_shares, share_at
from labkit.merging.methods.ties import Ties

SHARES = [0.1, 0.5, 1.0]


@pytest.mark.parametrize(
    "given",
    [SHARES, tuple(SHARES), "0.1,0.5,1", lk.Gradient(SHARES),
     {"anchors": {"layers": 3, "anchors": {0: 0.1, 0.5: 0.5, 1: 1}}}],
)  # fmt: skip
def test_a_share_for_each_layer(given):
    found = as_shares("density", given)
    assert list(found) == SHARES
    assert [share_at(found, layer) for layer in (0, 1, 2, None)] == [*SHARES, 0.1]
    for one in (0.5, "0.50"):
        assert share_at(as_shares("density", one), 2) == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.5, 0], "density in layer 1 is 0.0; expected a share above 0 and at most 1"),
        ("0.5,1.5", "density in layer 1 is 1.5; expected a share above 0 and at most 1"),
        ("0.5,x", "density: "),
        ([], "density: "),
        (None, "density is None; expected a finite number"),
    ],
)
def test_wrong_shares(given, message):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        as_shares("density", given)


def test_a_density_of_each_layer_is_that_of_a_merge_with_one(llamas, tmp_path):
    base, *adapters = llamas
    terms = [lk.Term(adapter, [1.0, 0.5, 0.75]) for adapter in adapters]

    def plan(density):
        return lk.plan(lk.Recipe(base, terms, method={"ties": {"density": density}}))

    mixed = plan(SHARES)
    for layer, density in enumerate(SHARES):
        alone = plan(density)
        for name, change in mixed.changes.items():
            if change.layer == layer:
                found, expected = (np.zeros(change.tensor.matrix_shape) for _ in range(2))
                numbers = change.tensor.read()
                change.update().add_rows_to(found, 0, numbers)
                alone.changes[name].update().add_rows_to(expected, 0, numbers)
                np.testing.assert_array_equal(found, expected)
    assert dict(mixed.summary())["method"].startswith("ties (density 0.1,0.5,1, convention peft")
    mixed.recipe.save(tmp_path / "recipe.yaml")
    assert lk.Recipe.load(tmp_path / "recipe.yaml").method == Ties(density=lk.Gradient(SHARES))
    with pytest.raises(lk.LabkitError, match="2 weights for 3 layers .density of the method ties"):
        plan([0.5, 0.5])
