"""What becomes of the files that a tool wrote, and the size of groups."""

import json
import shutil
import stat

import pytest

from labkit.errors import LabkitError
from labkit.exporting.job import Job
from labkit.exporting.quantised_folders import group_size, tidy, without_origins, without_paths
from labkit.exporting.staging import stage
from labkit.models.checkpoint import Checkpoint
from tests.tiny import make_base


@pytest.fixture
def job(tmp_path, small_model):
    return job_of(tmp_path, small_model)


def job_of(tmp_path, folder):
    out = tmp_path / "out"
    (out / ".work").mkdir(parents=True)
    model = Checkpoint(folder)
    job = Job(model, "made", out / ".work" / "staged", out, out / ".work")
    stage(model, job.staged)
    return job


def made_by_a_tool(job, weights=("model.safetensors",), **config):
    made = job.work / "made"
    made.mkdir()
    for name in weights:
        (made / name).write_bytes(b"weights")
        (made / name).chmod(0o600)
    (made / "config.json").write_text(json.dumps({"hidden_size": 1, **config}))
    for name in ("README.md", "recipe.yaml", "quant_log.csv"):
        (made / name).write_text("the tool's")
    (made / "tokenizer_config.json").write_text('{"rewritten": true}')
    (made / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    return made


def test_the_export_has_the_merges_own_files_and_of_the_tool_the_weights(job, small_model):
    made = made_by_a_tool(job, dtype="float16", quantization_config={"bits": 4})
    names = tidy(job, made)
    assert names == (
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    )
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        assert (job.out / name).read_bytes() == (small_model / name).read_bytes()
    config = json.loads((job.out / "config.json").read_text())
    own = json.loads((small_model / "config.json").read_text())
    assert config == {**own, "dtype": "float16", "quantization_config": {"bits": 4}}
    assert stat.S_IMODE((job.out / "model.safetensors").stat().st_mode) == 0o644


def test_weights_in_several_files_keep_their_index(job):
    parts = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    names = tidy(job, made_by_a_tool(job, parts, quantization={"bits": 4}))
    assert {*parts, "model.safetensors.index.json"} <= set(names)
    assert json.loads((job.out / "config.json").read_text())["quantization"] == {"bits": 4}


def test_paths_of_this_machine_are_left_out_of_what_a_tool_says(job):
    said = {"bits": 4, "meta": {"offload_to_disk_path": "/tmp/gptqmodel_x", "uri": "https://a"}}
    made = made_by_a_tool(job, quantization_config=said)
    (made / "quantize_config.json").write_text(json.dumps(said))
    assert "quantize_config.json" in tidy(job, made)
    left = {"bits": 4, "meta": {"uri": "https://a"}}
    assert json.loads((job.out / "config.json").read_text())["quantization_config"] == left
    assert json.loads((job.out / "quantize_config.json").read_text()) == left
    assert without_paths({"a": ["/x", {"b": "/y", "c": "y"}]}) == {"a": [{"c": "y"}]}


def test_folders_that_transformers_noted_are_left_out_of_the_merges_own_configs(
    tmp_path, small_model
):
    folder = shutil.copytree(small_model, tmp_path / "merge")
    for name, key in (("config", "_name_or_path"), ("tokenizer_config", "name_or_path")):
        path = folder / f"{name}.json"
        said = {**json.loads(path.read_text()), key: "/home/me/merge", "pad_token": "/"}
        path.write_text(json.dumps({**said, "text_config": {key: "/home/me", "is": "ü"}}))
    job = job_of(tmp_path, folder)
    tidy(job, made_by_a_tool(job, quantization_config={}))
    for name in ("config.json", "tokenizer_config.json"):
        text = (job.out / name).read_text()
        assert "/home" not in text
        assert json.loads(text)["pad_token"] == "/"
        assert json.loads(text)["text_config"] == {"is": "ü"}


def test_the_hubs_name_of_a_model_stays():
    said = {"name_or_path": "owner/model", "list": [{"_name_or_path": "/x"}]}
    assert without_origins(said) == {"name_or_path": "owner/model", "list": [{}]}


@pytest.mark.parametrize(
    ("weights", "config", "lacks"),
    [
        ((), {"quantization_config": {}}, "weights"),
        (("model.safetensors",), {}, "quantization_config in config.json"),
    ],
)
def test_a_tool_that_wrote_no_export_is_an_error(job, weights, config, lacks):
    with pytest.raises(LabkitError) as caught:
        tidy(job, made_by_a_tool(job, weights, **config))
    assert str(caught.value) == f"the tool of this format wrote no {lacks}, and gave no reason"


@pytest.mark.parametrize(("width", "size"), [(256, 128), (192, 64), (96, 32)])
def test_the_largest_group_that_divides_every_width_is_taken(tmp_path, width, size):
    base = Checkpoint(make_base(tmp_path / "b", layers=1, hidden_size=width, intermediate_size=384))
    assert group_size(base, (128, 64, 32)) == size
    assert group_size(base, (64, 32)) == min(size, 64)


def test_a_model_that_no_group_fits_is_refused(tmp_path):
    base = Checkpoint(make_base(tmp_path / "b", layers=1, hidden_size=48, intermediate_size=100))
    with pytest.raises(LabkitError) as caught:
        group_size(base, (128, 64, 32))
    assert str(caught.value) == (
        "b has matrices that are 48, 100 columns wide, and this format needs a multiple of 32; "
        "take fp8 or a GGUF format"
    )
