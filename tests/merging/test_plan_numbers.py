"""The numbers that a plan tells before a byte is written, against files on disk and by hand."""

import inspect
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import labkit as lk
from labkit.files.references import Located
from labkit.merging.planning import Forecast, Plan
from labkit.writing.engine import pieces_at_once
from tests.architectures import make_architecture
from tests.oracle import quiet, train
from tests.tiny import make_adapter

ITEM_BYTES = {"auto": 2, "float16": 2, "bfloat16": 2, "float32": 4}


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def header_bytes(path):
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_bytes_to_read_and_to_write(tiny_base, tiny_adapter, tmp_path, dtype):
    plan = lk.plan(tiny_base, tiny_adapter, "0,0.5,1,0", dtype=dtype)
    forecast = plan.forecast()
    file = tiny_adapter / "adapter_model.safetensors"
    assert forecast.bytes_to_read == (
        sum(path.stat().st_size for path in shards(tiny_base)) + file.stat().st_size
    )
    headers = sum(map(header_bytes, shards(tiny_base)))
    elements = sum(t.numel() for path in shards(tiny_base) for t in load_file(path).values())
    assert forecast.bytes_to_write == headers + elements * ITEM_BYTES[dtype]
    plan.write(tmp_path / "out", progress=False, device="cpu")
    written = sum(path.stat().st_size for path in shards(tmp_path / "out"))
    # The new headers say other dtypes and places, and nothing else differs.
    assert abs(written - forecast.bytes_to_write) < 400
    assert (forecast.tensors_touched, forecast.tensors) == (14, 38)


def test_each_adapter_is_read(tiny_base, tiny_adapter):
    one = lk.plan(tiny_base, tiny_adapter, "1x4").forecast()
    terms = [lk.Term(str(tiny_adapter), "1x4"), lk.Term(str(tiny_adapter), "0x4")]
    two = lk.plan(lk.Recipe(str(tiny_base), terms)).forecast()
    size = (tiny_adapter / "adapter_model.safetensors").stat().st_size
    assert two.bytes_to_read - one.bytes_to_read == size


def test_numbers_that_are_no_floats_keep_their_dtype(tiny_base, tiny_adapter, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    file = shards(folder)[0]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    save_file({**load_file(file), "positions": torch.arange(7)}, file, {"format": "pt"})
    index["weight_map"]["positions"] = file.name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    plan = lk.plan(folder, tiny_adapter, "1x4", dtype="float16")
    positions = plan.base.tensors["positions"]
    assert (plan.output_dtype(positions), plan.output_bytes(positions)) == ("I64", 56)
    norm = plan.base.tensors["model.norm.weight"]
    assert (plan.output_dtype(norm), plan.output_bytes(norm)) == ("F16", 64)


def test_memory_for_the_factors_of_every_piece_under_way(tiny_base, tmp_path):
    """The largest tensor's factors, `8·r·(rows + columns)` bytes, for each piece and four more."""

    def memory(*ranks):
        terms = [lk.Term(str(tmp_path / f"{rank}"), "0.5x4") for rank in ranks]
        return lk.plan(lk.Recipe(str(tiny_base), terms)).forecast().peak_memory

    for rank in (4, 12):
        make_adapter(tmp_path / f"{rank}", tiny_base, r=rank, target_modules=["up_proj", "q_proj"])
    for_one_rank = (pieces_at_once("cpu") + 4) * 8 * (80 + 32)
    assert memory(12) - memory(4) == 8 * for_one_rank
    assert memory(4, 12) - memory(4) == 12 * for_one_rank
    assert 1e6 < memory(4) < 7e8


def test_the_forecast_in_words(tiny_base, tiny_adapter, monkeypatch):
    plan = lk.plan(tiny_base, tiny_adapter, "1x4")
    told = Forecast(12_340_000_000, 5_678_000_000, 3, 38, 412_300_000)
    monkeypatch.setattr(Plan, "forecast", lambda self: told)
    said = dict(plan.summary())
    assert said["forecast"] == (
        "reads 12.34 GB, writes 5.68 GB, in at most 412 MB of working memory"
    )
    assert said["touches"] == "3 of 38 tensors; the others keep the base's bytes"


def test_a_recipe_in_words(tiny_base, tiny_adapter):
    term = lk.Term(str(tiny_adapter), "0,0.5,0.5,1", {"mlp": "0.25x4"})
    said = list(lk.plan(lk.Recipe(str(tiny_base), [term], rest=0.75)).summary())
    assert said[:5] == [
        ("base", "tiny-llama, 4 layers"),
        ("adapter", "tiny-lora, mean weight 0.50, 0,0.5x2,1"),
        ("  mlp", "mean weight 0.25, 0.25x4"),
        ("rest", "0.75"),
        ("ledger", "56 adapter tensors matched, 0 skipped, 0 unmatched"),
    ]
    assert "rest" not in dict(lk.plan(tiny_base, tiny_adapter, "1x4").summary())


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_vocabulary_that_grows(architecture, tmp_path):
    with quiet():
        base = make_architecture(tmp_path / "base", architecture)
        adapter = train(tmp_path / "lora", base, resize=101, target_modules=["q_proj"])
    plan = lk.plan(base, adapter, "1x3", rest=1.0)
    none = lk.plan(base, adapter, "1x3", rest=0.0)
    assert (plan.vocabulary_size, none.vocabulary_size) == (101, None)
    embedding = plan.base.tensors["model.embed_tokens.weight"]
    assert plan.output_shape(embedding) == (101, 32)
    assert none.output_shape(embedding) == (96, 32)
    assert plan.output_bytes(embedding) - none.output_bytes(embedding) == 5 * 32 * 4
    uses = 1 if plan.base.tied else 2
    grown = plan.forecast().bytes_to_write - none.forecast().bytes_to_write
    assert grown == uses * 5 * 32 * 4


def test_an_untied_head_is_written_too(tmp_path):
    with quiet():
        base = make_architecture(tmp_path / "base", "qwen2")
        adapter = train(tmp_path / "lora", base, target_modules=["embed_tokens", "q_proj"])
    term = lk.Term(str(adapter), "1x3")
    plans = [lk.plan(lk.Recipe(str(base), [term], rest, untie=untie))
             for rest, untie in ((1.0, True), (0.0, False))]  # fmt: skip
    head = 96 * 32 * 4
    apart, tied = (plan.forecast().bytes_to_write for plan in plans)
    assert apart - tied == head
    assert [len(plan.added) for plan in plans] == [1, 0]


def noted(base, adapter):
    return lk.plan(base, adapter, "1x4").notes


def reconfigured(adapter, folder, **changes):
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_an_adapter_of_another_base_is_noted(tiny_base, tiny_adapter, tmp_path, monkeypatch):
    base = lk.Checkpoint(tiny_base)
    assert noted(base, tiny_adapter) == ()
    located = Located("owner/Tiny-Llama", tiny_base, "Tiny-Llama", "owner/Tiny-Llama", "abc")
    monkeypatch.setattr(base, "_located", located)
    assert noted(base, tiny_adapter) == ()  # the same name in small letters
    there = reconfigured(
        tiny_adapter, tmp_path / "a", base_model_name_or_path="someone/tiny-llama/"
    )
    assert noted(base, there) == ()
    other = reconfigured(tiny_adapter, tmp_path / "b", base_model_name_or_path="owner/other")
    assert noted(base, other) == ("b says it was trained on owner/other, not on Tiny-Llama",)
    silent = reconfigured(tiny_adapter, tmp_path / "c", base_model_name_or_path="")
    assert noted(base, silent) == ()


def test_an_alpha_of_0_is_noted(tiny_base, tiny_adapter, tmp_path):
    none = reconfigured(tiny_adapter, tmp_path / "a", lora_alpha=0)
    assert noted(tiny_base, none) == ("a has alpha 0: it changes nothing at any weight",)
    some = reconfigured(tiny_adapter, tmp_path / "b", lora_alpha=0, alpha_pattern={"up_proj": 1})
    assert noted(tiny_base, some) == ()


def test_modules_of_some_layers_only_are_noted(tiny_base, tiny_adapter, tmp_path):
    part = make_adapter(tmp_path / "part", tiny_base, target_modules=r".*\.[01]\..*(up|down)_proj")
    assert noted(tiny_base, part) == (
        "part changes down_proj in 2 of 4 layers only",
        "part changes up_proj in 2 of 4 layers only",
    )
    asked = make_adapter(
        tmp_path / "asked", tiny_base, target_modules=["up_proj"], layers_to_transform=[0]
    )
    assert noted(tiny_base, asked) == ()


def test_untying_what_is_apart_is_noted(tmp_path):
    for name, noted_of in (("llama", True), ("qwen2", False)):
        with quiet():
            base = make_architecture(tmp_path / name, name)
            adapter = train(tmp_path / f"{name}-lora", base, target_modules=["q_proj"])
        for untie in (True, False):
            recipe = lk.Recipe(str(base), [lk.Term(str(adapter), "1x3")], untie=untie)
            expected = ("untie changes nothing: the base keeps its head apart already",)
            assert lk.plan(recipe).notes == (expected if untie and noted_of else ())


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_vocabulary_that_shrinks_is_noted(architecture, tmp_path):
    with quiet():
        base = make_architecture(tmp_path / "base", architecture)
        adapter = train(tmp_path / "lora", base, resize=80, target_modules=["q_proj"])
    plan = lk.plan(base, adapter, "1x3", rest=1.0)
    assert plan.notes == ("the vocabulary shrinks from 96 to 80 tokens, as the adapter has it",)
    assert plan.vocabulary_size == 80


def test_what_counts_where_nothing_is_said():
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(Plan.write).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert given == {
        "device": "auto", "link": False, "overwrite": False, "hashes": True, "reuse": None,
        "progress": True,
    }  # fmt: skip
