import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import labkit as lk
from labkit.models import adapter_config
from tests.tiny import make_adapter


@pytest.fixture
def edited(tiny_adapter, tmp_path):
    """Copy the adapter with another config or other tensors, and open it."""

    def edit(change=None, tensors=None, **config):
        folder = tmp_path / "edited"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_adapter, folder)
        path = folder / "adapter_config.json"
        content = {**json.loads(path.read_text()), **config}
        path.write_text(json.dumps(content))
        stored = load_file(folder / "adapter_model.safetensors")
        if change or tensors:
            for name in list(stored):
                if change:
                    stored[change(name)] = stored.pop(name)
            save_file({**stored, **(tensors or {})}, folder / "adapter_model.safetensors")
        return lk.Adapter(folder)

    return edit


def scalings(adapter):
    return {round(module.scaling, 9) for module in adapter.modules.values()}


def test_opens_an_adapter(tiny_adapter):
    adapter = lk.Adapter(tiny_adapter)
    assert len(adapter.modules) == 28
    module = adapter.modules["model.layers.0.mlp.up_proj"]
    assert (module.rank, module.shape, module.scaling) == (4, (80, 32), 2.0)
    stored = load_file(adapter.file.path)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    dense = 2.0 * stored[key.format("B")].double() @ stored[key.format("A")].double()
    np.testing.assert_allclose(adapter.delta(module.name).dense(), dense.numpy())
    assert "rank 4 on 28 modules" in repr(adapter)
    with pytest.raises(lk.LabkitError, match="does not change a module 'x'"):
        adapter.delta("x")


def test_scaling_of_every_plain_kind(edited):
    assert scalings(edited()) == {2.0}
    assert scalings(edited(use_rslora=True)) == {round(8 / math.sqrt(4), 9)}
    assert scalings(edited(alpha_pattern={"up_proj": 6})) == {2.0, 1.5}
    assert scalings(edited(alpha_pattern={r"layers\.1\.mlp\.up_proj": 2})) == {2.0, 0.5}
    assert scalings(edited(alpha_pattern={"proj": 1})) == {2.0}  # a pattern ends at a dot


def test_rank_pattern(tmp_path, tiny_base):
    adapter = lk.Adapter(make_adapter(tmp_path / "a", tiny_base, rank_pattern={"q_proj": 2}))
    assert adapter.modules["model.layers.0.self_attn.q_proj"].scaling == 8 / 2
    assert adapter.modules["model.layers.0.self_attn.k_proj"].scaling == 8 / 4


def test_target_modules_in_every_form(edited):
    name = "model.layers.1.mlp.up_proj"
    for targets in (["up_proj"], ["mlp.up_proj"], [name], "all-linear", r".*\.1\.mlp\.up_.*"):
        assert edited(target_modules=targets).targets(name), targets
    for targets in (["proj"], ["q_proj"], r".*\.2\..*", []):
        assert not edited(target_modules=targets).targets(name), targets
    assert not edited(exclude_modules=["up_proj"]).targets(name)
    for layers, chosen in ((1, True), ([0, 1], True), ([0], False), ([], True)):
        assert edited(layers_to_transform=layers).targets(name) is chosen
    assert edited(layers_to_transform=[1], layers_pattern="layers").targets(name)
    assert not edited(layers_to_transform=[1], layers_pattern="blocks").targets(name)


def test_the_adapters_name_in_the_key(edited):
    adapter = edited(lambda name: name.replace(".weight", ".default.weight"))
    assert len(adapter.modules) == 28


def test_broken_adapters_say_what_and_where(edited, tmp_path):
    def error(**changes):
        with pytest.raises(lk.LabkitError) as caught:
            edited(**changes)
        return str(caught.value)

    assert "of the kind 'IA3'" in error(peft_type="IA3")
    assert "unknown field 'new_thing' = 3" in error(new_thing=3)
    assert "has rank 0 in adapter_config.json" in error(r=0)
    assert "has rank 4.5" in error(r=4.5)
    assert "has alpha 'x'" in error(lora_alpha="x")
    assert "but its rank in adapter_config.json is 8; expected A 8 × in" in error(r=8)
    assert "'pissa', which changes the base model" in error(init_lora_weights="pissa")
    assert "which is no regular expression" in error(alpha_pattern={"(": 1})
    assert "rank_pattern in adapter_config.json of edited is not an object" in error(
        rank_pattern=[1]
    )
    slow = edited(target_modules="(a|aa)+b")
    with pytest.raises(lk.LabkitError, match="takes more than 1.5 s to match"):
        slow.targets("a" * 40 + "bc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        lk.LabkitError, match="holds no adapter_config.json; name the folder of a LoRA adapter"
    ):
        lk.Adapter(tmp_path / "empty")


def test_a_model_in_place_of_an_adapter_and_the_other_way_round(tiny_base, tiny_adapter):
    with pytest.raises(
        lk.LabkitError,
        match=r"holds a model \(config.json\) and no adapter; the two may be swapped: name the "
        "base first and the adapter second",
    ):
        lk.Adapter(tiny_base)
    with pytest.raises(
        lk.LabkitError,
        match=r"holds an adapter \(adapter_config.json\) and no base model; the two may be swapped",
    ):
        lk.Checkpoint(tiny_adapter)


def test_an_adapter_one_folder_down_is_named(tiny_adapter, tmp_path):
    shutil.copytree(tiny_adapter, tmp_path / "checkpoint-500")
    with pytest.raises(lk.LabkitError) as caught:
        lk.Adapter(tmp_path)
    inside = tmp_path / "checkpoint-500"
    assert "but 1 of its folders do: name one of them, checkpoint-500" in str(caught.value)
    assert str(inside) in str(caught.value)
    shutil.copytree(tiny_adapter, tmp_path / "checkpoint-1000")
    with pytest.raises(lk.LabkitError, match="but 2 of its folders do: .* checkpoint-1000, checkp"):
        lk.Adapter(tmp_path)


@pytest.mark.parametrize(
    ("start", "advice"),
    [
        ("loftq", "the base that LoftQ made and saved beside it"),
        ("pissa", "convert it to a plain LoRA with PEFT where it was trained"),
        ("pissa_niter_4", "path_initial_model_for_weight_conversion"),
        ("olora", "or merge it into the changed base it was trained on"),
        ("lora_ga", "with init_lora_weights set to true"),
    ],
)
def test_adapters_that_changed_their_base_say_what_works(edited, start, advice):
    with pytest.raises(lk.LabkitError, match=f"initialised with '{start}'.*{advice}"):
        edited(init_lora_weights=start)


def test_empty_tensors_of_zero_3(edited):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    with pytest.raises(
        lk.LabkitError, match=r"was saved empty \('.*up_proj.lora_A.weight' has shape"
    ):
        edited(tensors={name: torch.zeros(0)})


def test_patterns_that_take_long_together_are_refused(edited, monkeypatch):
    monkeypatch.setattr(adapter_config, "LONGEST_MATCH_SECONDS", 0.0001)
    with pytest.raises(lk.LabkitError, match="takes more than 0.0001 s to match"):
        edited(alpha_pattern={f"(x|y)+{number}": 1 for number in range(2000)})


def reference(patterns, module):
    """`peft.utils.other.get_pattern_key`, as PEFT has it."""
    from peft.utils.other import get_pattern_key

    key = get_pattern_key(patterns.keys(), module)
    return patterns.get(key)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", ".", r"\.", "_", "-", r"\-", ".*", "[ab]"]), min_size=1)
        .map("".join)
        .flatmap(lambda text: st.sampled_from([text, f"^{text}"])),
        max_size=5,
    ),
    st.text("aab.._-", min_size=1, max_size=7),
)
def test_patterns_mean_what_they_mean_in_peft(given_patterns, module):
    alphas = {pattern: number + 1 for number, pattern in enumerate(given_patterns)}
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 99, "alpha_pattern": alphas}
    found = adapter_config.AdapterConfig(config, "a").scaling_of(module, 1)
    assert found == (reference(alphas, module) or 99)
