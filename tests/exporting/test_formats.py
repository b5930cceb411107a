import pytest

from labkit.errors import LabkitError
from labkit.exporting.formats import FORMATS, format_of


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
