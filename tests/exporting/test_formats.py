import pytest

import labkit as lk
from labkit.errors import LabkitError
from labkit.exporting.formats import FORMATS, format_of
from labkit.publishing.hub import select_files

PROSE = lk.demo_texts()["modern prose"]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("gguf-q4_k_m", "gguf-q4_k_m"),
        ("GGUF-Q4_K_M", "gguf-q4_k_m"),
        ("Q4_K_M", "gguf-q4_k_m"),
        (" bf16 ", "gguf-bf16"),
    ],
)
def test_a_format_is_found_by_its_name_in_any_case_and_without_gguf(asked, name):
    assert format_of(asked).name == name


def test_an_unknown_format_lists_all():
    with pytest.raises(LabkitError) as caught:
        format_of("gguf-q9")
    assert str(caught.value) == f"the format 'gguf-q9' is unknown; known are {', '.join(FORMATS)}"
    assert list(FORMATS)[:2] == ["gguf-bf16", "gguf-q8_0"]


def test_every_format_says_what_it_is_and_whether_it_is_calibrated():
    for name, one in FORMATS.items():
        assert one.name == name == name.lower()
        assert one.calibration in ("never", "may", "must")
        assert len(one.what) > 10
        assert one.what[-1] != "."
        assert one.needs


@pytest.mark.parametrize("name", [one for one in FORMATS if not one.startswith("gguf")])
def test_the_whole_of_an_export_goes_to_the_hub(small_model, tmp_path, tools, name):
    tools("gptqmodel", "torch", "llmcompressor", "compressed_tensors", "mlx_lm", "mlx")
    texts = PROSE if FORMATS[name].calibration == "must" or name.startswith("exl") else None
    made = lk.export(
        small_model, tmp_path / "out", name, calibration=texts, check=False, progress=False
    )
    (made.folder / "notes.txt").write_text("of the user's")
    upload = select_files(made.folder)
    assert upload.left == ("notes.txt",)
    assert upload.paths.keys() == {*made.files, *made.beside, "README.md", "receipt.json"}


def test_a_file_of_an_export_that_is_no_longer_the_tools_stays(small_model, tmp_path):
    made = lk.export(small_model, tmp_path / "out", "exl3", progress=False)
    (made.folder / "convert.sh").write_text("a secret")
    assert select_files(made.folder).left == ("convert.sh",)
