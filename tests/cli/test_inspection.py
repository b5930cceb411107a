"""`labkit inspect`: what it prints and writes."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest

import labkit as lk
from labkit.cli.inspection import BLOCKS, WIDTH_WITHOUT_TERMINAL, bar, inspect
from tests.tiny import make_adapter, make_another_model, make_base


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


def test_the_command_prints_table_ledger_and_forecast(tmp_path, tiny_base, tiny_adapter):
    found = subprocess.run(
        [sys.executable, "-m", "labkit", "inspect", tiny_base, tiny_adapter],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
    )
    assert (found.returncode, found.stderr) == (0, "")
    lines = found.stdout.splitlines()
    assert lines[1].split() == [
        "layer", "‖ΔW‖", "‖ΔW‖/‖W‖", "share", "stable", "rank", "eff.", "rank", "changed", "lost"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[3:7]] == ["0", "1", "2", "3"]
    assert "56 adapter tensors matched, 0 skipped, 0 unmatched" in found.stdout
    assert "forecast reads" in found.stdout
    assert "rest" not in found.stdout


def test_a_full_model(tiny_base, tmp_path, capsys):
    inspect(tiny_base, make_another_model(tmp_path / "model", tiny_base), "0,0.5,1,1")
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    first = [line[0] for line in lines if line]
    start = first.index("0")  # the heading takes one line or two, by the width of the terminal
    assert first[start : start + 5] == ["0", "1", "2", "3", "outside"]
    assert "model tensors matched, 0 skipped, 0 unmatched" in printed


def test_weights_and_every_way_to_add_up(tiny_base, tiny_adapter, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    inspect(tiny_base, tiny_adapter, "0,0,0.5,1")
    layers = capsys.readouterr().out.splitlines()
    assert "‖wΔW‖" in layers[1]
    assert "█" not in layers[3]
    assert "█" in layers[6]
    inspect(tiny_base, tiny_adapter, by="module")
    assert "q_proj" in capsys.readouterr().out.splitlines()[3]
    inspect(tiny_base, tiny_adapter, by="tensor")
    assert len(capsys.readouterr().out.splitlines()) > 30


def test_csv_holds_every_digit(tmp_path, tiny_base, tiny_adapter):
    inspect(tiny_base, tiny_adapter, "0,0,1,1", by="tensor", csv=tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv")
    survey = lk.survey(tiny_base, tiny_adapter, "0,0,1,1", progress=False)
    assert list(table["norm"]) == list(survey["norm"])
    assert list(table.columns) == list(survey.columns)


@pytest.mark.parametrize(("by", "weights"), [("layer", None), ("layer", "1x4"), ("module", None)])
def test_figure_is_written(by, weights, tmp_path, tiny_base, tiny_adapter):
    inspect(tiny_base, tiny_adapter, weights, by, figure=tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


def test_much_lost_is_said_with_the_way_out(tmp_path, tiny_base, capsys):
    adapter = make_adapter(tmp_path / "faint", tiny_base, scale=0.002)
    inspect(tiny_base, adapter)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("rounding to bfloat16 loses ")
    assert last.endswith("; dtype float32 keeps it")


def test_bad_input_is_said(tmp_path, tiny_base, tiny_adapter):
    with pytest.raises(lk.LabkitError, match="--by is layer, module or tensor, found 'head'"):
        inspect(tiny_base, tiny_adapter, by="head")
    with pytest.raises(lk.LabkitError, match="3 weights for 4 layers"):
        inspect(tiny_base, tiny_adapter, "0,1,1")
    with pytest.raises(lk.LabkitError, match=r"cannot write the table .*choose a folder that"):
        inspect(tiny_base, tiny_adapter, csv=tmp_path / "none" / "table.csv")
    with pytest.raises(lk.LabkitError, match=r"written as .png or .svg, found 'figure.gif'"):
        inspect(tiny_base, tiny_adapter, figure=tmp_path / "figure.gif")


def test_bars_are_eighths_of_a_cell():
    assert bar(0) == ""
    assert bar(1) == "█" * 12
    assert bar(1.5) == bar(1)
    assert bar(1 / 96) == "▏"
    assert bar(1.6 / 96) == "▎"
    assert bar(1.4 / 96) == "▏"
    assert bar(0.5) == "█" * 6


def printed(base, adapter, capsys, monkeypatch, width, **options):
    """The table's lines as `labkit inspect` prints them at a terminal's width."""
    monkeypatch.setenv("COLUMNS", str(width))
    inspect(base, adapter, **options)
    return capsys.readouterr().out.split("\nbase ")[0].splitlines()


def test_the_numbers_are_those_of_the_survey(tiny_base, tiny_adapter, capsys, monkeypatch):
    lines = printed(tiny_base, tiny_adapter, capsys, monkeypatch, 120, weights="0,-0.5,1,2")
    table = lk.totals(lk.survey(tiny_base, tiny_adapter, "0,-0.5,1,2", progress=False))
    for line, row in zip(lines[3:7], table.to_dict("records"), strict=True):
        rounding = (
            ["–", "–"] if row["weight"] == 0 else [f"{row[n]:.1%}" for n in ("changed", "lost")]
        )
        found = line.split()
        bars = round(min(row["weighted_norm"] / table["norm"].max(), 1) * 96)
        assert [cell for cell in found if "█" not in cell and cell not in BLOCKS] == [
            str(row["layer"]), f"{row['norm']:#.4g}", f"{row['relative_norm']:.2%}",
            f"{row['share']:.1%}", f"{row['stable_rank']:.1f}", f"{row['effective_rank']:.1f}",
            f"{row['weight']:.2f}", f"{row['weighted_norm']:#.4g}", *rounding,
        ]  # fmt: skip
        assert (
            sum(8 if cell == "█" else BLOCKS.index(cell) for cell in line if cell in "█▏▎▍▌▋▊▉")
            == bars
        )


@pytest.mark.parametrize("width", ["", "x", "-5", "9" * 20])
def test_a_width_that_is_none_is_passed_over(tiny_base, tiny_adapter, capsys, monkeypatch, width):
    usual = printed(tiny_base, tiny_adapter, capsys, monkeypatch, WIDTH_WITHOUT_TERMINAL)
    assert printed(tiny_base, tiny_adapter, capsys, monkeypatch, width) == usual


@pytest.mark.parametrize("weights", [None, "0,-0.5,1,2"])
@pytest.mark.parametrize("by", ["layer", "module", "tensor"])
@pytest.mark.parametrize("width", [160, 100, 80])
def test_every_number_fits_into_80_columns(
    width, by, weights, tiny_base, tiny_adapter, capsys, monkeypatch
):
    wide = printed(tiny_base, tiny_adapter, capsys, monkeypatch, 200, by=by, weights=weights)
    lines = printed(tiny_base, tiny_adapter, capsys, monkeypatch, width, by=by, weights=weights)
    assert max(map(len, lines)) <= width

    def numbers(lines):
        rows = [line.split() for line in lines if any(character.isdigit() for character in line)]
        return [[cell for cell in row if set(cell).isdisjoint(BLOCKS)] for row in rows]

    assert numbers(lines) == numbers(wide)
    assert "…" not in "".join(lines)


def test_a_narrow_terminal_keeps_what_matters_most(tiny_base, tiny_adapter, capsys, monkeypatch):
    def headings(width):
        lines = printed(
            tiny_base, tiny_adapter, capsys, monkeypatch, width, weights="0,1,1,1", by="tensor"
        )
        assert "…" not in "".join(lines)
        rows = [line for line in lines if line.strip()]
        return next(line.split() for line in rows if "layer" in line), max(map(len, lines))

    full = ["layer", "module", "‖ΔW‖", "‖ΔW‖/‖W‖", "w", "‖wΔW‖", "changed", "lost"]
    assert headings(60) == (full, 60)
    assert headings(59)[0] == [heading for heading in full if heading != "changed"]
    assert headings(40)[0] == ["layer", "module", "‖ΔW‖", "‖wΔW‖", "lost"]
    # A number that does not fit even so is shown all the same.
    found, width = headings(10)
    assert found == ["layer", "module", "‖ΔW‖"]
    assert width > 10


def test_what_lies_outside_the_layers_is_said(tmp_path, capsys, monkeypatch):
    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    adapter = make_adapter(tmp_path / "lora", base, target_modules=["q_proj", "embed_tokens"])
    for by, named in (("layer", "outside"), ("tensor", "outside"), ("module", "embed_tokens")):
        lines = printed(base, adapter, capsys, monkeypatch, 80, by=by, weights="0.5x4")
        row = lines[-2].split()
        assert row[0] == named
        # It is looked at in full: `--rest` says otherwise when it is merged.
        weight, weighted_norm, *_ = row[-4:]
        assert weight == "1.00"
        assert weighted_norm == row[1 if by != "tensor" else 2]  # the norm itself


def test_without_weights_no_column_speaks_of_them(tiny_base, tiny_adapter, tmp_path, capsys):
    inspect(tiny_base, tiny_adapter, csv=tmp_path / "table.csv")
    assert list(pd.read_csv(tmp_path / "table.csv").columns) == [
        "layer", "tensors", "norm", "base_norm", "spectral_norm", "stable_rank", "effective_rank",
        "share", "relative_norm", "changed", "changed_error", "lost", "lost_error",
    ]  # fmt: skip
