"""LoRAs out of two models, against the full singular value decomposition of their difference."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit import Adapter, Checkpoint, LabkitError, Recipe, Term, extract, plan
from labkit.deltas.projection import largest_values
from tests.tiny import ALL_LINEAR, load_file_of, make_adapter, make_base, merged_by_peft

WIDE = {"hidden_size": 192, "intermediate_size": 256, "layers": 2, "shard": "5GB"}
ONES = "1x2"


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("wide") / "base", torch.float32, **WIDE)


@pytest.fixture(scope="module")
def lora(tmp_path_factory, wide_base):
    return make_adapter(tmp_path_factory.mktemp("lora") / "lora", wide_base, scale=0.3, r=6)


def written(base, adapter, out, dtype="auto", rest=None):
    plan(Recipe(Checkpoint(base), [Term(Adapter(adapter), ONES)], rest, dtype)).write(
        out, progress=False
    )
    return out


def deltas(base, model):
    ours, theirs = load_file_of(base), load_file_of(model)
    return {name: (theirs[name].double() - ours[name].double()).numpy() for name in ours}


def products(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").replace(".lora_A", ""): (
            tensors[name.replace("lora_A", "lora_B")].double() @ values.double()
        ).numpy()
        for name, values in tensors.items()
        if "lora_A" in name
    }


def test_what_a_merge_added_comes_out_again(wide_base, lora, tmp_path):
    model = written(wide_base, lora, tmp_path / "model", "float32")
    receipt = extract(model, wide_base, tmp_path / "out", progress=False)
    assert {module.rank for module in receipt.modules} == {6}
    assert receipt.kept == pytest.approx(1, abs=1e-6)
    merged, wanted = merged_by_peft(wide_base, tmp_path / "out"), merged_by_peft(wide_base, lora)
    for name, values in wanted.items():
        np.testing.assert_allclose(merged[name], values, atol=2e-6)


def test_the_noise_of_16_bits_is_left_out(wide_base, tmp_path):
    """A share of the energy counts it; what stands out of it is the LoRA's own rank."""
    base = written(wide_base, make_adapter(tmp_path / "none", wide_base, scale=0.0),
                   tmp_path / "base", "bfloat16")  # fmt: skip
    lora = make_adapter(tmp_path / "lora", wide_base, scale=0.012, r=8, lora_alpha=8)
    model = written(base, lora, tmp_path / "model")
    receipt = extract(model, base, tmp_path / "out", progress=False)
    assert {module.rank for module in receipt.modules} == {8}
    shared = extract(model, base, tmp_path / "shared", energy=0.999, progress=False)
    ranks = [module.rank for module in shared.modules]
    assert min(ranks) > 16
    # Said in one note, with the rank that the gap in the spectrum gives, which is the truth.
    (note,) = [note for note in shared.notes if "noise" in note]
    assert note == (
        "more than half of the rank is noise of rounding, which a share of the energy counts: "
        "model.layers.0.mlp.down_proj, model.layers.0.mlp.gate_proj, model.layers.0.mlp.up_proj "
        f"and 11 more; the gap in the spectrum gives rank 8 in place of {min(ranks)} to "
        f"{max(ranks)}: leave energy out to have that"
    )
    most = extract(model, base, tmp_path / "most", energy=0.9, progress=False)
    assert max(module.rank for module in most.modules) <= 16
    assert most.notes == receipt.notes == ()
    truth, noisy = products(lora), deltas(base, model)
    for name, found in products(tmp_path / "out").items():
        asked = truth[name]
        before = np.linalg.norm(noisy[name] - asked) / np.linalg.norm(asked)
        assert np.linalg.norm(found - asked) / np.linalg.norm(asked) < 0.5 * before


@pytest.mark.parametrize(("rank", "energy"), [(3, None), (500, None), (None, 0.7), (None, 1.0)])
def test_it_is_the_best_of_its_rank(wide_base, tmp_path, rank, energy):
    model = tmp_path / "model"
    make_base(model, torch.float32, **WIDE)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: values + 0.1 * torch.randn(values.shape, generator=generator)
        for name, values in load_file_of(model).items()
    }
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    receipt = extract(model, wide_base, tmp_path / "out", rank=rank, energy=energy, progress=False)
    table = receipt.table().set_index("name")
    for name, delta in deltas(wide_base, model).items():
        module = name.removesuffix(".weight")
        if ".layers." not in name or delta.ndim < 2:
            assert module not in table.index
            continue
        values = np.linalg.svd(delta, compute_uv=False)
        shares = np.cumsum(values**2) / np.sum(values**2)
        if energy is None:
            wanted = min(rank, len(values))
        else:
            wanted = int((shares >= energy - 1e-7).argmax()) + 1
        row = table.loc[module]
        # Random matrices are the hardest: their values lie close together.
        assert wanted <= row["rank"] <= wanted + (energy == 0.7) * 2
        assert row["kept"] == pytest.approx(shares[int(row["rank"]) - 1], abs=0.01)
        assert row["norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-6)


def test_the_randomised_values_are_the_full_ones():
    dice = np.random.default_rng(0)
    low = dice.standard_normal((500, 16)) @ dice.standard_normal((16, 700))
    matrix = (low + 0.13 * low.std() * dice.standard_normal(low.shape)).astype(np.float32)
    u, values, vh = largest_values(matrix, 16, np.random.default_rng(1))
    full_u, full, full_vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(values, full[:16], rtol=1e-5)
    best = (full_u[:, :16] * full[:16]) @ full_vh[:16]
    assert np.linalg.norm((u * values) @ vh - best) / np.linalg.norm(best) < 1e-4


def test_what_is_no_matrix_of_a_layer_is_said_or_kept_whole(wide_base, lora, tmp_path):
    model = written(wide_base, lora, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] += 1
    tensors["model.layers.1.input_layernorm.weight"] *= 2
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    said = extract(model, wide_base, tmp_path / "said", progress=False).notes
    assert said == (
        "left out, though it differs: model.layers.1.input_layernorm.weight, model.norm.weight; "
        "whole=True puts it into the adapter",
    )
    extract(model, wide_base, tmp_path / "whole", whole=True, progress=False)
    out = plan(Recipe(Checkpoint(wide_base), [Term(tmp_path / "whole", ONES)], rest=1.0))
    out.write(tmp_path / "again", progress=False)
    merged = load_file_of(tmp_path / "again")
    for name, values in load_file_of(model).items():
        np.testing.assert_allclose(merged[name], values, atol=2e-6, err_msg=name)
    # PEFT reads it alike.
    peft = merged_by_peft(wide_base, tmp_path / "whole")
    np.testing.assert_allclose(peft["model.norm.weight"], tensors["model.norm.weight"])


def test_modules_are_named_in_full_where_a_short_name_says_more(wide_base, tmp_path):
    lora = make_adapter(tmp_path / "lora", wide_base, scale=0.3, layers_to_transform=[1])
    model = written(wide_base, lora, tmp_path / "model")
    extract(model, wide_base, tmp_path / "out", progress=False)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == len(ALL_LINEAR)
    assert all(name.startswith("model.layers.1.") for name in config["target_modules"])
    merged, wanted = merged_by_peft(wide_base, tmp_path / "out"), load_file_of(model)
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_allclose(merged[name], wanted[name], atol=2e-6)


def test_the_same_seed_gives_the_same_bytes(wide_base, lora, tmp_path):
    model = written(wide_base, lora, tmp_path / "model")
    for out in ("one", "two"):
        extract(model, wide_base, tmp_path / out, rank=4, dtype="bfloat16", progress=False)
    one, two = (
        (tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("one", "two")
    )
    assert one == two


def test_what_cannot_be_extracted(wide_base, lora, tmp_path):
    with pytest.raises(LabkitError, match="nothing is changed by base less base"):
        extract(wide_base, wide_base, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(LabkitError, match="choose a rank or a share of the energy, and not both"):
        extract(wide_base, wide_base, tmp_path / "out", rank=3, energy=0.5)
    with pytest.raises(LabkitError, match="the rank is 0; expected a whole number from 1 on"):
        extract(wide_base, wide_base, tmp_path / "out", rank=0)
    with pytest.raises(LabkitError, match="energy to keep is 1.5; expected a share above 0"):
        extract(wide_base, wide_base, tmp_path / "out", energy=1.5)
    with pytest.raises(LabkitError, match="'int8' is unknown; expected one of float32"):
        extract(wide_base, wide_base, tmp_path / "out", dtype="int8")
    other = make_base(tmp_path / "other", layers=3)
    with pytest.raises(LabkitError, match="has 3 layers and the base"):
        extract(other, wide_base, tmp_path / "out")
    model = written(wide_base, lora, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][2, 3] = float("inf")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(LabkitError, match="up_proj.weight' of .* NaN or infinite"):
        extract(model, wide_base, tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
