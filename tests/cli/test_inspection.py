"""`labkit inspect`: what it prints and writes."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest

import labkit as lk
from labkit.cli.inspection import bar, inspect
from tests.tiny import make_adapter


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


def test_weights_and_every_way_to_add_up(tiny_base, tiny_adapter, capsys):
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
    assert last.endswith("--dtype float32 keeps it")


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
    assert bar(0.5) == "█" * 6
