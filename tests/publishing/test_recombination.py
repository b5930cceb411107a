"""LoRAs out of LoRAs, against the best product of their rank and against recipes."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from labkit import Adapter, Checkpoint, Gradient, LabkitError, Recipe, Term, combine, plan, resize
from tests.oracle import train
from tests.tiny import load_file_of, make_adapter, merged_by_peft

RAMP, DOWN = [0.0, 0.5, 1.0, 2.0], [1.0, -0.5, 0.25, 0.0]


def delta(adapter, module):
    return Adapter(adapter).delta(module).dense()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}])
def test_resized_it_is_the_best_of_its_rank(tiny_base, tmp_path, settings):
    adapter = make_adapter(tmp_path / "lora", tiny_base, scale=0.4, r=8, **settings)
    receipt = resize(adapter, tmp_path / "out", rank=3)
    for module in receipt.modules:
        whole, small = delta(adapter, module.name), delta(tmp_path / "out", module.name)
        u, values, vh = np.linalg.svd(whole)
        best = (u[:, :3] * values[:3]) @ vh[:3]
        np.testing.assert_allclose(small, best, atol=1e-6)
        assert module.kept == pytest.approx(np.sum(values[:3] ** 2) / np.sum(values**2), rel=1e-5)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 3


def test_a_share_of_the_energy_gives_each_module_its_rank(tiny_base, tmp_path):
    adapter = make_adapter(tmp_path / "lora", tiny_base, scale=0.4, r=8)
    receipt = resize(adapter, tmp_path / "out", energy=0.8)
    for module in receipt.modules:
        values = np.linalg.svd(delta(adapter, module.name), compute_uv=False)
        shares = np.cumsum(values**2) / np.sum(values**2)
        assert module.rank == int((shares >= 0.8).argmax()) + 1
    assert len({module.rank for module in receipt.modules}) > 1
    # PEFT reads the ranks and scalings of its own.
    merged, base = merged_by_peft(tiny_base, tmp_path / "out"), load_file_of(tiny_base)
    name = "model.layers.1.mlp.down_proj"
    added = merged[f"{name}.weight"].double() - base[f"{name}.weight"].double()
    np.testing.assert_allclose(added, delta(tmp_path / "out", name), atol=1e-6)


def test_a_rank_that_is_large_enough_changes_nothing(tiny_base, tiny_adapter, tmp_path):
    receipt = resize(tiny_adapter, tmp_path / "out", rank=64)
    assert receipt.kept == 1
    for module in receipt.modules:
        assert module.rank == 4
        found = delta(tmp_path / "out", module.name)
        np.testing.assert_allclose(found, delta(tiny_adapter, module.name), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("weights_for", [{}, {"down_proj": Gradient([1, 1, 0, 0.5])}])
def test_combined_it_makes_the_model_of_the_recipe(
    tiny_base, tiny_adapter, second_adapter, tmp_path, weights_for
):
    terms = [Term(tiny_adapter, Gradient(RAMP), weights_for), Term(second_adapter, Gradient(DOWN))]
    plan(Recipe(Checkpoint(tiny_base), terms)).write(tmp_path / "recipe", progress=False)
    receipt = combine(terms, tmp_path / "one")
    plan(tiny_base, tmp_path / "one", "1x4").write(tmp_path / "merged", progress=False)
    merged, wanted = load_file_of(tmp_path / "merged"), load_file_of(tmp_path / "recipe")
    for name, values in wanted.items():
        # The product s·w·B was rounded to float32: where that is next to halfway, one place.
        assert (merged[name] != values).float().mean() < 0.002, name
        np.testing.assert_allclose(merged[name].float(), values.float(), rtol=2**-7)
    ranks = receipt.table().set_index("name")["rank"]
    assert "model.layers.0.self_attn.k_proj" not in ranks.index  # its weight is 0
    assert ranks["model.layers.1.self_attn.q_proj"] == 4 + 2
    assert ranks["model.layers.1.self_attn.k_proj"] == 4


def test_combined_and_cut(tiny_base, tiny_adapter, second_adapter, tmp_path):
    terms = [Term(tiny_adapter, Gradient(RAMP)), Term(second_adapter, Gradient(DOWN))]
    receipt = combine(terms, tmp_path / "out", rank=3, dtype="bfloat16")
    name = "model.layers.2.self_attn.q_proj"
    whole = 1.0 * delta(tiny_adapter, name) + 0.25 * delta(second_adapter, name)
    u, values, vh = np.linalg.svd(whole)
    best = (u[:, :3] * values[:3]) @ vh[:3]
    np.testing.assert_allclose(delta(tmp_path / "out", name), best, atol=0.02 * np.abs(best).max())
    assert "rank" in str(receipt)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {str(values.dtype) for values in tensors.values()} == {"torch.bfloat16"}


def test_what_cannot_be_made(tiny_base, tiny_adapter, second_adapter, tmp_path):
    with pytest.raises(LabkitError, match="to resize takes a rank, or the share of the energy"):
        resize(tiny_adapter, tmp_path / "out")
    with pytest.raises(LabkitError, match="takes at least one term"):
        combine([], tmp_path / "out")
    with pytest.raises(LabkitError, match="lies in layer 3, and there are 3 weights"):
        combine([Term(tiny_adapter, "1x3")], tmp_path / "out")
    terms = [Term(tiny_adapter, "1x4"), Term(second_adapter, "1x5")]
    with pytest.raises(LabkitError, match="adapter second"):
        combine(terms, tmp_path / "out")
    with pytest.raises(LabkitError, match="nothing is changed by 0.00"):
        combine([Term(tiny_adapter, "0x4")], tmp_path / "out")
    dora = make_adapter(tmp_path / "dora", tiny_base, use_dora=True)
    with pytest.raises(LabkitError, match="resize works on plain LoRA only"):
        resize(dora, tmp_path / "out", rank=2)
    with pytest.raises(LabkitError, match="combine works on plain LoRA only"):
        combine([Term(dora, "1x4")], tmp_path / "out")
    head = train(tmp_path / "head", tiny_base, target_modules=["lm_head"])
    with pytest.raises(LabkitError, match="'lm_head' of head lies outside the layers"):
        combine([Term(head, "1x4")], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dora", "head"]
    with pytest.raises(LabkitError, match="is no adapter, which is needed here"):
        combine([Term(tiny_base, "1x4")], tmp_path / "out")


def test_other_bases_are_said(tiny_adapter, tiny_base, tmp_path):
    other = make_adapter(tmp_path / "other", tiny_base)
    config = other / "adapter_config.json"
    config.write_text(config.read_text().replace("tiny-llama", "another"))
    terms = [Term(tiny_adapter, "1x4"), Term(other, "1x4")]
    receipt = combine(terms, tmp_path / "out")
    assert receipt.notes == ("the adapters name different bases: another, tiny-llama",)
    with pytest.raises(LabkitError, match="exists already"):
        combine(terms, tmp_path / "out")
    combine(terms, tmp_path / "out", overwrite=True)
