import re
import shutil
from dataclasses import replace

import pytest
import yaml

from labkit.exporting.checking import Checked, CheckedText
from labkit.exporting.export_card import export_card
from labkit.exporting.export_receipt import Export
from labkit.exporting.formats import FORMATS
from labkit.exporting.job import Job
from labkit.models.checkpoint import Checkpoint
from labkit.probing.intervals import Estimate

FORMAT = FORMATS["gguf-q4_k_m"]


@pytest.fixture
def job(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "my-merge")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n")
    (folder / "recipe.yaml").write_text("labkit: 0\n")
    return Job(Checkpoint(folder), "my-merge", tmp_path, tmp_path, tmp_path)


@pytest.fixture
def export(tmp_path):
    def one(value, by):
        return Estimate(value, value - by, value + by)

    text = CheckedText(
        "prose", "0" * 64, 12, 1100, one(0.05, 0.01), one(0.86, 0.02), one(3.5, 0.1),
        one(3.4, 0.1), one(0.1, 0.05),
    )  # fmt: skip
    return Export(
        folder=tmp_path / "my-merge-GGUF",
        format="gguf-q4_k_m",
        merged="my-merge",
        files={"my-merge-Q4_K_M.gguf": 105_000_000},
        sha256={"my-merge-Q4_K_M.gguf": "f" * 64},
        beside=(),
        runs="my-merge-Q4_K_M.gguf",
        usage="llama-cli -m my-merge-Q4_K_M.gguf -cnv",
        calibration="words",
        calibration_sha256="c" * 64,
        calibrated=4096,
        checked=Checked((text,), 41, 48, True, False, "float32", {"llama.cpp": "b1"}),
        tools={"auto-round": "0.16.1"},
        peak_memory=10**9,
        processor_seconds=10.0,
        seconds=20.0,
        created="2026-01-01T00:00:00Z",
        notes=("tensors: 1 of F32",),
    )


def head(card):
    return yaml.safe_load(card.split("---")[1])


def test_the_head_is_that_of_a_quantised_model(job, export):
    card = export_card(FORMAT, job, export)
    assert head(card) == {
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["quantized", "gguf", "llama.cpp", "gradient-merge", "labkit"],
        "language": ["en"],
        "license": "mit",
    }
    assert "# base_model: fill in where my-merge is on the hub" in card


def test_a_merge_of_the_hub_is_named_and_linked(job, export, monkeypatch):
    located = replace(job.model._located, repository="owner/my-merge", name="owner/my-merge")
    monkeypatch.setattr(job.model, "_located", located)
    card = export_card(FORMAT, job, export)
    assert head(card)["base_model"] == ["owner/my-merge"]
    assert head(card)["base_model_relation"] == "quantized"
    assert "[owner/my-merge](https://huggingface.co/owner/my-merge) as gguf-q4\\_k\\_m" in card
    assert "fill in where" not in card


def test_files_have_sizes_and_sums(job, export):
    row = f"| my-merge-Q4\\_K\\_M.gguf | 0.105 GB | `{'f' * 64}` |"
    assert row in export_card(FORMAT, job, export)


def test_what_was_measured_has_intervals(job, export):
    card = export_card(FORMAT, job, export)
    assert (
        "| prose | 1100 | 0.0500 (0.0400 to 0.0600) | 86.0% (84.0% to 88.0%) | 3.500 | "
        "0.1000 (0.0500 to 0.1500) |"
    ) in card
    assert (
        "Of 48 tokens that the merged model writes, always the most probable one, 41 would have "
        "been the same. Texts are cut into the same tokens. The chat template is NOT the merged "
        "model's."
    ) in card
    assert "Run by llama.cpp b1, and compared with the merged model in float32" in card


def test_calibration_usage_and_tools_stand_there(job, export):
    card = export_card(FORMAT, job, export)
    assert f"Calibrated on 4096 tokens of words (SHA-256 `{'c' * 64}`)" in card
    assert "```bash\nllama-cli -m my-merge-Q4_K_M.gguf -cnv\n```" in card
    assert re.search(r"Made with labkit [\d.]+, by auto-round 0.16.1\.", card)
    assert "- tensors: 1 of F32" in card


def test_where_the_merge_is_described(job, export):
    own = "The merged model's own card says what it was merged of"
    with_recipe = export_card(FORMAT, job, replace(export, beside=("recipe.yaml",)))
    assert "labkit merge --recipe recipe.yaml --out merged" in with_recipe
    assert own not in with_recipe
    assert own in export_card(FORMAT, job, export)
    (job.model.folder / "recipe.yaml").unlink()
    assert own not in export_card(FORMAT, job, export)


def test_without_calibration_and_check_the_card_says_nothing_of_them(job, export):
    card = export_card(FORMAT, job, replace(export, calibration="", checked=None))
    assert "Calibrat" not in card
    assert "Nothing: nobody ran it yet." in card


def test_a_job_to_be_carried_out_elsewhere_says_that_it_is_no_model(job, export):
    card = export_card(FORMATS["exl3"], job, replace(export, tools={}, checked=None))
    assert (
        "NOT a model yet: what makes exl3 (4 bits a weight for ExLlamaV3 and TabbyAPI) of" in card
    )
    assert "To be calibrated on 4096 tokens of words" in card
    assert "Prepared with labkit" in card
    assert "Made with" not in card
    assert "Nothing: nobody ran it yet." in card
