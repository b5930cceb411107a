"""LoRAs as GGUF files: what llama.cpp makes of them is what PEFT makes of them."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import labkit as lk
from labkit.errors import LabkitError
from labkit.exporting import exports, lora_files
from labkit.exporting.gguf_files import ask_llama
from labkit.exporting.job import Converted, Job, Questions
from labkit.exporting.lora_files import changes_of, convert, factors_of
from labkit.exporting.staging import stage
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from tests.tiny import make_adapter, merged_by_peft

SCALINGS = {
    "one alpha": {},
    "rsLoRA": {"use_rslora": True},
    "alpha 0": {"lora_alpha": 0},
    "patterns": {"alpha_pattern": {"q_proj": 3, "down_proj": 20}, "rank_pattern": {"v_proj": 2}},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_llama_cpps_rule_gives_pefts_change(tiny_base, tmp_path, kind):
    """`alpha / r · B·A` is all that llama.cpp knows, and must be what PEFT adds to each module."""
    folder = make_adapter(tmp_path / "lora", tiny_base, **SCALINGS[kind])
    merged = merged_by_peft(tiny_base, folder)
    base = {name: t.float() for name, t in merged_by_peft(tiny_base, folder, [0] * 4).items()}
    changes = changes_of(Adapter(folder), Checkpoint(tiny_base))
    alpha, factors = factors_of(changes)
    assert len(changes) == len(factors) == 28
    assert alpha != 0  # llama.cpp takes it for a scaling of 1
    for change, (a, b) in zip(changes, factors, strict=True):
        assert (a.dtype, b.dtype) == (np.float32, np.float32)
        name = change.tensor.name
        expected = (merged[name] - base[name]).numpy()
        np.testing.assert_allclose(alpha / len(a) * (b @ a), expected, atol=1e-6)


def test_factors_are_the_adapters_own_where_one_alpha_does(tiny_base, tiny_adapter):
    adapter = Adapter(tiny_adapter)
    changes = changes_of(adapter, Checkpoint(tiny_base))
    alpha, factors = factors_of(changes)
    assert alpha == 8
    part = changes[3].contributions[0].part
    np.testing.assert_array_equal(factors[3][0], part.a.read())
    np.testing.assert_array_equal(factors[3][1], part.b.read())


def test_what_llama_cpp_says_with_it_is_what_peft_says(small_model, whole, tmp_path):
    """Of a model whose q and k llama.cpp keeps in another order of rows."""
    folder = make_adapter(tmp_path / "lora", small_model, scale=0.1, **SCALINGS["patterns"])
    base = Checkpoint(small_model)
    work = tmp_path / "work"
    work.mkdir()
    stage(base, tmp_path / "staged")
    job = Job(base, "mine", tmp_path / "staged", tmp_path, work, adapter=Adapter(folder))
    made = convert(job)
    tokens = [1, 504, 9000, 2500, 33, 1200]
    answers = {
        adapter: np.load(
            ask_llama(
                whole.folder / whole.runs,
                tmp_path / f"answer {adapter}",
                Questions([tokens], []),
                lambda: None,
                tmp_path / made.runs if adapter else None,
            ).log_probabilities[0]
        )
        for adapter in (True, False)
    }
    assert made.notes == ("14 modules, alpha 4",)

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    model.load_state_dict(merged_by_peft(small_model, folder))
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1).numpy()

    def kl(found):
        return float((np.exp(expected) * (expected - found)).sum(-1).mean())

    assert kl(answers[True]) < 0.001
    assert kl(answers[False]) > 0.1


def test_what_is_no_plain_lora_is_refused(tiny_base, tmp_path):
    folder = make_adapter(tmp_path / "dora", tiny_base, use_dora=True)
    with pytest.raises(LabkitError, match="an export to llama.cpp works on plain LoRA only, and"):
        changes_of(Adapter(folder), Checkpoint(tiny_base))


def test_modules_that_the_base_keeps_in_another_form_are_refused(tiny_base, tiny_adapter):
    adapter, base = Adapter(tiny_adapter), Checkpoint(tiny_base)
    change = changes_of(adapter, base)[0]
    one = change.contributions[0]
    turned = SimpleNamespace(
        match=SimpleNamespace(block=None, rows=None, expert=None, transposed=True)
    )
    for contributions in ((one, one), (turned,)):
        changed = SimpleNamespace(tensor=change.tensor, contributions=contributions)
        plan = SimpleNamespace(changes={change.tensor.name: changed})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lora_files, "plan", lambda _, plan=plan: plan)
            with pytest.raises(LabkitError) as caught:
                changes_of(adapter, base)
        assert str(caught.value) == (
            "llama.cpp cannot carry what tiny-lora does to "
            f"{change.tensor.name!r}, whose base keeps it in another form; merge it into the base "
            "instead, and export the merge"
        )


def test_a_baked_lora_is_exported_with_the_base_that_is_named(
    tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    """Without the tools, which the tests above run: what goes to them and what comes out."""
    seen = []

    def plain(job):
        seen.append(job)
        (job.out / "mine.gguf").write_bytes(b"factors")
        return Converted(("mine.gguf",), "mine.gguf", "run it", {"tool": "1"}, 1, 1.0)

    monkeypatch.setattr(exports, "LORA", replace(lora_files.LORA, convert=plain))
    baked = lk.bake(tiny_adapter, "0,0.5,1,1", tmp_path / "baked")
    made = lk.export(baked, tmp_path / "out", "gguf", base=tiny_base, check=False, progress=False)
    assert (made.format, made.merged) == ("gguf-lora", "baked")
    assert seen[0].adapter.folder == tmp_path / "baked"
    assert seen[0].model.folder == tiny_base
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# base_model: fill in where tiny-llama is on the hub" in card
    assert "# base_model_relation: adapter" in card
    assert "It belongs on the base model tiny-llama, in any of llama.cpp's formats." in card
    assert json.loads((tmp_path / "out" / "receipt.json").read_text())["merged"] == "baked"


def test_errors_of_loras(tiny_base, tiny_adapter, tmp_path):
    def error(*arguments, **options):
        with pytest.raises(LabkitError) as caught:
            lk.export(*arguments, progress=False, **options)
        return str(caught.value)

    out = tmp_path / "out"
    assert error(tiny_adapter, out, "Q4_K_M", base=tiny_base) == (
        "tiny-lora is a LoRA, and is exported as gguf; 'Q4_K_M' is for models: merge it into its "
        "base first"
    )
    assert error(tiny_base, out, "bf16", base=tiny_base) == (
        "base is that of a LoRA, and a model is exported; leave it out"
    )
    said = error(tiny_adapter, out, "gguf")
    assert said.startswith("the base model that tiny-lora names cannot be opened (")
    assert said.endswith("); say where it is here with base")
    silent = shutil.copytree(tiny_adapter, tmp_path / "silent")
    config = json.loads((silent / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (silent / "adapter_config.json").write_text(json.dumps(config))
    assert error(silent, out, "gguf") == (
        "silent does not say which base model it is for; name it with base"
    )
    # A folder that is not there is a LoRA's where a LoRA is spoken of.
    for more in ({"base": tiny_base}, {}):
        assert "bakd" in error("bakd", out, "gguf", **more)
        assert "unknown" not in error("bakd", out, "gguf", **more)
    assert "lie in each other" in error(tiny_adapter, tiny_adapter / "out", "gguf", base=tiny_base)
