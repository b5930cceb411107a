"""The columns' entries: the docstrings say the same, and figures and texts show what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

import labkit as lk
from labkit.surveys.columns import OVERLAP, SURVEY, column_named, columns_that_need


def rows_of(columns, source=False):
    """What a docstring's table says of columns; those of one formula share a row."""
    formulas = dict.fromkeys((column.formula, column.source) for column in columns)
    for formula, reference in formulas:
        names = [column.name for column in columns if column.formula == formula]
        row = f"| {', '.join(f'`{name}`' for name in names)} | {formula} |"
        yield f"{row} {reference} |".replace("  ", " ") if source else row


@pytest.mark.parametrize(
    ("function", "needs", "source"),
    [
        (lk.survey, "delta", True),
        (lk.survey, "base", False),
        (lk.survey, "weights", False),
        (lk.survival, "rounding", False),
    ],
)
def test_the_docstrings_have_every_column(function, needs, source):
    for row in rows_of(columns_that_need(needs), source):
        assert row in function.__doc__, f"the docstring of {function.__name__} needs: {row}"


def test_the_docstring_of_overlap_has_every_number():
    for row in rows_of(OVERLAP):
        assert row in lk.overlap.__doc__, f"the docstring of overlap needs: {row}"


def test_the_table_has_the_columns_of_the_list(tiny_base, tiny_adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    table = lk.survey(tiny_base, tiny_adapter, "1x4", progress=False)
    assert sorted(table.columns) == sorted(column.name for column in SURVEY)
    some = lk.survey(tiny_base, tiny_adapter, progress=False)
    assert set(some.columns) == {column.name for column in columns_that_need("delta", "base")}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("norm", 0.0123456, "0.01235"),
        ("norm", 1234.5, "1234"),
        ("norm", 0.5, "0.5000"),
        ("relative_norm", 0.012345, "1.23%"),
        ("share", 0.0129, "1.3%"),
        ("changed", 0.129, "12.9%"),
        ("stable_rank", 2.345, "2.3"),
        ("weight", 0.125, "0.12"),
        ("weight", -2.0, "-2.00"),
        ("lost", math.nan, "–"),
        ("share", np.float64(1), "100.0%"),
    ],
)
def test_values_are_written_as_their_column_says(name, value, text):
    assert column_named(name).written(value) == text


def test_what_is_in_no_list_shows_its_own_name():
    assert column_named("my_column").title == "my_column"
    assert not column_named("my_column").per_cent
    assert column_named("cosine").title == "cosine of the two deltas"


def test_only_ranks_begin_at_1():
    begins = {column.name: column.scale_from for column in SURVEY if column.scale_from}
    assert begins == {"stable_rank": 1, "effective_rank": 1}
    parts = {column.name for column in SURVEY if column.per_cent}
    assert parts == {"share", "relative_norm", "weighted_share", "changed", "lost"}
