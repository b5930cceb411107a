import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import labkit as lk
from tests.tiny import make_adapter


@pytest.fixture
def base(tiny_base):
    return lk.Checkpoint(tiny_base)


@pytest.fixture
def adapter(tiny_adapter):
    return lk.Adapter(tiny_adapter)


@pytest.fixture
def with_tensors(tiny_adapter, tmp_path):
    def make(edit):
        folder = shutil.copytree(tiny_adapter, tmp_path / "lora")
        stored = load_file(folder / "adapter_model.safetensors")
        save_file(edit(stored), folder / "adapter_model.safetensors")
        return lk.Adapter(folder)

    return make


def test_the_ledger_has_every_tensor(base, adapter):
    plan = lk.plan(base, adapter, lk.Gradient([0, 0.5, 1, -1]))
    assert {row.tensor for row in plan.ledger} == {t.name for t in adapter.file.tensors}
    assert {row.status for row in plan.ledger} == {"matched"}
    assert {(row.layer, row.weight) for row in plan.ledger} == {(0, 0), (1, 0.5), (2, 1), (3, -1)}
    assert len(plan.table()) == 56
    # Weight 0 leaves a tensor alone.
    assert len(plan.changes) == 21
    assert all(change.layer != 0 for change in plan.changes.values())


def test_plan_shows_itself(base, adapter):
    plan = lk.plan(base, adapter, "0x3,1")
    text = repr(plan)
    for part in ("56 adapter tensors matched", "7 of 38 tensors", "mean weight 0.25", "0x3,1"):
        assert part in text
        assert part in plan._repr_html_()
    forecast = plan.forecast()
    assert forecast.bytes_to_write == base.nbytes
    assert forecast.bytes_to_read == base.nbytes + adapter.file.size


def test_module_patterns(base, adapter):
    term = lk.Term(adapter, "0x4", {"mlp": "1x4", "up_proj": "0x2,2x2"})
    plan = lk.plan(lk.Recipe(base, [term]))
    assert {name.split(".")[4] for name in plan.changes} == {"gate_proj", "down_proj", "up_proj"}
    weights = {c.weights for name, c in plan.changes.items() if "up_proj" in name}
    assert weights == {(2.0,)}
    with pytest.raises(lk.LabkitError, match="the module pattern 'mpl' selects none of the 28"):
        lk.plan(lk.Recipe(base, [lk.Term(adapter, "0x4", {"mpl": "1x4"})]))
    with pytest.raises(lk.LabkitError, match=r"3 weights for 4 layers \(modules mlp\)"):
        lk.plan(lk.Recipe(base, [lk.Term(adapter, "0x4", {"mlp": "1x3"})]))


def test_several_adapters_add_up(base, adapter):
    terms = [lk.Term(adapter, "0.5x4"), lk.Term(adapter, "0x2,0.25x2")]
    plan = lk.plan(lk.Recipe(base, terms))
    change = plan.changes["model.layers.3.mlp.up_proj.weight"]
    dense = adapter.delta("model.layers.3.mlp.up_proj").dense()
    torch.testing.assert_close(change.update().dense(), 0.75 * dense)


def test_wrong_counts_are_refused(base, adapter):
    with pytest.raises(lk.LabkitError, match=r"^41 weights for 4 layers \(adapter tiny-lora\)"):
        lk.plan(base, adapter, "1x41")
    with pytest.raises(lk.LabkitError, match="needs a recipe, or a base, an adapter and"):
        lk.plan(base, adapter)


def test_tensors_that_match_nothing_are_refused(base, with_tensors):
    lora = with_tensors(lambda stored: {k.replace("layers.0", "blocks.0"): v
                                        for k, v in stored.items()})  # fmt: skip
    with pytest.raises(lk.LabkitError) as error:
        lk.plan(base, lora, "1x4")
    assert "7 of the adapter lora's tensors match nothing in the base tiny-llama" in str(
        error.value
    )
    assert "'model.blocks.0." in str(error.value)


def test_a_tensor_that_belongs_to_nothing_is_refused(base, with_tensors):
    lora = with_tensors(lambda stored: {**stored, "something.else": torch.zeros(3)})
    with pytest.raises(
        lk.LabkitError, match="'something.else': the base has no module of that name"
    ):
        lk.plan(base, lora, "1x4")


def test_a_prefix_more_or_less_still_matches(base, with_tensors, adapter):
    lora = with_tensors(lambda stored: {k.replace("model.model.layers", "model.layers"): v
                                        for k, v in stored.items()})  # fmt: skip
    assert "layers.0.mlp.up_proj" in lora.modules
    assert set(lk.plan(base, lora, "1x4").changes) == set(lk.plan(base, adapter, "1x4").changes)


def test_shapes_that_do_not_fit_are_refused(base, with_tensors):
    def widen(stored):
        return {k: torch.cat([v, v], 1).contiguous() if "0.mlp.up_proj.lora_A" in k else v
                for k, v in stored.items()}  # fmt: skip

    with pytest.raises(lk.LabkitError) as error:
        lk.plan(base, with_tensors(widen), "1x4")
    assert "changes a tensor of shape (80, 64)" in str(error.value)
    assert "has shape (80, 32)" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(base, with_tensors, value):
    def spoil(stored):
        stored["base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"][3, 1] = value
        return stored

    with pytest.raises(lk.LabkitError, match="'model.layers.2.mlp.up_proj' .* holds 1 numbers"):
        lk.plan(base, with_tensors(spoil), "1x4")


def without_base_layer(folder):
    """Leave out the copy of the base's own head that peft saves beside the factors."""
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    save_file({k: v for k, v in stored.items() if "base_layer" not in k}, path)


def test_outside_the_layers_a_weight_must_be_named(tmp_path):
    from tests.tiny import make_base

    folder = make_base(tmp_path / "base", tie_word_embeddings=False)
    lora = make_adapter(tmp_path / "lora", folder, target_modules=["lm_head", "up_proj"])
    without_base_layer(lora)
    base = lk.Checkpoint(folder)
    with pytest.raises(
        lk.LabkitError,
        match=r"'lm_head' .* lies outside the layers.*rest= .1 for all of it, 0 for none",
    ):
        lk.plan(base, lora, "1x4")
    plan = lk.plan(base, lora, "1x4", rest=0.5)
    assert plan.changes["lm_head.weight"].weights == (0.5,)
    assert "lm_head.weight" not in lk.plan(base, lora, "1x4", rest=0).changes


def test_a_quantised_base_is_refused(tiny_base, adapter, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(lk.LabkitError, match=r"is quantised \(gptq\); .* unquantised model"):
        lk.plan(folder, adapter, "1x4")


def test_what_the_config_does_not_name_is_skipped_and_said(tiny_adapter, base, tmp_path):
    folder = shutil.copytree(tiny_adapter, tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["up_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    plan = lk.plan(base, folder, "1x4")
    skipped = [row for row in plan.ledger if row.status == "skipped"]
    assert len(skipped) == 48
    assert skipped[0].reason == "target_modules does not name it"
    assert "48 skipped" in repr(plan)


def test_notes(base, adapter):
    assert lk.plan(base, adapter, "0x4").notes == (
        "every weight is 0: the merged model will be the base model",
    )
