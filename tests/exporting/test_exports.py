"""An export as a whole: with tools that are plain Python, so that each step can be seen."""

import hashlib
import json
import os
import shutil
import signal
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import labkit as lk
from labkit.errors import LabkitError
from labkit.exporting import exports, formats
from labkit.merging.planning import Plan
from labkit.probing.texts import Texts
from tests.tiny import load_file_of

TEXTS = Texts("mine", ["some words to read here", "and other words, too", "a third one"])


@pytest.fixture
def model(loud_base, tmp_path):
    return shutil.copytree(loud_base, tmp_path / "merged")


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_export_is_files_card_and_receipt_and_leaves_the_model_as_it_was(
    model, tmp_path, plain_format
):
    before = hashes(model)
    made = lk.export(model, tmp_path / "out", "plain", texts=TEXTS, progress=False)
    assert left_in(tmp_path / "out") == ["LICENSE", "README.md", "merged.copy", "receipt.json"]
    assert hashes(model) == before
    assert made.sha256 == {"merged.copy": hashes(tmp_path / "out")["merged.copy"]}
    assert made.nbytes == (tmp_path / "out" / "merged.copy").stat().st_size
    said = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert said["format"] == "plain"
    assert said["files_written"] == made.sha256
    assert said["checked"]["texts"][0]["name"] == "mine"
    assert left_in(tmp_path) == ["merged", "out"]


def test_the_receipt_shows_itself_in_lines(model, tmp_path, plain_format):
    shown = str(lk.export(model, tmp_path / "out", "plain", texts=TEXTS, progress=False))
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert lines["format"] == "plain of merged, 0.00 GB"
    assert lines["checked"].startswith("mine: KL 0.0000 (")
    assert lines["greedy"] == "48 of 48 tokens of the merge's own text"
    assert lines["run"] == "run merged.copy"


def test_of_one_document_there_is_no_interval(model, tmp_path, plain_format):
    one = Texts("one", ["some words to read here"])
    made = lk.export(model, tmp_path / "out", "plain", texts=one, progress=False)
    assert "checked  one: KL 0.0000, same token on top at 100.0%" in str(made)
    text = (tmp_path / "out" / "receipt.json").read_text()
    assert "NaN" not in text
    kl = json.loads(text)["checked"]["texts"][0]["kl"]
    assert (kl["low"], kl["high"]) == (None, None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| one | 22 | 0.0000 | 100.0% |" in card


def test_an_export_that_is_not_checked_says_so(model, tmp_path, plain_format):
    made = lk.export(model, tmp_path / "out", "plain", check=False, progress=False)
    assert made.checked is None
    assert made.notes == ("not checked, as was asked for",)
    assert "Nothing: nobody ran it yet." in (tmp_path / "out" / "README.md").read_text()


def test_a_format_without_a_runtime_here_is_not_checked(model, tmp_path, plain_format, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, answer=None))
    made = lk.export(model, tmp_path / "out", "plain", progress=False)
    assert made.notes == ("not checked: what runs this format is not here",)


def test_a_merge_that_does_not_fit_in_memory_is_exported_and_not_checked(
    model, tmp_path, plain_format, monkeypatch
):
    monkeypatch.setattr(exports, "free_memory", lambda: 200_000_000)
    monkeypatch.setattr(exports, "choose_device", lambda _: "cpu")
    made = lk.export(model, tmp_path / "out", "plain", progress=False)
    assert made.notes == (
        "not checked: to read the merge takes 0.5 GB of memory, and 0.2 GB are free",
    )


def test_a_merge_that_does_not_fit_on_the_gpu_is_read_on_the_cpu(model, plain_format, monkeypatch):
    monkeypatch.setattr(exports, "choose_device", lambda _: "cuda")
    for free, device in ((10**12, "cuda"), (10**6, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 10**12))
        reader = exports._reader(plain_format, lk.Checkpoint(model), check=True)
        assert (reader.device, reader.dtype) == (device, "float32")


def test_weights_under_a_name_that_transformers_does_not_look_for(model, tmp_path, plain_format):
    tensors = load_file_of(model)
    for path in [*model.glob("*.safetensors"), *model.glob("*.index.json")]:
        path.unlink()
    save_file(tensors, model / "consolidated.safetensors", metadata={"format": "pt"})
    made = lk.export(model, tmp_path / "out", "plain", progress=False)
    assert made.notes == (
        "not checked: transformers looks for model.safetensors, and the weights are in "
        "consolidated.safetensors",
    )


def test_what_cannot_be_compared_is_said_before_it_is_converted(
    model, tmp_path, plain_format, monkeypatch
):
    converted = []
    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, convert=converted.append))
    with pytest.raises(LabkitError, match="is calibrated on all passages of 'mine'"):
        lk.export(model, tmp_path / "out", "plain", calibration=TEXTS, texts=TEXTS, progress=False)
    assert converted == []
    assert left_in(tmp_path) == ["merged"]


def test_a_plan_is_not_carried_out_for_an_export_that_is_refused(
    loud_base, loud_adapter, tmp_path, plain_format, monkeypatch
):
    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, calibration="must"))
    monkeypatch.setattr(Plan, "write", lambda *_, **__: pytest.fail("it was written"))
    with pytest.raises(LabkitError, match="must be calibrated, and what the merge is for is not"):
        lk.plan(loud_base, loud_adapter, "1x4").export(tmp_path / "out", "plain", progress=False)


def test_texts_without_a_check_are_refused(model, loud_base, loud_adapter, tmp_path, plain_format):
    said = "the check measures on texts, and check=False leaves it out; leave out one of the two"
    for start in (
        lambda **given: lk.export(model, **given),
        lk.plan(loud_base, loud_adapter, "1x4").export,
    ):
        with pytest.raises(LabkitError) as caught:
            start(out=tmp_path / "out", format="plain", texts=TEXTS, check=False)
        assert str(caught.value) == said


def test_what_is_done_is_said_on_standard_error(model, tmp_path, plain_format, capsys):
    lk.export(model, tmp_path / "out", "plain", texts=TEXTS)
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("labkit: ")]
    assert lines == [
        "labkit: exports merged to plain: about 0.00 GB",
        "labkit: reads the texts with the merge",
        "labkit: converts it",
        "labkit: runs it, and compares it with the merge",
    ]


def test_a_receipt_of_a_merge_names_its_folder(loud_base, loud_adapter, tmp_path, plain_format):
    receipt = lk.plan(loud_base, loud_adapter, lk.Gradient.constant(4, 0.5)).write(
        tmp_path / "merged", progress=False
    )
    made = lk.export(receipt, tmp_path / "out", "plain", check=False, progress=False)
    assert made.merged == "merged"
    assert "recipe.yaml" not in plain_format.seen["staged"]


def test_an_export_of_a_folder_tells_the_merges_recipe_as_that_of_a_plan_does(
    loud_base, loud_adapter, tmp_path, plain_format
):
    (tmp_path / "merges").mkdir()
    plan = lk.plan(loud_base, loud_adapter, lk.Gradient.parse("0,0.5,1,1"))
    plan.write(tmp_path / "merges" / "out", progress=False)
    of_folder, of_plan = tmp_path / "by-folder", tmp_path / "by-plan"
    lk.export(tmp_path / "merges" / "out", of_folder, "plain", check=False, progress=False)
    plan.export(of_plan, "plain", check=False, progress=False)
    recipes = [lk.Recipe.load(folder / "recipe.yaml") for folder in (of_folder, of_plan)]
    assert recipes[0].to_yaml() == recipes[1].to_yaml()
    again = lk.plan(recipes[0]).write(tmp_path / "again", progress=False)
    assert hashes(of_folder)["out.copy"] in hashes(again.folder).values()
    said = json.loads((of_folder / "receipt.json").read_text())
    assert said["files"] == left_in(of_folder)
    assert "labkit merge --recipe recipe.yaml" in (of_folder / "README.md").read_text()


def test_a_plan_is_exported_and_its_merge_is_not_kept(
    loud_base, loud_adapter, tmp_path, plain_format
):
    """The exported bytes are those of the merge, and the recipe makes it again."""
    plan = lk.plan(loud_base, loud_adapter, lk.Gradient.parse("0,0.5,1,1"))
    # What the name says of the format is not said twice in the names of the files.
    made = plan.export(tmp_path / "out-plain", "plain", texts=TEXTS, progress=False)
    assert left_in(tmp_path) == ["out-plain"]
    (tmp_path / "out-plain").rename(tmp_path / "out")
    assert left_in(tmp_path / "out") == [
        "LICENSE",
        "README.md",
        "out.copy",
        "receipt.json",
        "recipe.yaml",
    ]
    assert made.checked.texts[0].kl.value == pytest.approx(0, abs=1e-6)
    again = lk.plan(lk.Recipe.load(tmp_path / "out" / "recipe.yaml"))
    again.write(tmp_path / "again", progress=False)
    assert made.sha256["out.copy"] in hashes(tmp_path / "again").values()
    said = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert said["files"] == left_in(tmp_path / "out")
    assert "labkit merge --recipe recipe.yaml" in (tmp_path / "out" / "README.md").read_text()


def test_a_plan_that_cannot_be_exported_leaves_nothing(
    loud_base, loud_adapter, tmp_path, plain_format, monkeypatch
):
    def convert(job):
        raise LabkitError("the tool failed: no such layer")

    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, convert=convert))
    plan = lk.plan(loud_base, loud_adapter, lk.Gradient.constant(4))
    with pytest.raises(LabkitError, match="the tool failed"):
        plan.export(tmp_path / "out", "plain", progress=False)
    assert left_in(tmp_path) == []
    monkeypatch.setattr(exports, "_make", lambda *_: pytest.fail("the merge began"))
    with pytest.raises(LabkitError, match="gguf-bf16 is not calibrated; leave calibration out"):
        plan.export(tmp_path / "out", "bf16", calibration="kjv", progress=False)
    with pytest.raises(LabkitError, match="lie in each other"):
        plan.export(loud_adapter / "out", "plain", progress=False)


def test_an_existing_folder_is_refused_and_an_export_is_replaced(model, tmp_path, plain_format):
    out = tmp_path / "out"
    lk.export(model, out, "plain", check=False, progress=False)
    with pytest.raises(LabkitError, match="out exists already; choose another name, or replace it"):
        lk.export(model, out, "plain", check=False, progress=False)
    (out / "merged.copy").write_text("")
    made = lk.export(model, out, "plain", check=False, overwrite=True, progress=False)
    assert (out / "merged.copy").stat().st_size == made.nbytes > 0


def test_a_merge_is_no_export_and_is_not_replaced(
    loud_base, loud_adapter, model, tmp_path, plain_format
):
    lk.plan(loud_base, loud_adapter, lk.Gradient.constant(4)).write(
        tmp_path / "out", progress=False
    )
    with pytest.raises(LabkitError, match="holds something else that labkit made"):
        lk.export(model, tmp_path / "out", "plain", check=False, overwrite=True, progress=False)


def test_neither_lies_in_the_other(model, tmp_path, plain_format):
    for out in (model, model / "out"):
        with pytest.raises(LabkitError) as caught:
            lk.export(model, out, "plain", overwrite=True, progress=False)
        assert str(caught.value) == (
            f"the output {out} and the model {model} lie in each other; the model is never written "
            "to: choose another folder"
        )


def test_a_full_disk_is_seen_before_anything_starts(model, tmp_path, plain_format, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(exports.shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
    with pytest.raises(LabkitError) as caught:
        lk.export(model, tmp_path / "out", "plain", check=False, progress=False)
    assert str(caught.value) == (
        f"the export needs 0.07 GB, and {tmp_path} has 0.05 GB free; make room, or choose a folder "
        "on another disk"
    )


def test_tools_that_are_not_installed_are_named(model, tmp_path, monkeypatch):
    from labkit.exporting import environments

    found = environments.find_spec
    monkeypatch.setattr(
        environments, "find_spec", lambda name: None if name == "xllamacpp" else found(name)
    )
    with pytest.raises(LabkitError) as caught:
        lk.export(model, tmp_path / "out", "Q8_0", progress=False)
    assert str(caught.value) == (
        "gguf-q8_0 needs labkit[gguf]: xllamacpp not installed; install it with "
        "pip install 'labkit[gguf]'"
    )


def test_a_tool_that_fails_leaves_nothing(model, tmp_path, plain_format, monkeypatch):
    def convert(job):
        (job.out / "half").write_text("half of it")
        raise LabkitError("the tool failed: no such layer")

    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, convert=convert))
    with pytest.raises(LabkitError, match="the tool failed: no such layer"):
        lk.export(model, tmp_path / "out", "plain", progress=False)
    assert left_in(tmp_path) == ["merged"]


def test_an_export_that_cannot_be_run_leaves_nothing(model, tmp_path, plain_format, monkeypatch):
    def answer(job, converted, questions):
        raise LabkitError("the runtime failed: no such file type")

    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, answer=answer))
    with pytest.raises(LabkitError, match="the runtime failed: no such file type"):
        lk.export(model, tmp_path / "out", "plain", texts=TEXTS, progress=False)
    assert left_in(tmp_path) == ["merged"]


def test_an_interruption_leaves_nothing(model, tmp_path, plain_format, monkeypatch):
    started = threading.Event()

    def convert(job):
        (job.out / "half").write_text("half of it")
        started.set()
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)

    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, convert=convert))
    with pytest.raises(KeyboardInterrupt):
        lk.export(model, tmp_path / "out", "plain", progress=False)
    assert started.is_set()
    assert left_in(tmp_path) == ["merged"]


class CancelledError(Exception):
    """What a function that is told of the steps raises to end an export."""


@pytest.mark.parametrize("step", ["exports out", "reads the texts", "converts it", "runs it"])
def test_a_function_that_is_told_the_steps_can_end_the_export_at_each(
    model, tmp_path, plain_format, step
):
    def tell(text):
        said.append(text)
        if text.startswith(step):
            raise CancelledError

    said = []
    model = model.rename(tmp_path / "out")
    with pytest.raises(CancelledError):
        lk.export(model, tmp_path / "made", "plain", texts=TEXTS, progress=tell)
    assert said[0] == "exports out to plain: about 0.00 GB"
    assert said[-1].startswith(step)
    assert left_in(tmp_path) == ["out"]


def test_a_function_is_told_again_and_again_and_standard_error_is_not(
    model, tmp_path, plain_format, monkeypatch, capsys
):
    """While the merge reads (3 passages, its own text) and while others convert."""
    convert = plain_format.convert

    def slow(job):
        for _ in range(5):
            job.go_on()
        return convert(job)

    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, convert=slow))
    said = []
    lk.export(model, tmp_path / "out", "plain", texts=TEXTS, progress=said.append)
    assert {text: said.count(text) for text in said} == {
        "exports merged to plain: about 0.00 GB": 1,
        "reads the texts with the merge": 1 + 48 + 4,
        "converts it": 1 + 5,
        "runs it, and compares it with the merge": 1,
    }
    assert "labkit: " not in capsys.readouterr().err


def test_the_merge_of_a_plan_can_be_ended_too(loud_base, loud_adapter, tmp_path, plain_format):
    def tell(text):
        said.append(text)
        if len(said) == 3:
            raise CancelledError

    said = []
    with pytest.raises(CancelledError):
        lk.plan(loud_base, loud_adapter, "1x4").export(tmp_path / "out", "plain", progress=tell)
    assert said == ["merges"] * 3
    assert left_in(tmp_path) == []


def test_calibration_stands_in_receipt_and_card(model, tmp_path, plain_format, monkeypatch):
    convert = plain_format.convert
    monkeypatch.setitem(
        formats.FORMATS,
        "plain",
        replace(plain_format, convert=lambda job: replace(convert(job), calibrated=77)),
    )
    texts = Texts("for it", ["to calibrate on"])
    made = lk.export(
        model, tmp_path / "out", "plain", calibration=texts, texts=TEXTS, progress=False
    )
    assert plain_format.seen["calibration"] is texts
    assert (made.calibration, made.calibrated) == ("for it", 77)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Calibrated on 77 tokens of for it (SHA-256 `{texts.sha256}`)" in card


def test_a_model_that_changes_meanwhile_is_not_exported(model, tmp_path, plain_format, monkeypatch):
    convert = plain_format.convert

    def changing(job):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"rope_theta": 5}))
        return convert(job)

    monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, convert=changing))
    with pytest.raises(LabkitError, match="config.json"):
        lk.export(model, tmp_path / "out", "plain", check=False, progress=False)
    assert left_in(tmp_path) == ["merged"]


def test_an_export_can_be_uploaded(model, tmp_path, plain_format):
    from labkit.publishing.hub import select_files

    lk.export(model, tmp_path / "out", "plain", check=False, progress=False)
    (tmp_path / "out" / "merged.copy").rename(tmp_path / "out" / "merged.gguf")
    receipt = tmp_path / "out" / "receipt.json"
    receipt.write_text(receipt.read_text().replace("merged.copy", "merged.gguf"))
    found = select_files(tmp_path / "out")
    assert sorted(found.paths) == ["LICENSE", "README.md", "merged.gguf", "receipt.json"]
    assert found.left == ()


def test_what_is_forecast_counts_rows_that_take_more_bits(model, tiny_base, plain_format):
    """The tiny models' rows are 32 and 80 wide."""
    from labkit.exporting.exports import forecast_bytes
    from labkit.models.checkpoint import Checkpoint

    opened = Checkpoint(tiny_base)
    weights = sum(tensor.elements for tensor in opened.tensors.values())
    assert forecast_bytes(replace(plain_format, bits=4.0), opened) == weights // 2
    assert forecast_bytes(replace(plain_format, bits=4.0, narrow_bits=8.0), opened) == weights


def test_time_is_forecast_where_it_was_measured(model, tmp_path, plain_format, monkeypatch, capsys):
    from labkit.models.checkpoint import Checkpoint

    weights = sum(tensor.elements for tensor in Checkpoint(model).tensors.values())
    for seconds in (10, 1000):
        said = {10: "17 s", 1000: "17 min"}[seconds]
        seconds *= 1e9 / weights
        monkeypatch.setitem(formats.FORMATS, "plain", replace(plain_format, seconds=seconds))
        lk.export(model, tmp_path / "out", "plain", check=False, overwrite=True)
        assert f", {said} of processor time\n" in capsys.readouterr().err
