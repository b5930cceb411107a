from labkit.exporting.formats import FORMATS
from tests.cli.test_app import error_of, labkit


def test_help_says_what_is_needed():
    said = " ".join(labkit("export", "--help").stdout.split())
    for words in ("merged", "--format", "--calibration FILE|NAME", "--no-check", "--overwrite"):
        assert words in said
    assert all(name in said for name in FORMATS)
    assert "Example: labkit export merged --format gguf-q4_k_m --out quantised" in said


def test_errors_are_one_line(tiny_base, tmp_path):
    out = ("--out", tmp_path / "out")
    assert error_of("export", tiny_base, "--format", "q9", *out).startswith(
        "labkit: error: the format 'q9' is unknown; known are gguf-bf16, "
    )
    assert error_of("export", tiny_base, "--format", "bf16", "--calibration", "kjv", *out) == (
        "labkit: error: gguf-bf16 is not calibrated; leave --calibration out"
    )
    assert error_of("export", tiny_base, "--format", "bf16", "--base", tiny_base, *out) == (
        "labkit: error: --base is that of a LoRA, and a model is exported; leave it out"
    )


def test_options_reach_the_export(monkeypatch, tmp_path, capsys):
    """Without the tools: what the command asks for."""
    from labkit.cli.exporting import export
    from labkit.exporting import exports

    asked = {}
    monkeypatch.setattr(
        exports, "export", lambda *given, **options: asked.update(given=given, **options) or "done"
    )
    (tmp_path / "t.txt").write_text("a passage")
    export(
        "merged", tmp_path / "out", "q8_0", calibration="none", texts=[tmp_path / "t.txt"],
        no_check=True, overwrite=True,
    )  # fmt: skip
    assert capsys.readouterr().out == "done\n"
    assert asked["given"] == ("merged", tmp_path / "out", "q8_0")
    assert [len(one) for one in asked["texts"]] == [1]
    assert asked["check"] is False
    assert asked["overwrite"] is True
    assert asked["calibration"] == "none"
    assert asked["base"] is None
    export("merged", tmp_path / "out", "q8_0", quiet=True)
    assert capsys.readouterr().out == ""
    assert (asked["check"], asked["progress"], asked["texts"]) == (True, False, None)
