"""Overlap of adapters against dense float64 matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import labkit as lk
from tests.oracle import train
from tests.tiny import load_file_of, make_adapter, make_another_model


def another(folder, tiny_base, change, **settings):
    """An adapter with its factors put through `change(name, tensor)`."""
    folder = make_adapter(folder, tiny_base, **settings)
    file = folder / "adapter_model.safetensors"
    save_file({name: change(name, t) for name, t in load_file(file).items()}, file)
    return folder


@pytest.fixture
def random_adapter(tmp_path, tiny_base):
    """Another rank and other numbers than `tiny_adapter`."""
    generator = torch.Generator().manual_seed(5)
    return another(
        tmp_path / "random",
        tiny_base,
        lambda _, t: torch.randn(t.shape, generator=generator),
        r=6,
        target_modules=["q_proj", "up_proj"],
    )


@pytest.mark.parametrize("k", [None, 1, 3])
def test_every_number_agrees_with_the_dense_matrices(k, tiny_base, tiny_adapter, random_adapter):
    a, b = lk.Adapter(tiny_adapter), lk.Adapter(random_adapter)
    table = lk.overlap([a, b], tiny_base, k=k)
    assert len(table) == 28
    for row in table[~table["cosine"].isna()].itertuples():
        x, y = a.delta(row.name).dense(), b.delta(row.name).dense()
        cosine = float((x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)))
        assert row.cosine == pytest.approx(cosine, rel=1e-6)
        top = k or 4
        assert row.k == top
        (ux, _, vx), (uy, _, vy) = np.linalg.svd(x), np.linalg.svd(y)
        for side, p, q in (("left", ux.T, uy.T), ("right", vx, vy)):
            cosines = np.linalg.svd(p[:top] @ q[:top].T, compute_uv=False)
            overlap = float((cosines**2).mean())
            assert getattr(row, f"{side}_overlap") == pytest.approx(overlap, rel=1e-6)
            angle = math.degrees(math.acos(min(1, float(cosines[0]))))
            assert getattr(row, f"{side}_angle") == pytest.approx(angle, abs=1e-4)
        assert (row.left_chance, row.right_chance) == (top / x.shape[0], top / x.shape[1])


def test_modules_of_one_adapter_only_are_listed(tiny_base, tiny_adapter, random_adapter):
    table = lk.overlap([tiny_adapter, random_adapter])
    only = table[table["meeting"] == "only tiny-lora"]
    assert len(only) == 20
    assert only["cosine"].isna().all()
    assert list(table["module"][:3]) == ["q_proj", "k_proj", "v_proj"]


def test_together_apart_and_not_at_all(tmp_path, tiny_base, tiny_adapter):
    minus = another(tmp_path / "minus", tiny_base, lambda n, t: -t if "lora_B" in n else t)
    zero = another(tmp_path / "zero", tiny_base, lambda n, t: t * 0 if "lora_B" in n else t)

    def crossed(name, t):
        return t.roll(1, dims=0) if "lora_B" in name else torch.randn(t.shape)

    torch.manual_seed(3)
    cross = another(tmp_path / "cross", tiny_base, crossed)
    table = lk.overlap([tiny_adapter, minus, zero, cross])
    assert len(table) == 6 * 28
    by_pair = dict(iter(table.groupby(["a", "b"])))
    opposite = by_pair["tiny-lora", "minus"]
    assert opposite["cosine"].tolist() == pytest.approx([-1] * 28)
    assert (opposite["meeting"] == "apart").all()
    assert opposite["left_overlap"].tolist() == pytest.approx([1] * 28)
    assert opposite["left_angle"].max() < 1e-4
    assert (by_pair["tiny-lora", "zero"]["meeting"] == "only tiny-lora").all()
    assert (by_pair["zero", "cross"]["meeting"] == "only cross").all()
    same = lk.overlap([tiny_adapter, tiny_adapter])
    assert set(same["b"]) == {"tiny-lora (2)"}
    assert (same["meeting"] == "together").all()


def test_bad_input_is_said(tmp_path, tiny_base, tiny_adapter):
    with pytest.raises(lk.LabkitError, match="two adapters or more, found 1"):
        lk.overlap([tiny_adapter])
    with pytest.raises(lk.LabkitError, match="k ≥ 1 singular vectors, found k=0"):
        lk.overlap([tiny_adapter, tiny_adapter], k=0)
    from tests.tiny import make_base

    wide = make_base(tmp_path / "wide", hidden_size=64)
    other = make_adapter(tmp_path / "other", wide, target_modules=["up_proj"])
    with pytest.raises(lk.LabkitError, match="up_proj as 80 × 32 and other as 80 × 64"):
        lk.overlap([tiny_adapter, other])


def test_chance_is_the_spread_of_random_directions(tiny_base, tiny_adapter, random_adapter):
    table = lk.overlap([tiny_adapter, random_adapter], tiny_base).dropna(subset="cosine")
    generator = np.random.default_rng(0)
    for row in table.drop_duplicates("module").itertuples():
        rows, columns = lk.Adapter(tiny_adapter).delta(row.name).shape
        assert row.chance == 1 / math.sqrt(rows * columns)
        one, other = generator.normal(size=(2, 2000, rows * columns))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines = np.einsum("ij,ij->i", one, other) / lengths
        assert row.chance == pytest.approx(cosines.std(), rel=0.08)


@pytest.mark.parametrize(
    ("cosine", "meeting"),
    [(0.11, "together"), (0.09, "do not meet"), (-0.09, "do not meet"), (-0.11, "apart")],
)
def test_a_cosine_of_a_tenth_is_a_meeting(cosine, meeting, tmp_path, tiny_base):
    settings = {"r": 1, "target_modules": ["up_proj"], "layers_to_transform": [0]}

    def one(name, t):
        unit = torch.zeros(t.shape)
        unit.view(-1)[0] = 3
        return unit

    def turned(name, t):
        unit = one(name, t)
        if "lora_B" in name:
            unit.view(-1)[:2] = torch.tensor([cosine, math.sqrt(1 - cosine**2)])
        return unit

    a = another(tmp_path / "a", tiny_base, one, **settings)
    b = another(tmp_path / "b", tiny_base, turned, **settings)
    (row,) = lk.overlap([a, b]).itertuples()
    assert row.cosine == pytest.approx(cosine, abs=1e-6)
    assert row.meeting == meeting
    assert row.left_angle == pytest.approx(math.degrees(math.acos(abs(cosine))), abs=1e-4)
    assert row.right_angle == pytest.approx(0, abs=1e-4)
    assert (row.left_overlap, row.right_overlap) == (
        pytest.approx(cosine**2, abs=1e-6), pytest.approx(1)
    )  # fmt: skip


def test_directions_without_a_part_in_the_delta_do_not_count(tmp_path, tiny_base, tiny_adapter):
    def of_rank_2(name, t):
        if "lora_B" in name:
            t[:, 2:] = 0
        return t

    thin = another(tmp_path / "thin", tiny_base, of_rank_2)
    assert (lk.overlap([tiny_adapter, thin])["k"] == 2).all()
    assert (lk.overlap([tiny_adapter, thin], k=3)["k"] == 2).all()
    assert (lk.overlap([tiny_adapter, thin], k=1)["k"] == 1).all()


def test_changes_without_factors_are_listed(tmp_path, tiny_base, tiny_adapter):
    dora = train(tmp_path / "dora", tiny_base, target_modules=["up_proj"], use_dora=True)
    table = lk.overlap([tiny_adapter, dora], tiny_base)
    (up,) = {row.meeting for row in table.itertuples() if row.module == "up_proj"}
    assert up == "no factors"
    assert table["cosine"].isna().all()


@pytest.mark.parametrize("k", [None, 3])
def test_full_models_and_an_adapter_against_dense_matrices(tiny_base, tiny_adapter, tmp_path, k):
    models = [
        make_another_model(tmp_path / f"model{seed}", tiny_base, seed=seed) for seed in (3, 4)
    ]
    old, first, second = map(load_file_of, (tiny_base, *models))
    table = lk.overlap([*models, tiny_adapter], base=tiny_base, k=k)
    name = "model.layers.1.self_attn.k_proj"
    deltas = [(new[f"{name}.weight"].double() - old[f"{name}.weight"].double()).numpy()
              for new in (first, second)]  # fmt: skip
    factors = load_file(tiny_adapter / "adapter_model.safetensors")
    b, a = (factors[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "BA")
    deltas.append(2 * (b @ a).numpy())
    names = ["model3", "model4", "tiny-lora"]
    for one, other, ranks in ((0, 1, 16), (0, 2, 4), (1, 2, 4)):
        x, y = deltas[one], deltas[other]
        [row] = table[(table.a == names[one]) & (table.b == names[other]) & (table.name == name)
                      ].to_dict("records")  # fmt: skip
        cosine = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
        assert row["cosine"] == pytest.approx(cosine, rel=1e-6)
        top = k or ranks
        assert row["k"] == top
        left = np.linalg.svd(x)[0][:, :top].T @ np.linalg.svd(y)[0][:, :top]
        assert row["left_overlap"] == pytest.approx((left**2).sum() / top, rel=1e-4)
    same = table[table["name"] == "model.layers.1.input_layernorm"]
    assert set(same["meeting"]) <= {"no factors", "only model3", "only model4"}
