"""A receipt's sums, against made-up numbers whose results are known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.writing.receipt import MUCH_LOST, Receipt, TensorReceipt

TENSORS = (
    TensorReceipt("model.layers.0.q", 0, (0.5,), asked=3.0, achieved=2.0, missing=0.6),
    TensorReceipt("lm_head", None, (1.0, 0.25), asked=4.0, achieved=6.0, missing=0.8),
)


@pytest.fixture
def receipt():
    return Receipt(
        folder=Path("out/merged"),
        base="base",
        adapters=("one", "two"),
        device="cpu",
        seconds=1.23456,
        created="2026-01-02T03:04:05+00:00",
        tensors=TENSORS,
        untouched=7,
        linked=("a.safetensors",),
        files_read={"/somewhere/base/config.json": "ab"},
        files_written={"model.safetensors": "cd"},
        notes=("a note",),
        files=("model.safetensors",),
    )


def test_norms_add_as_their_squares(receipt):
    assert receipt.asked == pytest.approx(5)
    assert receipt.achieved == pytest.approx(math.sqrt(40))
    assert receipt.lost == pytest.approx(1.0 / 5)


def test_nothing_asked_for_is_nothing_lost(receipt):
    none = replace(receipt, tensors=())
    assert (none.asked, none.achieved, none.lost) == (0, 0, 0)
    assert "change" not in dict(none.summary())
    # A change of dtype alone rounds, and was asked to change nothing.
    alone = replace(receipt, tensors=(TensorReceipt("a", 0, (), 0.0, 0.1, 0.1),))
    assert alone.lost == 0


def test_what_it_says(receipt):
    said = list(receipt.summary())
    assert said == [
        ("written", "out/merged"),
        ("merged", "base + one + two, in 1.2 s"),
        ("tensors", "2 changed, 7 with the base's own bytes"),
        ("change", "norm 6.325 after rounding, of 5 asked for"),
        ("rounding", "20.0% of the change is lost to rounding; dtype float32 keeps it"),
        ("linked", "a.safetensors: shared with the base's folder"),
        ("note", "a note"),
    ]


def test_what_is_not_there_is_not_said(receipt):
    said = dict(replace(receipt, linked=(), notes=()).summary())
    assert list(said) == ["written", "merged", "tensors", "change", "rounding"]


def test_little_that_is_lost_is_no_word_worth(receipt):
    def losing(part):
        tensor = TensorReceipt("a", 0, (1.0,), 1.0, 1.0, part)
        return dict(replace(receipt, tensors=(tensor,)).summary())

    assert MUCH_LOST == 0.1
    assert "rounding" not in losing(0.1)
    assert losing(0.104)["rounding"].startswith("10.4% of the change")


def test_the_file(receipt):
    content = receipt.to_json()
    assert content == {
        "labkit": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 1.235,
        "device": "cpu",
        "base": "base",
        "adapters": ["one", "two"],
        "untouched_tensors": 7,
        "linked_files": ["a.safetensors"],
        "notes": ["a note"],
        "files_read": {"config.json": "ab"},
        "files_written": {"model.safetensors": "cd"},
        "files": ["model.safetensors"],
        "tensors": [
            {"name": "model.layers.0.q", "layer": 0, "weights": [0.5],
             "asked_norm": 3.0, "achieved_norm": 2.0, "missing_norm": 0.6},
            {"name": "lm_head", "layer": None, "weights": [1.0, 0.25],
             "asked_norm": 4.0, "achieved_norm": 6.0, "missing_norm": 0.8},
        ],
    }  # fmt: skip


def test_what_is_no_number_is_null(receipt):
    odd = TensorReceipt("a", 0, (1.0,), math.nan, math.inf, -math.inf)
    content = replace(receipt, tensors=(odd,)).to_json()["tensors"][0]
    assert [content[f"{name}_norm"] for name in ("asked", "achieved", "missing")] == [None] * 3
    assert "null" in json.dumps(content, allow_nan=False)


def test_the_table(receipt):
    table = receipt.table()
    assert table["name"].tolist() == ["model.layers.0.q", "lm_head"]
    assert table["asked"].tolist() == [3.0, 4.0]
    assert table["achieved"].tolist() == [2.0, 6.0]
    assert table["missing"].tolist() == [0.6, 0.8]
