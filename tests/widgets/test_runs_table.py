"""The table of runs: what a press does, and what it says where nothing can be done."""

import pytest

from labkit.errors import LabkitError
from labkit.widgets.runs_table import RunsTable


@pytest.fixture
def done():
    return []


@pytest.fixture
def table(done):
    def act(kind):
        def acted(*given):
            if given[0] == "bad":
                raise LabkitError("bad is gone")
            done.append((kind, *given))

        return acted

    return RunsTable({kind: act(kind) for kind in ("recall", "rename", "star", "compare")})


def press(table, content):
    table._handle_custom_msg(content, [])


def test_presses_do_what_they_say(table, done):
    press(table, {"kind": "recall", "key": "one"})
    press(table, {"kind": "rename", "key": "one", "name": "mine"})
    press(table, {"kind": "star", "key": "one", "starred": True})
    press(table, {"kind": "compare", "keys": ["one", "two", "three"]})
    assert done == [
        ("recall", "one"),
        ("rename", "one", "mine"),
        ("star", "one", True),
        ("compare", ["two", "three"]),
    ]
    assert table.compared == ["two", "three"]
    assert table.problem == ""


def test_what_cannot_be_done_is_said_until_the_next_press(table, done):
    press(table, {"kind": "recall", "key": "bad"})
    assert table.problem == "bad is gone"
    press(table, {"kind": "recall", "key": "one"})
    assert table.problem == ""
    for content in ({"kind": "dance\n"}, {}, "no object", None):
        press(table, content)
        assert table.problem.startswith("the table of runs does not know the request ")
    assert done == [("recall", "one")]
