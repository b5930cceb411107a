"""Figures as files."""

from __future__ import annotations

import matplotlib
import pytest

import labkit as lk
from labkit.figures import gradient_picture, picture_bytes, save_picture


def test_files(tmp_path):
    figure = gradient_picture(lk.Gradient([0, 0.5, 1]))
    png = save_picture(figure, tmp_path / "a.png").read_bytes()
    svg = save_picture(figure, tmp_path / "a.SVG").read_text()
    assert png.startswith(b"\x89PNG")
    assert "<svg" in svg
    again = gradient_picture(lk.Gradient([0, 0.5, 1]))
    assert picture_bytes(again) == png
    assert picture_bytes(again, "svg").decode() == svg


def test_nothing_global_changes():
    before = dict(matplotlib.rcParams)
    picture_bytes(gradient_picture(lk.Gradient([0, 1])), "svg")
    assert dict(matplotlib.rcParams) == before


def test_errors(tmp_path):
    figure = gradient_picture(lk.Gradient([0, 1]))
    with pytest.raises(lk.LabkitError, match="as .png or .svg, found 'a.jpg'"):
        save_picture(figure, tmp_path / "a.jpg")
    with pytest.raises(lk.LabkitError, match="cannot write the picture .*No such file"):
        save_picture(figure, tmp_path / "no" / "a.png")
