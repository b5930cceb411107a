"""Totals of surveys against sums over dense matrices."""

from __future__ import annotations

import math

import pytest

import labkit as lk


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


def test_totals_add_squares(tiny_base, tiny_adapter):
    table = lk.survey(tiny_base, tiny_adapter, "0,1,1,1", progress=False)
    layers, modules = lk.totals(table, "layer"), lk.totals(table, "module")
    assert len(layers) == 4
    assert list(modules["module"]) == list(table["module"][:7])
    for added in (layers, modules):
        assert math.hypot(*added["norm"]) == pytest.approx(math.hypot(*table["norm"]))
        assert added["share"].sum() == pytest.approx(1)
    first = table[table["layer"] == 1]
    assert layers["relative_norm"][1] == pytest.approx(
        math.hypot(*first["norm"]) / math.hypot(*first["base_norm"])
    )
    assert len(lk.totals(table, "tensor")) == len(table)
    with pytest.raises(lk.LabkitError, match="layer, module, tensor or all, found 'head'"):
        lk.totals(table, "head")


def test_lost_in_all_is_the_loss_of_the_whole_change(tiny_base, tiny_adapter):
    table = lk.survival(tiny_base, tiny_adapter, "0,1,1,1", exact=True, progress=False)
    squares = (table["weighted_norm"] * table["lost"]) ** 2
    whole = lk.totals(table, "all").iloc[0]
    assert whole["lost"] == pytest.approx(
        math.sqrt(squares.sum()) / math.hypot(*table["weighted_norm"])
    )
    assert whole["lost_error"] == 0
