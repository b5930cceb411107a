"""Totals of surveys against sums over dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
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


GRADIENT = [0.0, -0.5, 1.0, 2.0]
NAMES = {"layer": lambda name: int(name.split(".")[2]), "module": lambda name: name.split(".")[-1]}


@pytest.fixture(scope="module")
def dense(tiny_base, tiny_adapter, tmp_path_factory):
    """Every ΔW and W as whole matrices, and what a merge writes, by the names of the modules."""
    base, adapter = lk.Checkpoint(tiny_base), lk.Adapter(tiny_adapter)
    folder = tmp_path_factory.mktemp("merged") / "merged"
    lk.plan(base, adapter, lk.Gradient(GRADIENT)).write(folder, progress=False)
    merged = lk.Checkpoint(folder)
    return {
        name: (
            adapter.delta(name).dense(),
            base.read(f"{name}.weight").double().numpy(),
            merged.read(f"{name}.weight").double().numpy(),
        )
        for name in adapter.modules
    }


@pytest.mark.parametrize("by", ["layer", "module", "all"])
def test_every_total_agrees_with_the_dense_matrices(by, dense, tiny_base, tiny_adapter):
    gradient = lk.Gradient(GRADIENT)
    table = lk.survey(tiny_base, tiny_adapter, gradient, exact=True, progress=False)
    found = lk.totals(table, by)
    key_of = NAMES.get(by, lambda name: "all")
    keys = list(dict.fromkeys(map(key_of, table["name"])))
    assert len(found) == len(keys)
    everything = sum((delta**2).sum() for delta, _, _ in dense.values())
    weighted = sum(
        ((GRADIENT[NAMES["layer"](name)] * delta) ** 2).sum()
        for name, (delta, _, _) in dense.items()
    )
    for key, row in zip(keys, found.to_dict("records"), strict=True):
        assert by == "all" or row[by] == key
        names = [name for name in table["name"] if key_of(name) == key]
        assert row["tensors"] == len(names)
        weights = [GRADIENT[NAMES["layer"](name)] for name in names]
        deltas = [dense[name][0] for name in names]
        asked = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
        values = [np.linalg.svd(delta, compute_uv=False)[:4] for delta in deltas]
        portions = [each / each.sum() for each in values]
        norm = flat_norm(deltas)
        expected = {
            "norm": norm,
            "base_norm": flat_norm(dense[name][1] for name in names),
            "relative_norm": norm / flat_norm(dense[name][1] for name in names),
            "share": norm**2 / everything,
            "spectral_norm": max(each[0] for each in values),
            "stable_rank": np.mean([(each**2).sum() / each[0] ** 2 for each in values]),
            "effective_rank": np.mean([np.exp(-(p * np.log(p)).sum()) for p in portions]),
            "weight": np.mean(weights),
            "weighted_norm": flat_norm(asked),
            "weighted_share": flat_norm(asked) ** 2 / weighted,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6), name
        # What rounding does counts over the tensors that were asked to change.
        changes = [
            (dense[name][2] - dense[name][1], change)
            for name, change, weight in zip(names, asked, weights, strict=True)
            if weight
        ]
        if not changes:
            assert all(math.isnan(row[name]) for name in ("changed", "lost", "lost_error"))
            continue
        moved = np.concatenate([change.ravel() != 0 for change, _ in changes])
        assert row["changed"] == pytest.approx(moved.mean(), rel=1e-12)
        missing = flat_norm(change - wanted for change, wanted in changes)
        lost = missing / flat_norm(wanted for _, wanted in changes)
        assert row["lost"] == pytest.approx(lost, rel=1e-6)
        assert (row["changed_error"], row["lost_error"]) == (0, 0)


def flat_norm(matrices):
    return np.linalg.norm(np.concatenate([matrix.ravel() for matrix in matrices]))


def test_errors_add_up_as_independent_ones_do():
    """Against draws: each tensor's number wanders by its error, and the total by the total's."""
    table = pd.DataFrame(
        {
            "layer": [0, 1, 2],
            "module": ["a", "b", "c"],
            "shape": [(100, 10), (300, 20), (50, 5)],
            "weighted_norm": [1.0, 2.0, 0.5],
            "changed": [0.5, 0.6, 0.9],
            "changed_error": [0.02, 0.01, 0.1],
            "lost": [0.3, 0.2, 0.8],
            "lost_error": [0.003, 0.002, 0.01],
        }
    )
    found = lk.totals(table, "all").iloc[0]
    generator = np.random.default_rng(0)
    draws = {
        name: generator.normal(table[name], table[f"{name}_error"], (200_000, 3))
        for name in ("changed", "lost")
    }
    elements = np.array([1000, 6000, 250])
    changed = draws["changed"] @ elements / elements.sum()
    squares = table["weighted_norm"].to_numpy() ** 2
    lost = np.sqrt(draws["lost"] ** 2 @ squares / squares.sum())
    assert found["changed"] == pytest.approx(changed.mean(), rel=1e-3)
    assert found["changed_error"] == pytest.approx(changed.std(), rel=0.02)
    assert found["lost"] == pytest.approx(lost.mean(), rel=1e-3)
    assert found["lost_error"] == pytest.approx(lost.std(), rel=0.02)


def test_no_base_and_no_weights_leave_their_columns_out(tiny_adapter):
    found = lk.totals(lk.survey(None, tiny_adapter))
    assert list(found.columns) == [
        "layer", "tensors", "norm", "spectral_norm", "stable_rank", "effective_rank", "share"
    ]  # fmt: skip


def test_a_base_of_zeros_has_no_relative_norm(tiny_base, tiny_adapter):
    table = lk.survey(tiny_base, tiny_adapter, progress=False)
    assert lk.totals(table.assign(base_norm=0.0))["relative_norm"].isna().all()


def test_what_lies_outside_the_layers_is_a_row_of_its_own():
    table = pd.DataFrame(
        {
            "layer": [0, 1, None, 1, float("nan")],
            "module": ["q", "q", "embed_tokens", "v", "lm_head"],
            "norm": [3.0, 1.0, 12.0, 2.0, 5.0],
        }
    )
    found = lk.totals(table, "layer")
    assert found["layer"].tolist() == [0, 1, "outside"]
    assert [type(layer) for layer in found["layer"]] == [int, int, str]
    assert found["tensors"].tolist() == [1, 2, 2]
    assert found["norm"].tolist() == pytest.approx([3, math.sqrt(5), 13])
    assert lk.totals(table, "tensor")["layer"].tolist() == [0, 1, "outside", 1, "outside"]
    assert lk.totals(table, "module")["tensors"].tolist() == [2, 1, 1, 1]
    assert lk.totals(table, "all").iloc[0]["norm"] == pytest.approx(math.sqrt(183))
    assert table["layer"].isna().sum() == 2
