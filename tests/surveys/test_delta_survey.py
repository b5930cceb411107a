"""The survey against dense float64 matrices."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import labkit as lk
from labkit.deltas import projection
from labkit.surveys import columns
from labkit.surveys.delta_survey import layer_norms
from tests.oracle import load, merged, train
from tests.tiny import load_file_of, make_adapter, make_another_model, make_base


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def wide_adapter(tmp_path_factory, tiny_base):
    """Other ranks for some modules, rsLoRA, and a LoRA on the head's embedding left out."""
    return make_adapter(
        tmp_path_factory.mktemp("adapter") / "wide",
        tiny_base,
        use_rslora=True,
        rank_pattern={"up_proj": 7},
        alpha_pattern={"q_proj": 3},
    )


def dense(adapter, name):
    """ΔW multiplied out, from the file alone."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    a = tensors[f"base_model.model.{name}.lora_A.weight"].double()
    b = tensors[f"base_model.model.{name}.lora_B.weight"].double()
    return b @ a


def load_factor(adapter, name):
    """The factor A, of shape r × in."""
    return load_file(adapter / "adapter_model.safetensors")[
        f"base_model.model.{name}.lora_A.weight"
    ]


def rows(table):
    return list(table.itertuples())


@pytest.mark.parametrize("kind", ["tiny_adapter", "wide_adapter"])
def test_every_column_agrees_with_the_dense_matrix(kind, tiny_base, request):
    folder = request.getfixturevalue(kind)
    base = lk.Checkpoint(tiny_base)
    table = lk.survey(base, lk.Adapter(folder), progress=False)
    assert len(table) == 28
    total = 0.0
    for row in table.itertuples():
        matrix = dense(folder, row.name) * row.scaling
        values = torch.linalg.svdvals(matrix)
        close = {"rel": 1e-6}
        assert row.norm == pytest.approx(float(matrix.norm()), **close)
        assert row.spectral_norm == pytest.approx(float(values[0]), **close)
        assert row.stable_rank == pytest.approx(float((values**2).sum() / values[0] ** 2), **close)
        p = values[: row.rank] / values[: row.rank].sum()
        assert row.effective_rank == pytest.approx(float(torch.exp(-(p * p.log()).sum())), **close)
        weight = base.read(f"{row.name}.weight").double()
        assert row.base_norm == pytest.approx(float(weight.norm()), **close)
        assert row.relative_norm == pytest.approx(float(matrix.norm() / weight.norm()), **close)
        assert row.shape == tuple(matrix.shape)
        assert row.rank == load_factor(folder, row.name).shape[0]
        assert row.name.startswith(f"model.layers.{row.layer}.")
        assert row.name.endswith(f".{row.module}")
        total += float((matrix**2).sum())
    assert table["share"].sum() == pytest.approx(1)
    assert table["share"][0] == pytest.approx(table["norm"][0] ** 2 / total)
    squares = [float((dense(folder, row.name) * row.scaling).norm()) ** 2 for row in rows(table)]
    assert list(table["share"]) == pytest.approx([square / total for square in squares])


def test_scaling_and_rank_are_those_of_the_config(tiny_base, wide_adapter):
    table = lk.survey(tiny_base, wide_adapter, progress=False).set_index(["layer", "module"])
    assert table.loc[(0, "up_proj"), "rank"] == 7
    assert table.loc[(0, "up_proj"), "scaling"] == pytest.approx(8 / math.sqrt(7))
    assert table.loc[(3, "q_proj"), "scaling"] == pytest.approx(3 / math.sqrt(4))
    assert table.loc[(1, "k_proj"), "scaling"] == pytest.approx(8 / math.sqrt(4))


def test_without_a_base_the_columns_about_the_delta_are_the_same(tiny_base, tiny_adapter):
    alone = lk.survey(None, tiny_adapter)
    both = lk.survey(tiny_base, tiny_adapter, progress=False)
    pd.testing.assert_frame_equal(alone, both[alone.columns])
    assert "base_norm" not in alone
    assert list(alone["module"][:7]) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    ]  # fmt: skip
    assert list(alone["layer"]) == [layer for layer in range(4) for _ in range(7)]


def test_the_deltas_do_not_open_the_tensors_of_the_base(tiny_adapter, monkeypatch):
    monkeypatch.setattr(lk.Checkpoint, "__init__", lambda *_: pytest.fail("opened"))
    assert len(lk.survey(None, tiny_adapter)) == 28


def test_weights_add_what_they_leave(tiny_base, tiny_adapter):
    gradient = lk.Gradient([0, -0.5, 1, 2])
    table = lk.survey(tiny_base, tiny_adapter, gradient, progress=False)
    for row in table.itertuples():
        assert row.weight == gradient[row.layer]
        assert row.weighted_norm == pytest.approx(abs(row.weight) * row.norm)
    assert table["weighted_share"].sum() == pytest.approx(1)
    squares = [
        float((gradient[row.layer] * dense(tiny_adapter, row.name)).norm()) ** 2
        for row in table.itertuples()
    ]
    assert list(table["weighted_share"]) == pytest.approx([s / sum(squares) for s in squares])
    assert (table.loc[table["layer"] == 0, "weighted_share"] == 0).all()
    # Every tensor here has fewer rows than a sample, so it is exact.
    expected = lk.survival(tiny_base, tiny_adapter, gradient, exact=True, progress=False)
    some = table["shape"].map(lambda shape: shape[0] <= 64)
    assert list(table["lost"][some].dropna()) == list(expected["lost"][some].dropna())


def test_weights_without_a_base(tiny_adapter):
    table = lk.survey(None, tiny_adapter, "0,0,1,1")
    assert table["weighted_norm"].sum() == pytest.approx(table["norm"][14:].sum())
    assert "lost" not in table
    with pytest.raises(lk.LabkitError, match="3 weights for 4 layers"):
        lk.survey(None, tiny_adapter, "0,0,1")


def test_what_lies_outside_the_layers_has_a_row_of_its_own(tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    adapter = make_adapter(tmp_path / "lora", base, target_modules=["q_proj", "lm_head"])
    file = adapter / "adapter_model.safetensors"
    # peft adds a copy of the base's head to the file.
    save_file({name: t for name, t in load_file(file).items() if "base_layer" not in name}, file)
    for table in (
        lk.survey(base, adapter, "1x4", progress=False),
        lk.survey(None, adapter, "1x4"),
    ):
        last = table.iloc[-1]
        assert last["module"] == "lm_head"
        assert pd.isna(last["layer"])
        assert math.isnan(last["weight"])
        assert lk.totals(table, "layer")["layer"].tolist() == [0, 1, 2, 3, "outside"]
    table = lk.survey(base, adapter, "1x4", rest=0.5, progress=False)
    assert table.iloc[-1]["weighted_norm"] == pytest.approx(table.iloc[-1]["norm"] / 2)


def test_a_delta_of_zero_has_no_rank(tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "lora", tiny_base, scale=0.0)
    table = lk.survey(tiny_base, adapter, "1x4", progress=False)
    assert (table["norm"] == 0).all()
    for column in ("stable_rank", "effective_rank", "share", "lost"):
        assert table[column].isna().all()
    assert (table["changed"] == 0).all()


def test_in_times_out_weights_are_measured_as_the_base_stores_them(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16)
    )
    model.save_pretrained(tmp_path / "base")
    adapter = make_adapter(
        tmp_path / "lora", tmp_path / "base", target_modules=["c_attn"], fan_in_fan_out=True
    )
    table = lk.survey(tmp_path / "base", adapter, "1,1", progress=False)
    assert table["shape"][0] == (32, 96)
    assert table["lost"].max() < 1e-3  # float32


def test_spectra_are_the_singular_values(tiny_base, tiny_adapter):
    table = lk.spectra(tiny_base, tiny_adapter)
    assert len(table) == 28 * 4
    one = table[(table["layer"] == 2) & (table["module"] == "up_proj")]
    matrix = dense(tiny_adapter, one["name"].iloc[0]) * 2
    np.testing.assert_allclose(one["value"], torch.linalg.svdvals(matrix)[:4], rtol=1e-6)
    assert list(one["index"]) == [1, 2, 3, 4]
    assert one["relative"].iloc[0] == 1
    pd.testing.assert_frame_equal(table, lk.spectra(None, tiny_adapter))
    for name, values in table.groupby("name"):
        expected = torch.linalg.svdvals(dense(tiny_adapter, name) * 2)[:4]
        np.testing.assert_allclose(values["value"], expected, rtol=1e-6)
        np.testing.assert_allclose(values["relative"], expected / expected[0], rtol=1e-6)
        assert name.startswith(f"model.layers.{values['layer'].iloc[0]}.")
        assert name.endswith(values["module"].iloc[0])


def test_an_adapter_of_another_model_is_refused(tmp_path, tiny_base, tiny_adapter):
    other = make_base(tmp_path / "base", hidden_size=64)
    with pytest.raises(lk.LabkitError, match="the adapter was made for another model"):
        lk.survey(other, tiny_adapter)


def test_factors_that_are_not_finite_are_refused_without_a_base_too(tiny_adapter, tmp_path):
    folder = shutil.copytree(tiny_adapter, tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = math.nan
    save_file(tensors, file)
    for measure in (lk.survey, lk.spectra):
        with pytest.raises(
            lk.LabkitError, match="holds 1 numbers that are NaN or infinite in '.*lora_A"
        ):
            measure(None, folder)
    with pytest.raises(
        lk.LabkitError, match="holds 1 numbers that are NaN or infinite in '.*lora_A"
    ):
        lk.overlap([folder, tiny_adapter])


def test_a_change_without_factors_has_norms_alone(tmp_path, tiny_base):
    """DoRA, against what PEFT makes of it."""
    adapter = train(tmp_path / "dora", tiny_base, target_modules=["up_proj"], use_dora=True)
    before, after = load(tiny_base).state_dict(), merged(tiny_base, adapter).state_dict()
    table = lk.survey(tiny_base, adapter, "0.5x4", progress=False)
    assert len(table) == 4
    for row in table.itertuples():
        change = (after[f"{row.name}.weight"] - before[f"{row.name}.weight"]).double()
        assert row.norm == pytest.approx(float(change.norm()), rel=1e-5)
        assert row.weighted_norm == pytest.approx(float(change.norm()) / 2, rel=1e-5)
    unknown = table[["rank", "spectral_norm", "stable_rank", "effective_rank"]]
    assert unknown.isna().all(axis=None)
    assert (table["scaling"] == 6 / 4).all()
    spectra = lk.spectra(tiny_base, adapter)
    assert len(spectra) == 0
    assert list(spectra) == ["layer", "module", "name", "index", "value", "relative"]


def test_layer_norms_agree_with_the_dense_matrices(tmp_path, tiny_base):
    adapter = make_adapter(
        tmp_path / "some",
        tiny_base,
        target_modules=["q_proj", "up_proj"],
        layers_to_transform=[1, 3],
    )
    base = lk.Checkpoint(tiny_base)

    def expected(layer, modules):
        names = [f"model.layers.{layer}.{module}" for module in modules]
        changed = math.hypot(*(float(dense(adapter, name).norm()) * 2 for name in names))
        whole = math.hypot(*(float(base.read(f"{name}.weight").double().norm()) for name in names))
        return changed / whole

    both = ["self_attn.q_proj", "mlp.up_proj"]
    found = layer_norms(base, adapter)
    assert found == [0, pytest.approx(expected(1, both)), 0, pytest.approx(expected(3, both))]
    found = layer_norms(tiny_base, adapter, "mlp")
    assert found == [0, *(pytest.approx(expected(n, both[1:])) if n != 2 else 0 for n in (1, 2, 3))]
    assert layer_norms(base, adapter, "nothing") == [0, 0, 0, 0]


def test_a_full_model_against_dense_matrices(tiny_base, tmp_path):
    model = make_another_model(tmp_path / "model", tiny_base)
    old, new = load_file_of(tiny_base), load_file_of(model)
    table = lk.survey(tiny_base, model, "0,0.5,1,1", rest=0.25, exact=True, progress=False)
    adapters = lk.survey(tiny_base, make_adapter(tmp_path / "lora", tiny_base), "1x4", rest=0.25,
                         progress=False)  # fmt: skip
    assert list(table) == list(adapters)
    assert len(table) == len(old)
    total = math.fsum((new[n].double() - old[n].double()).square().sum().item() for n in old)
    for row in rows(table):
        name = f"{row.name}.weight"
        delta = (new[name].double() - old[name].double()).numpy()
        norm = np.linalg.norm(delta)
        assert row.norm == pytest.approx(norm, rel=1e-12)
        assert row.base_norm == pytest.approx(float(old[name].double().norm()))
        assert row.share == pytest.approx(norm**2 / total)
        weight = 0.25 if pd.isna(row.layer) else (0, 0.5, 1, 1)[row.layer]
        assert row.weighted_norm == pytest.approx(weight * norm)
        if delta.ndim == 1 or norm == 0:
            assert math.isnan(row.stable_rank)
            assert math.isnan(row.effective_rank)
        else:
            values = np.linalg.svd(delta, compute_uv=False)
            assert row.spectral_norm == pytest.approx(values[0], rel=1e-6)
            assert row.stable_rank == pytest.approx((norm / values[0]) ** 2, rel=1e-5)
            portions = values / values.sum()
            assert row.effective_rank == pytest.approx(
                np.exp(-(portions * np.log(portions)).sum()), rel=1e-5
            )
        exact = old[name].double() + weight * torch.from_numpy(delta)
        change = exact.to(torch.bfloat16).double() - old[name].double()
        if weight and norm:
            lost = (change - weight * torch.from_numpy(delta)).norm() / (weight * norm)
            assert row.lost == pytest.approx(float(lost), rel=1e-6)
            assert row.changed == pytest.approx((change != 0).double().mean().item())
    spectra = lk.spectra(tiny_base, model)
    name = "model.layers.2.mlp.up_proj"
    delta = new[f"{name}.weight"].double() - old[f"{name}.weight"].double()
    found = spectra[spectra["name"] == name]["value"]
    np.testing.assert_allclose(found, torch.linalg.svdvals(delta), rtol=1e-5)
    with pytest.raises(lk.LabkitError, match="model is a full model, and what it changes is told"):
        lk.survey(None, model)


def test_of_a_large_model_the_effective_rank_is_not_known(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "OVERSAMPLING", 2)
    monkeypatch.setattr(columns, "PROJECTED_VALUES", 3)
    model = make_another_model(tmp_path / "model", tiny_base)
    table = lk.survey(tiny_base, model, progress=False)
    assert table["effective_rank"].isna().all()
    assert len(lk.spectra(tiny_base, model, k=5).query("module == 'q_proj' and layer == 0")) == 5
    matrices = table["module"].str.endswith("proj")
    assert table[matrices]["stable_rank"].notna().all()
