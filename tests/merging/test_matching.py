"""What of an adapter is matched, skipped and refused, as PEFT does with the same folder."""

import shutil
import warnings

import numpy as np
import pytest
import torch

from labkit import LabkitError
from labkit.files.tensor_file import StoredTensor
from tests.architectures import make_architecture
from tests.models.kinds.helpers import (
    bases,
    compare,
    configured,
    factors,
    labkits,
    pefts,
    resolve,
    retensored,
    some,
    write_adapter,
)
from tests.oracle import train

UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.2.mlp.down_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_architecture(tmp_path_factory.mktemp("matching") / "llama", "llama")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("matching") / "trained"
    return train(folder, base, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def copy(tmp_path, trained):
    return shutil.copytree(trained, tmp_path / "copy")


def without(folder, field):
    import json

    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    del content[field]
    path.write_text(json.dumps(content))
    return folder


# target_modules


def test_no_target_modules_are_pefts_usual_ones(base, trained, copy):
    expected = pefts(base, trained)
    compare(labkits(resolve(base, configured(copy, target_modules=None))), expected)
    compare(labkits(resolve(base, without(copy, "target_modules"))), expected)
    compare(pefts(base, copy), expected)


def test_usual_modules_leave_out_the_others(tmp_path, base):
    """PEFT's usual modules of a Llama are q_proj and v_proj."""
    adapter = train(tmp_path / "a", base, target_modules=["q_proj", "up_proj"])
    configured(adapter, target_modules=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pefts(base, adapter)
    resolved = resolve(base, adapter)
    compare(labkits(resolved), expected)
    assert (
        "a holds a change of 3 modules that is left out, as by PEFT, since in adapter_config.json "
        "target_modules is not there, and it is none of PEFT's usual modules of this model: "
        "model.layers.0.mlp.up_proj, model.layers.1.mlp.up_proj, model.layers.2.mlp.up_proj"
    ) in resolved.notes
    assert not any("changes up_proj" in note for note in resolved.notes)


@pytest.mark.parametrize(
    "asked", [[], ["qproj"], ["all-linear"], ".*decoder.*q_proj", ["k_proj"]],
    ids=["empty", "typo", "list", "regex", "another"],
)  # fmt: skip
def test_a_config_that_selects_nothing_is_refused(base, copy, asked):
    configured(copy, target_modules=asked)
    with pytest.raises(LabkitError) as caught:
        resolve(base, copy)
    text = str(caught.value)
    assert "target_modules of copy selects none of the 6 modules in its file" in text
    assert f"adapter_config.json asks for {asked}, and the file holds q_proj, v_proj" in text


WHY_LEFT_OUT = [
    ({"exclude_modules": ["v_proj"]}, "exclude_modules names it"),
    ({"modules_to_save": ["v_proj"]}, "modules_to_save trains it whole"),
    ({"target_modules": ["q_proj"]}, "target_modules does not name it"),
    ({"target_modules": ".*q_proj"}, "target_modules does not name it"),
    ({"layers_to_transform": [0]}, "layers_to_transform leaves its layer out"),
]


@pytest.mark.parametrize(("changes", "reason"), WHY_LEFT_OUT)
def test_what_is_left_out_has_its_reason(base, copy, changes, reason):
    resolved = resolve(base, configured(copy, **changes))
    skipped = [row for row in resolved.ledger if row.status == "skipped"]
    modules = {
        row.tensor.removeprefix("base_model.model.").rpartition(".lora")[0] for row in skipped
    }
    assert {row.reason for row in skipped} == {reason}
    assert 3 <= len(modules) < 6
    assert any(
        note.startswith(
            f"copy holds a change of {len(modules)} modules that is left out, as by PEFT, since in "
            f"adapter_config.json {reason}: model.layers."
        )
        for note in resolved.notes
    )


def test_a_config_that_excludes_everything_says_so(base, copy):
    configured(copy, exclude_modules=".*")
    with pytest.raises(LabkitError) as caught:
        resolve(base, copy)
    assert str(caught.value) == (
        "adapter_config.json of copy selects none of the 6 modules in its file (of "
        "'model.layers.0.self_attn.q_proj' exclude_modules names it); correct adapter_config.json"
    )


def test_layers_that_are_skipped_do_not_count_as_changed(base, copy):
    configured(copy, target_modules=r".*\.1\..*_proj|.*v_proj")
    notes = resolve(base, copy).notes
    assert "copy changes q_proj in 1 of 3 layers only" in notes
    assert not any("changes v_proj" in note for note in notes)
    assert any("change of 2 modules that is left out" in note for note in notes)


def test_what_was_not_trained_is_skipped_in_silence(tmp_path, base):
    tensors, _ = factors(UP, 48, 32)
    other, _ = factors(DOWN, 32, 48)
    other[f"{DOWN}.lora_B.weight"] *= 0
    adapter = write_adapter(tmp_path / "a", tensors | other, target_modules=["up_proj"])
    resolved = resolve(base, adapter)
    assert [row.reason for row in resolved.ledger if row.status == "skipped"] == [
        "target_modules does not name it"
    ] * 2
    assert not any("left out" in note for note in resolved.notes)


def test_modules_that_are_saved_whole_have_no_factors(tmp_path, base):
    adapter = train(tmp_path / "a", base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    extra, _ = factors("lm_head", 96, 32, rank=4)
    retensored(
        adapter,
        lambda stored: (
            stored
            | {f"base_model.model.{name}": torch.tensor(v).float() for name, v in extra.items()}
        ),
    )
    configured(adapter, target_modules=["q_proj", "lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pefts(base, adapter)
    compare(labkits(resolve(base, adapter)), expected)


# Heads of tasks


@pytest.mark.parametrize("head", ["score", "v_head.summary", "classifier"])
def test_a_head_that_the_base_has_not(tmp_path, base, head):
    tensors, _ = factors(UP, 48, 32)
    adapter = write_adapter(
        tmp_path / "a",
        tensors | {f"{head}.weight": some(1, 32)},
        target_modules=["up_proj"],
        task_type="SEQ_CLS",
    )
    for rest in (None, 1.0):
        with pytest.raises(LabkitError) as caught:
            resolve(base, adapter, 1.0, rest)
        assert (
            f"'base_model.model.{head}.weight': the base has no module of that name; the adapter "
            f"was trained on a model with the head '{head}' (task type SEQ_CLS): name such a "
            "model as the base, or leave the head out (rest=0)"
        ) in str(caught.value)
    resolved = resolve(base, adapter, 1.0, 0.0)
    skipped = [row for row in resolved.ledger if row.status == "skipped"]
    assert [row.reason for row in skipped] == [
        "the base has no module of that name, and the weight outside the layers is 0"
    ]


# Files beside the adapter's own


@pytest.mark.parametrize("file", ["non_lora_trainables.bin", "trainable_params.bin"])
@pytest.mark.parametrize("rest", [1.0, 0.25])
def test_other_trained_files_are_merged_too(tmp_path, base, file, rest):
    tensors, product = factors(UP, 48, 32)
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=["up_proj"])
    norm = some(32)
    torch.save(
        {
            "base_model.model.model.norm.weight": torch.tensor(norm).float(),
            "base_model.model.model.mm_projector.0.weight": torch.ones(4, 4),
        },
        adapter / file,
    )
    expected = bases(base)
    expected[f"{UP}.weight"] += 3 * product
    expected["model.norm.weight"] += rest * (norm - expected["model.norm.weight"])
    resolved = resolve(base, adapter, 1.0, rest)
    compare(labkits(resolved), expected, expected, atol=1e-12)
    said = f"a: {file} is merged too, but for 1 tensors that the base has no place for"
    assert said in resolved.notes
    skipped = [row for row in resolved.ledger if row.status == "skipped"]
    assert [row.reason for row in skipped] == [
        f"the base has no module of that name; it comes from {file}"
    ]


def test_a_name_in_two_of_the_files_is_refused(tmp_path, base):
    tensors, _ = factors(UP, 48, 32)
    norm = {"model.norm.weight": some(32)}
    adapter = write_adapter(tmp_path / "a", tensors | norm, target_modules=["up_proj"])
    torch.save({"model.norm.weight": torch.ones(32)}, adapter / "trainable_params.bin")
    with pytest.raises(LabkitError, match="both name the base's 'model.norm.weight'"):
        resolve(base, adapter)


def test_other_trained_files_alone_are_no_adapter(tmp_path, base):
    adapter = write_adapter(tmp_path / "a", {"x": some(1)}, target_modules=["up_proj"])
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(32)}, adapter / "trainable_params.bin")
    with pytest.raises(LabkitError, match="holds no adapter_model.safetensors; name the folder"):
        resolve(base, adapter)


# Numbers


def test_the_first_part_with_numbers_that_are_not_finite_is_named(tmp_path, base):
    for spoiled in (f"{UP}.lora_A.weight", f"{DOWN}.lora_B.weight"):
        up, _ = factors(UP, 48, 32)
        down, _ = factors(DOWN, 32, 48)
        tensors = up | down
        tensors[spoiled][1, 1] = np.inf
        tensors[spoiled][0, 1] = np.nan
        adapter = write_adapter(tmp_path / "a", tensors, target_modules=["up_proj", "down_proj"])
        module = spoiled.rsplit(".lora", 1)[0]
        with pytest.raises(
            LabkitError,
            match=f"module '{module}' of a holds 2 numbers that are NaN .*{spoiled}",
        ):
            resolve(base, adapter)


def test_skipped_numbers_are_not_looked_at(tmp_path, base):
    up, _ = factors(UP, 48, 32)
    down, _ = factors(DOWN, 32, 48)
    down[f"{DOWN}.lora_A.weight"][:] = np.nan
    adapter = write_adapter(tmp_path / "a", up | down, target_modules=["up_proj"])
    assert resolve(base, adapter).changes


# Scale: counts, not time


def test_the_work_grows_with_the_modules_alone(tmp_path, monkeypatch):
    """A pattern for every module, as `labkit bake` and EVA write them, names with dots or without.

    Of 400 modules and 400 patterns no pair is compared, and the file is read in a few pieces.
    """
    import regex

    modules = [
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj"
        for layer in range(2)
        for expert in range(200)
    ]
    tensors = {}
    for module in modules:
        tensors |= {f"{module}.lora_A.weight": some(2, 4), f"{module}.lora_B.weight": some(4, 2)}
    adapter = write_adapter(
        tmp_path / "a",
        tensors,
        target_modules=["up_proj"],
        alpha_pattern={f"^{module}".replace(".", "\\."): 2 for module in modules},
        rank_pattern=dict.fromkeys(modules, 2),
        r=7,
    )
    folder = tmp_path / "base"
    folder.mkdir()
    from safetensors.torch import save_file

    save_file({f"{m}.weight": torch.zeros(4, 4) for m in modules}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen3_moe", "num_hidden_layers": 2}')
    counts = {"reads": 0, "compiled": 0}
    read, compiled = StoredTensor.read_bytes, regex.compile

    def counted_read(tensor):
        counts["reads"] += 1
        return read(tensor)

    def counted_compile(*arguments, **options):
        counts["compiled"] += 1
        return compiled(*arguments, **options)

    monkeypatch.setattr(StoredTensor, "read_bytes", counted_read)
    monkeypatch.setattr(regex, "compile", counted_compile)
    assert len(resolve(folder, adapter).changes) == 400
    assert counts["reads"] < 20
    assert counts["compiled"] == 0


def test_a_layer_that_the_base_has_not_is_refused(tmp_path, base):
    tensors, _ = factors("model.layers.7.mlp.up_proj", 48, 32)
    adapter = write_adapter(tmp_path / "a", tensors, target_modules=["up_proj"])
    with pytest.raises(LabkitError, match="match nothing in the base llama.*for another model"):
        resolve(base, adapter)
