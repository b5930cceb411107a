"""Which text an export is calibrated on: offered, chosen by default, and asked for."""

from __future__ import annotations

import pytest

from labkit.bench.export_choice import ExportChoice
from labkit.bench.passages import TEXTS
from labkit.errors import LabkitError
from labkit.exporting.calibration import calibration_for
from labkit.exporting.formats import FORMATS
from labkit.probing.text_plane import as_texts
from labkit.probing.texts import Texts

MINE = {"sea": ["the sea is wide", "the ship is small"], "land": "the land is dry"}
ASKS = "write the name of a file with texts of the kind that the merge is for, or choose another"


def made(domains=(), texts=TEXTS, format="gptq"):
    choice = ExportChoice(domains, texts)
    choice.format.value = format
    return choice


def seen(field):
    return field.layout.display is None


def test_a_format_that_takes_no_text_offers_none():
    choice = made(format="gguf-bf16")
    assert choice.calibration() is None
    assert choice.problem == ""
    assert not seen(choice.text)
    assert not seen(choice.path)
    assert FORMATS["gguf-bf16"].what in choice.said.value


@pytest.mark.parametrize("format", ["gptq", "gguf-q4_k_m"])
def test_adapters_of_the_demo_are_calibrated_on_their_own_texts(format):
    choice = made(["kjv", "stepwise"], format=format)
    assert choice.calibration() is None  # which asks an export for these:
    texts = calibration_for(FORMATS[format], "it", ["kjv", "stepwise"], None)
    assert texts.name == choice.text.value
    assert made(["kjv"]).text.value == "the training text of kjv"


def test_what_is_offered():
    others = ["the training text of kjv", "the training text of stepwise"]
    both = ["King James text", "everyday text"]
    assert list(made().text.options) == [*both, *others, "a file …"]
    assert list(made(["kjv"]).text.options) == [others[0], *both, others[1], "a file …"]
    offered = list(made(["kjv"], format="exl3").text.options)
    assert offered == [others[0], *both, others[1], "nothing", "a file …"]


def test_where_nothing_must_be_and_nothing_is_known_it_is_nothing():
    choice = made(format="gguf-q4_k_m")
    assert choice.text.value == "nothing"
    assert choice.calibration() == "none"


def test_a_lab_with_texts_of_its_own_calibrates_on_the_first():
    choice = made(texts=MINE)
    assert choice.text.value == "sea"
    assert choice.calibration() == as_texts("sea", MINE["sea"])
    choice.use({"other": "words", "land": MINE["land"]})
    assert choice.text.value == "other"


def test_where_no_text_is_known_the_row_asks_for_a_file(tmp_path):
    choice = made()
    told = []
    choice.changed = lambda: told.append(choice.problem)
    assert choice.text.value == "a file …"
    assert seen(choice.path)
    assert ASKS in choice.problem
    assert ASKS in choice.said.value
    assert "lab-problem" not in choice.said.value
    with pytest.raises(LabkitError, match=ASKS):
        choice.calibration()
    choice.path.value = str(tmp_path / "no.txt")
    assert "no.txt" in choice.problem
    assert "lab-problem" in choice.said.value
    (tmp_path / "sea.txt").write_text("the sea is wide\n\nthe ship is small")
    choice.path.value = str(tmp_path / "sea.txt")
    assert choice.problem == told[-1] == ""
    assert choice.calibration() == Texts.read(tmp_path / "sea.txt")
    assert len(told) == 2


def test_what_was_chosen_by_hand_stays_and_what_was_not_follows_the_format(tmp_path):
    choice = made(format="gguf-q4_k_m")
    choice.format.value = "gptq"
    assert choice.text.value == "a file …"
    choice.format.value = "gguf-q4_k_m"
    assert choice.text.value == "nothing"
    choice.text.value = "the training text of kjv"
    assert choice.calibration() == "kjv"
    for format in ("gptq", "gguf-bf16", "w4a16"):
        choice.format.value = format
        assert choice.text.value == "the training text of kjv"


def test_tools_that_are_missing_are_said_before_the_press(monkeypatch):
    monkeypatch.setattr("labkit.exporting.environments.find_spec", lambda name: None)
    choice = made(["kjv"])
    assert "it needs labkit[gptq]: gptqmodel, optimum not installed" in choice.said.value
