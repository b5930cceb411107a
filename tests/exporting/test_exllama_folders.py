"""EXL3 and EXL2: the job for a machine with a GPU, and the conversion where one is."""

import importlib.util
import json
import shlex
import shutil
import subprocess

import pandas as pd
import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

import labkit as lk
from labkit.errors import LabkitError
from labkit.exporting import exllama_folders
from labkit.probing.texts import Texts

PROSE = lk.demo_texts()["modern prose"]
LONG = Texts("long", [one.text for one in PROSE.passages] * 2)


def export(model, out, name, **options):
    return lk.export(model, out, name, progress=False, **options)


def last_line(folder):
    return (folder / "convert.sh").read_text().splitlines()[-1].strip()


def test_without_a_gpu_the_job_is_written(small_model, tmp_path):
    made = export(small_model, tmp_path / "out", "exl3", calibration=LONG)
    assert set(made.files) == {"calibration.safetensors", "convert.sh"}
    tensors = load_file(made.folder / "calibration.safetensors")
    rows, lengths = tensors["input_ids"], tensors["lengths"]
    assert rows.shape == (len(lengths), 2048)
    assert made.calibrated == lengths.sum() > 4096
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    assert tokenizer.decode(rows[0, : lengths[0]]).startswith(LONG.take(1).passages[0].text)
    assert (rows[-1, lengths[-1] :] == 0).all()
    assert last_line(made.folder) == (
        'python -m exllamav3.conversion.convert_model -i "$1" -b 4.0 -w "$out-work" -o "$out" '
        f'-cd "$here/calibration.safetensors" -cr {len(lengths)}'
    )
    assert "--with exllamav3==1.6.5" in (made.folder / "convert.sh").read_text()
    assert made.usage == "sh convert.sh path/to/small-llama small-llama-exl3"
    assert made.notes == (
        "not converted: exllamav3 needs a GPU of Nvidia's, and one is not here; convert.sh makes "
        "the export where both are",
        "not checked: what runs this format is not here",
    )
    assert "not converted" in (made.folder / "README.md").read_text()


def test_the_script_runs_from_any_folder(small_model, tmp_path):
    """With a uv that says what it was told, and a slash after the new folder's name."""
    made = export(small_model, tmp_path / "the export", "exl3", calibration=LONG)
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin" / "uv"
    uv.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    uv.chmod(0o755)
    done = subprocess.run(
        ["sh", "the export/convert.sh", "a merge", "new one/"],
        cwd=tmp_path,
        env={"PATH": f"{uv.parent}:/usr/bin:/bin", "CDPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = done.stdout.splitlines()
    told = dict(zip(told[told.index("-i") :: 2], told[told.index("-i") + 1 :: 2], strict=True))
    assert told["-i"] == "a merge"
    assert (told["-w"], told["-o"]) == ("new one-work", "new one")
    assert told["-cd"] == str(made.folder / "calibration.safetensors")
    assert (tmp_path / "new one").is_dir()
    assert (tmp_path / "new one-work").is_dir()


def test_names_of_folders_are_quoted_for_the_shell(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "it's $mine")
    made = export(model, tmp_path / "out", "exl3")
    assert shlex.split(made.usage) == [
        "sh",
        "convert.sh",
        "path/to/it's $mine",
        "it's $mine-exl3",
    ]


def test_exl2_has_texts_that_it_cuts_itself(small_model, tmp_path):
    made = export(small_model, tmp_path / "out", "exl2", calibration=LONG)
    assert set(pd.read_parquet(made.folder / "calibration.parquet")["text"]) == {
        one.text for one in LONG
    }
    rows = made.calibrated // 512
    assert last_line(made.folder) == (
        'python -m exllamav2.conversion.convert_exl2 -i "$1" -b 4.0 -o "$out-work" -cf "$out" '
        f'-c "$here/calibration.parquet" -r {rows} -mr {min(rows, 16)} -l 512 -ml 512'
    )


def test_exl2_counts_the_whole_of_a_long_passage(small_model, tmp_path):
    one = Texts("one passage", [" ".join(passage.text for passage in LONG)])
    counts = [
        export(small_model, tmp_path / texts.name, "exl2", calibration=texts).calibrated
        for texts in (LONG, one)
    ]
    assert counts[0] == counts[1] > 4 * 512


def test_exl2_needs_texts_of_some_length(small_model, tmp_path):
    with pytest.raises(LabkitError) as caught:
        export(small_model, tmp_path / "out", "exl2", calibration=Texts("short", ["a b c"]))
    assert str(caught.value) == (
        "the texts 'short' have 3 tokens, and EXL2 is calibrated on 1024 or more; give longer texts"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["exl3", "exl2"])
def test_without_texts_exllama_has_its_own(small_model, tmp_path, name):
    made = export(small_model, tmp_path / "out", name)
    assert set(made.files) == {"convert.sh"}
    assert "calibration" not in last_line(made.folder)
    assert subprocess.run(["sh", "-n", made.folder / "convert.sh"], check=False).returncode == 0


def test_without_pyarrow_exl2_is_refused(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(exllama_folders, "find_spec", lambda name: None)
    with pytest.raises(LabkitError) as caught:
        export(small_model, tmp_path / "out", "exl2", calibration=LONG)
    assert str(caught.value) == (
        "exl2 needs pyarrow: pyarrow, which writes its calibration, is not installed; "
        "pip install pyarrow"
    )


def test_a_gpu_without_exllama_gets_the_job_too(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(exllama_folders, "choose_device", lambda device: "cuda")
    made = export(small_model, tmp_path / "out", "exl3")
    assert made.notes[0].startswith("not converted: exllamav3 needs a GPU of Nvidia's, and it is")


def test_where_a_gpu_and_exllama_are_it_is_made(small_model, tmp_path, monkeypatch, tools):
    tools("exllamav3")
    real = importlib.util.find_spec
    monkeypatch.setattr(exllama_folders, "choose_device", lambda device: "cuda")
    monkeypatch.setattr(
        exllama_folders, "find_spec", lambda name: name == "exllamav3" or real(name)
    )
    made = export(small_model, tmp_path / "out", "exl3", calibration=LONG)
    told = json.loads((made.folder / "config.json").read_text())["quantization_config"]
    assert told["-b"] == "4.0"
    assert int(told["-cr"]) > 1
    # The folders that it was given are of this machine, and are left out.
    assert set(told) == {"-b", "-cr"}
    assert "model.safetensors" in made.files
    assert made.tools == {"exllamav3": "1.6.5"}
    assert made.notes == ("not checked: what runs this format is not here",)
