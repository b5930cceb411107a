"""What survives rounding, against dense matrices and against the merge itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

import labkit as lk
from labkit.surveys.rounding_loss import rounding_line, rounding_sentence
from tests.tiny import make_adapter, make_base

GRADIENT = "0,0.5,1,-2"


@pytest.fixture(scope="module")
def tall_base(tmp_path_factory):
    """Tensors with more rows than a sample has, and enough elements to count on."""
    return make_base(
        tmp_path_factory.mktemp("base") / "tall",
        layers=2,
        hidden_size=128,
        intermediate_size=512,
        shard="10MB",
    )


def adapter_of_relative_norm(folder, base, relative):
    """An adapter whose every ΔW has about this part of the base's norm."""
    folder = make_adapter(folder, base, scale=1.0, r=16, target_modules=["up_proj", "down_proj"])
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    table = lk.survey(base, folder, progress=False).set_index("name")
    for row in table.itertuples():
        key = f"base_model.model.{row.Index}.lora_B.weight"
        tensors[key] = tensors[key] * (relative / row.relative_norm)
    save_file(tensors, file)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
def test_exact_is_what_a_merge_does(dtype, tmp_path, tiny_base, tiny_adapter):
    table = lk.survival(tiny_base, tiny_adapter, GRADIENT, dtype, exact=True, progress=False)
    base, adapter = lk.Checkpoint(tiny_base), lk.Adapter(tiny_adapter)
    plan = lk.plan(base, adapter, GRADIENT, dtype=dtype)
    receipt = plan.write(tmp_path / "merged", progress=False)
    merged = lk.Checkpoint(tmp_path / "merged")
    gradient = lk.Gradient.parse(GRADIENT)
    assert len(table) == 28
    for row in table.itertuples():
        before = base.tensors[f"{row.name}.weight"].read()
        after = merged.tensors[f"{row.name}.weight"].read()
        asked = gradient[row.layer] * adapter.delta(row.name).dense()
        assert row.weight == gradient[row.layer]
        assert row.changed == pytest.approx(float((after != before).mean()))
        assert row.weighted_norm == pytest.approx(np.linalg.norm(asked), rel=1e-6)
        if row.weight == 0:
            assert math.isnan(row.lost)
        else:
            expected = np.linalg.norm(after - before - asked) / np.linalg.norm(asked)
            assert row.lost == pytest.approx(expected, rel=1e-6)
        assert row.dtype == ("bfloat16" if dtype == "auto" else dtype)
        assert row.changed_error == 0
        assert row.lost_error == pytest.approx(row.lost * 0, nan_ok=True)
    # The receipt knows the same of the tensors that changed, as closely as float32 tells.
    assert receipt.lost == pytest.approx(lk.totals(table, "all")["lost"][0], rel=1e-4)
    lost = {tensor.name: tensor.missing / tensor.asked for tensor in receipt.tensors}
    for row in table[table["weight"] != 0].itertuples():
        assert lost[f"{row.name}.weight"] == pytest.approx(row.lost, rel=1e-4)


@pytest.mark.parametrize(
    ("relative", "unchanged", "lost"),
    [(0.003, 0.48, 0.48), (0.01, 0.17, 0.15), (0.03, 0.055, 0.05)],
)
def test_what_bfloat16_loses(relative, unchanged, lost, tmp_path, tall_base):
    adapter = adapter_of_relative_norm(tmp_path / "lora", tall_base, relative)
    table = lk.survival(tall_base, adapter, "1,1", exact=True, progress=False)
    whole = lk.totals(table, "all").iloc[0]
    assert 1 - whole["changed"] == pytest.approx(unchanged, rel=0.2)
    assert whole["lost"] == pytest.approx(lost, rel=0.15)


def test_the_estimate_is_within_its_error(tmp_path, tall_base):
    adapter = adapter_of_relative_norm(tmp_path / "lora", tall_base, 0.003)
    exact = lk.survival(tall_base, adapter, "1,1", exact=True, progress=False)
    misses = []
    for seed in range(20):
        guess = lk.survival(tall_base, adapter, "1,1", rows=32, seed=seed, progress=False)
        assert (guess["rows"] == 32).all()
        assert (guess["changed_error"] > 0).all()
        for column in ("changed", "lost"):
            misses += list((guess[column] - exact[column]) / guess[f"{column}_error"])
    # 160 deviations in units of their standard errors: about standard normal.
    spread = np.array(misses)
    assert np.abs(spread).max() < 4.5
    assert 0.8 < np.sqrt(np.square(spread).mean()) < 1.25


def test_the_same_seed_gives_the_same_estimate(tall_base, tmp_path):
    adapter = make_adapter(tmp_path / "lora", tall_base)
    first = lk.survival(tall_base, adapter, "1,1", rows=16, progress=False)
    again = lk.survival(tall_base, adapter, "1,1", rows=16, progress=False)
    other = lk.survival(tall_base, adapter, "1,1", rows=16, seed=1, progress=False)
    assert first.equals(again)
    assert not first.equals(other)


def test_a_plan_of_two_adapters(tmp_path, tiny_base, tiny_adapter):
    second = make_adapter(tmp_path / "second", tiny_base, target_modules=["q_proj"])
    recipe = lk.Recipe(tiny_base, [lk.Term(tiny_adapter, "1x4"), lk.Term(second, "0.5x4")])
    table = lk.survival(lk.plan(recipe), exact=True, progress=False).set_index(["layer", "module"])
    assert table.loc[(0, "q_proj"), "weight"] == 1.5
    assert table.loc[(0, "k_proj"), "weight"] == 1
    assert len(table) == 28


def test_a_line_when_more_than_a_tenth_is_lost(tmp_path, tall_base):
    adapter = adapter_of_relative_norm(tmp_path / "lora", tall_base, 0.003)
    line = rounding_line(lk.survival(tall_base, adapter, "1,1", progress=False))
    assert line.startswith("rounding to bfloat16 loses 4")
    assert "±" in line
    assert line.endswith("% of the elements stay as they are; dtype float32 keeps it")
    assert 47 <= int(line.split("% of the elements")[0].split()[-1]) <= 50
    assert "±" not in rounding_line(
        lk.survival(tall_base, adapter, "1,1", exact=True, progress=False)
    )
    assert rounding_line(lk.survival(tall_base, adapter, "1,1", "float32", progress=False)) is None


def test_the_receipt_says_when_much_is_lost(tmp_path, tall_base):
    adapter = adapter_of_relative_norm(tmp_path / "lora", tall_base, 0.003)
    receipt = lk.plan(tall_base, adapter, "1,1").write(tmp_path / "merged", progress=False)
    line = f"{receipt.lost:.1%} of the change is lost to rounding; dtype float32 keeps it"
    assert f"rounding {line}" in repr(receipt)
    full = lk.plan(tall_base, adapter, "1,1", dtype="float32")
    assert "lost" not in repr(full.write(tmp_path / "full", progress=False))


def test_what_is_missing_is_said(tiny_base, tiny_adapter):
    with pytest.raises(lk.LabkitError, match="needs a plan, or a base, an adapter and its layer"):
        lk.survival(tiny_base, tiny_adapter)
    with pytest.raises(lk.LabkitError, match="2 rows at least to know its error, found rows=1"):
        lk.survival(tiny_base, tiny_adapter, "1x4", rows=1)


def test_standard_errors_are_the_spread_of_many_samples(tmp_path, tall_base):
    """Half of all rows: the correction for a finite population takes 30 % off the error."""
    adapter = adapter_of_relative_norm(tmp_path / "lora", tall_base, 0.003)
    term = lk.Term(adapter, lk.Gradient([1, 0.5]), {"up_proj": lk.Gradient([0, 0])})
    plan = lk.plan(lk.Recipe(lk.Checkpoint(tall_base), [term]))
    tables = [lk.survival(plan, rows=64, seed=seed, progress=False) for seed in range(120)]
    down = tables[0]["module"] == "down_proj"
    assert (tables[0]["shape"][down].map(lambda shape: shape[0]) == 128).all()
    wholes = [lk.totals(table[down], "all") for table in tables]
    for column in ("changed", "lost"):
        values = np.array([table[column][down] for table in tables])
        errors = np.array([table[f"{column}_error"][down] for table in tables])
        # The spread of 120 samples is itself known to 6 %.
        assert errors.mean(axis=0) == pytest.approx(values.std(axis=0), rel=0.15)
        whole = np.array([table[column][0] for table in wholes])
        error = np.array([table[f"{column}_error"][0] for table in wholes])
        assert error.mean() == pytest.approx(whole.std(), rel=0.15)


def test_the_sentence_says_the_totals(tmp_path, tall_base):
    adapter = adapter_of_relative_norm(tmp_path / "lora", tall_base, 0.003)
    table = lk.survival(tall_base, adapter, "1,1", "float16", progress=False)
    whole = lk.totals(table, "all").iloc[0]
    assert rounding_sentence(table) == (
        f"rounding to float16 loses {whole['lost']:.1%} ± {whole['lost_error']:.1%} of the "
        f"change, and {1 - whole['changed']:.0%} of the elements stay as they are"
    )
    nothing = lk.survival(tall_base, adapter, "0,0", progress=False)
    assert rounding_sentence(nothing) is None
    assert rounding_line(nothing) is None


def test_a_line_is_worth_it_from_a_tenth_on(tmp_path, tall_base):
    adapter = adapter_of_relative_norm(tmp_path / "lora", tall_base, 0.01)
    table = lk.survival(tall_base, adapter, "1,1", exact=True, progress=False)
    for lost, said in ((0.101, True), (0.099, False)):
        assert (rounding_line(table.assign(lost=lost)) is not None) == said
