"""A baked adapter: the same logits as the written merge and as peft with its scaling turned."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import labkit as lk
from tests.architectures import make_architecture
from tests.kinds import KINDS, LAYERS, names_of, settings_of
from tests.oracle import load, merged, train
from tests.tiny import make_adapter, make_base, make_tokenizer

# peft 0.21 asks transformers by a name that transformers 5 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

MIXED = "0,0.5,-1.5,1"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("bake") / "base", dtype=torch.float32)


@pytest.fixture(scope="module")
def plain_adapter(tmp_path_factory, base):
    return make_adapter(tmp_path_factory.mktemp("bake") / "plain", base, scale=0.3)


@pytest.fixture(scope="module")
def patterned_adapter(tmp_path_factory, base):
    return make_adapter(
        tmp_path_factory.mktemp("bake") / "patterned",
        base,
        scale=0.3,
        use_rslora=True,
        lora_alpha=3,
        rank_pattern={"q_proj": 2, r"layers\.1\..*\.down_proj": 8},
        alpha_pattern={"mlp.up_proj": 5, "^model.layers.3.self_attn.o_proj": 7},
    )


def logits(base, adapter=None, gradient=None):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and gradient is not None:
            layer = int(name.split(".layers.")[1].split(".")[0])
            module.scaling["default"] *= gradient[layer]
    with torch.no_grad():
        return model(torch.arange(1, 40).unsqueeze(0)).logits


@pytest.mark.parametrize("kind", ["plain_adapter", "patterned_adapter"])
@pytest.mark.parametrize("alpha_pattern", [False, True])
def test_the_same_logits_in_plain_peft(request, base, kind, alpha_pattern, tmp_path):
    adapter = request.getfixturevalue(kind)
    gradient = lk.Gradient.parse(MIXED)
    receipt = lk.bake(adapter, gradient, tmp_path / "baked", alpha_pattern=alpha_pattern)
    lk.plan(base, adapter, gradient).write(tmp_path / "merged", progress=False)
    baked = logits(base, tmp_path / "baked")
    assert (baked - logits(base)).abs().max() > 0.1
    torch.testing.assert_close(baked, logits(base, adapter, gradient), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(baked, logits(tmp_path / "merged"), rtol=1e-4, atol=2e-5)
    assert receipt.how == ("alpha_pattern" if alpha_pattern else "lora_B")


WHOLE = {"dora", "dora and rslora", "dora embedding", "bias all", "bias lora_only",
         "modules_to_save", "embedding saved", "tokens", "head"}  # fmt: skip
"""Kinds with tensors that no factor scales; beside a LoRA on the head, PEFT saves the head."""


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [*(("gpt_neox" if "bias" in kind else "llama", kind) for kind in KINDS), ("mixtral", "plain")],
)
def test_every_kind_is_baked_as_it_is_merged_or_refused(architecture, kind, tmp_path):
    base = tmp_path / "base"
    make_architecture(base, architecture)
    adapter = train(tmp_path / "lora", base, **settings_of(kind, names_of(base)))
    gradient, rest = lk.Gradient([0.5, -1.5, 0.25, 1][:LAYERS]), 0.75
    if kind in WHOLE:
        with pytest.raises(lk.LabkitError, match=r"which no alpha scales \(DoRA, or a tensor"):
            lk.bake(adapter, gradient, tmp_path / "baked", rest=rest)
        return
    lk.bake(adapter, gradient, tmp_path / "baked", rest=rest)
    lk.plan(base, adapter, gradient, rest=rest).write(tmp_path / "merged", progress=False)
    expected = load(tmp_path / "merged").state_dict()
    found = merged(base, tmp_path / "baked").state_dict()
    assert found.keys() == expected.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("alpha_pattern", [False, True])
def test_experts_beside_modules_with_a_scaling_of_their_own(alpha_pattern, tmp_path):
    """Only B carries the gradient of experts: it must not carry what the config still says."""
    base = tmp_path / "base"
    make_architecture(base, "mixtral")
    adapter = train(tmp_path / "lora", base, target_modules=["q_proj"], use_rslora=True,
                    target_parameters=["mlp.experts.down_proj"])  # fmt: skip
    gradient = lk.Gradient([0.5, -1.5, 0.25, 1][:LAYERS])
    receipt = lk.bake(adapter, gradient, tmp_path / "baked", alpha_pattern=alpha_pattern)
    assert receipt.how == ("alpha_pattern and lora_B" if alpha_pattern else "lora_B")
    lk.plan(base, adapter, gradient).write(tmp_path / "merged", progress=False)
    expected = load(tmp_path / "merged").state_dict()
    for name, values in merged(base, tmp_path / "baked").state_dict().items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=2e-6, msg=name)


def test_no_tensor_is_touched(plain_adapter, tmp_path):
    lk.bake(plain_adapter, MIXED, tmp_path / "baked", alpha_pattern=True)
    name = "adapter_model.safetensors"
    assert (tmp_path / "baked" / name).read_bytes() == (plain_adapter / name).read_bytes()
    config = json.loads((tmp_path / "baked" / "adapter_config.json").read_text())
    before = json.loads((plain_adapter / "adapter_config.json").read_text())
    patterns = config.pop("alpha_pattern")
    before.pop("alpha_pattern")
    assert config == before
    assert len(patterns) == 21  # the layer of weight 1 keeps its alpha
    assert patterns[r"^model\.layers\.1\.mlp\.up_proj"] == 4
    assert patterns[r"^model\.layers\.0\.mlp\.up_proj"] == 0
    assert patterns[r"^model\.layers\.2\.mlp\.up_proj"] == -12
    assert not any(name.startswith(r"^model\.layers\.3") for name in patterns)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"up_proj": 3}, "rank_pattern": {"q_proj": 2}},
        {"lora_alpha": 0},
        {"use_rslora": True, "lora_alpha": 0, "lora_bias": True, "target_modules": ["up_proj"]},
    ],
)
def test_programs_that_know_only_alpha_over_r_read_the_same(base, settings, tmp_path):
    """llama.cpp's: `alpha / rank`, no patterns, no rsLoRA, and an alpha of 0 is one of no scale."""
    from safetensors.torch import load_file

    adapter = make_adapter(tmp_path / "lora", base, scale=0.3, **settings)
    lk.bake(adapter, MIXED, tmp_path / "baked")
    tensors = load_file(tmp_path / "baked" / "adapter_model.safetensors")
    alpha = json.loads((tmp_path / "baked" / "adapter_config.json").read_text())["lora_alpha"]
    assert alpha > 0
    for name, module in lk.Adapter(adapter).modules.items():
        weight = lk.Gradient.parse(MIXED)[int(name.split(".")[2])]
        a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
        found = (alpha / len(a)) * (b @ a).numpy()
        wanted = weight * module.product().dense()
        np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())
    plain = {"use_rslora": False, "alpha_pattern": {}}
    config = json.loads((tmp_path / "baked" / "adapter_config.json").read_text())
    assert {key: config[key] for key in plain} == plain
    if settings.get("lora_alpha") != 0:
        torch.testing.assert_close(
            logits(base, tmp_path / "baked"),
            logits(base, adapter, lk.Gradient.parse(MIXED)),
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_pickled_file_cannot_be_scaled(plain_adapter, tmp_path):
    from safetensors.torch import load_file

    folder = shutil.copytree(plain_adapter, tmp_path / "lora")
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(
        lk.LabkitError, match=r"convert it first, or let the config .*alpha_pattern=True"
    ):
        lk.bake(folder, MIXED, tmp_path / "baked")
    lk.bake(folder, MIXED, tmp_path / "baked", alpha_pattern=True)


def test_labkit_reads_what_it_baked(patterned_adapter, tmp_path):
    lk.bake(patterned_adapter, MIXED, tmp_path / "baked", alpha_pattern=True)
    before, after = lk.Adapter(patterned_adapter), lk.Adapter(tmp_path / "baked")
    for name, module in before.modules.items():
        weight = lk.Gradient.parse(MIXED)[int(name.split(".")[2])]
        assert after.modules[name].scaling == pytest.approx(weight * module.scaling, rel=1e-15)
    # A gradient of ones changes nothing, not even the last bit.
    lk.bake(patterned_adapter, "1x4", tmp_path / "same", alpha_pattern=True)
    same = lk.Adapter(tmp_path / "same")
    assert all(same.modules[n].scaling == m.scaling for n, m in before.modules.items())


def test_scaled_factors_are_rounded_once(plain_adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(plain_adapter, tmp_path / "half")
    file = tmp_path / "half" / "adapter_model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file)
    lk.bake(tmp_path / "half", "0.1,0.1,0.1,0", tmp_path / "baked")
    before, after = load_file(file), load_file(tmp_path / "baked" / file.name)
    for name, value in before.items():
        layer = int(name.split(".layers.")[1].split(".")[0])
        weight = 1.0 if "lora_A" in name else (0.1, 0.1, 0.1, 0)[layer]
        expected = torch.from_numpy((value.double() * weight).numpy().astype("float16"))
        assert torch.equal(after[name], expected)


def test_module_patterns_and_rest(tmp_path, base):
    adapter = make_adapter(tmp_path / "lora", base, target_modules=["up_proj", "q_proj"])
    receipt = lk.bake(adapter, "1x4", tmp_path / "baked", weights_for={"mlp": "0x4"})
    weights = {module.name: module.weight for module in receipt.modules}
    assert weights["model.layers.2.mlp.up_proj"] == 0
    assert weights["model.layers.2.self_attn.q_proj"] == 1


def without_base_layers(adapter):
    """Remove the base's own head, which peft saves with a LoRA on it."""
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    save_file({n: v for n, v in load_file(file).items() if "base_layer" not in n}, file)


def test_what_lies_outside_the_layers(tmp_path):
    untied = make_base(tmp_path / "base", tie_word_embeddings=False)
    adapter = make_adapter(tmp_path / "lora", untied, target_modules=["up_proj", "lm_head"])
    without_base_layers(adapter)
    with pytest.raises(lk.LabkitError, match="module 'lm_head' of lora lies outside the layers"):
        lk.bake(adapter, "1x4", tmp_path / "baked", alpha_pattern=True)
    receipt = lk.bake(adapter, "1x4", tmp_path / "baked", rest=0.5, alpha_pattern=True)
    assert {m.baked for m in receipt.modules if m.layer is None} == {4}


def test_the_folder(plain_adapter, tmp_path):
    shutil.copytree(plain_adapter, tmp_path / "lora")
    make_tokenizer(tmp_path / "lora")
    receipt = lk.bake(tmp_path / "lora", "0,0,0.5,1", tmp_path / "baked", alpha_pattern=True)
    names = {path.name for path in (tmp_path / "baked").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md",
            "gradient.png", "receipt.json"} <= names  # fmt: skip
    content = json.loads((tmp_path / "baked" / "receipt.json").read_text())
    assert content["baked_into"] == "alpha_pattern"
    assert content["modules"][0]["weight"] == 0
    assert "alpha_pattern scales 21 of 28 modules" in str(receipt)
    assert "<table>" in receipt._repr_html_()
    card = (tmp_path / "baked" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "```\n0,0,0.5,1\n```" in card
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_snippet_of_the_card_runs(base, plain_adapter, tmp_path, monkeypatch):
    shutil.copytree(plain_adapter, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    lk.bake(tmp_path / "lora", "0,0,0.5,1", tmp_path / "baked", alpha_pattern=True)
    card = (tmp_path / "baked" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1], names)
    assert names["model"].peft_config["default"].alpha_pattern


def fails(message, *arguments, **options):
    with pytest.raises(lk.LabkitError, match=re.escape(message)):
        lk.bake(*arguments, **options)


def test_errors(plain_adapter, tmp_path):
    out = tmp_path / "baked"
    fails("lies in layer 3, and there are 3 weights; write one", plain_adapter, "1x3", out)
    fails("3 weights for 4 layers (modules mlp)", plain_adapter, "1x4", out,
          weights_for={"mlp": "1x3"})  # fmt: skip
    fails("would have alpha inf; expected a finite number", plain_adapter, "1e308,0x3", out)
    for target in (plain_adapter, plain_adapter.parent):
        fails(f"{target} would replace the adapter", plain_adapter, "1x4", target)
    fails("is no folder; make it first", plain_adapter, "1x4", out / "deep")
    out.mkdir()
    fails("exists already; choose another name", plain_adapter, "1x4", out)
    fails("was not made by labkit", plain_adapter, "1x4", out, overwrite=True)
    out.rmdir()
    lk.bake(plain_adapter, "1x4", out)
    lk.bake(plain_adapter, "0x4", out, overwrite=True)
    fails("times 1e+300 is too large", plain_adapter, "0x3,1e300", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_several_stacks(plain_adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(plain_adapter, tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in list(tensors):
        tensors[name.replace("model.layers", "vision.layers")] = tensors[name].clone()
    save_file(tensors, file)
    fails("changes several stacks of layers", tmp_path / "lora", "1x4", tmp_path / "baked")


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json"])
def test_links_that_lead_out_are_not_followed(plain_adapter, tmp_path, name):
    adapter = shutil.copytree(plain_adapter, tmp_path / "lora")
    (tmp_path / "key").write_text("secret")
    (adapter / name).symlink_to(tmp_path / "key")
    fails(f"{adapter / name} is a link to {tmp_path / 'key'}, outside its folder; put the file",
          adapter, "1x4", tmp_path / "baked")  # fmt: skip
    assert not (tmp_path / "baked").exists()
    (adapter / name).unlink()
    (adapter / "text").write_text("text")
    (adapter / name).symlink_to("text")
    lk.bake(adapter, "1x4", tmp_path / "baked")
    assert (tmp_path / "baked" / name).read_text() == "text"
    assert not (tmp_path / "baked" / name).is_symlink()


def test_a_bake_replaces_a_bake_and_nothing_else(plain_adapter, tiny_base, tmp_path):
    adapter = shutil.copytree(plain_adapter, tmp_path / "lora")
    (adapter / "tokenizer.json").write_text("{}")
    out = tmp_path / "out"
    lk.bake(adapter, "1x4", out)
    lk.bake(adapter, "0.5x4", out, overwrite=True)
    merge = lk.plan(tiny_base, plain_adapter, "1x4")
    said = f"{out} holds something else that labkit made"
    with pytest.raises(lk.LabkitError, match=re.escape(said)):
        merge.write(out, overwrite=True, progress=False)
    shutil.rmtree(out)
    merge.write(out, progress=False)
    fails(said, plain_adapter, "1x4", out, overwrite=True)
