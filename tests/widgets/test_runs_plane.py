"""The plane of runs: a press on a point brings its run back, or says why it cannot."""

from labkit.errors import LabkitError
from labkit.widgets.runs_plane import RunsPlane


def test_a_press_recalls():
    recalled = []

    def recall(key):
        if not key:
            raise LabkitError("there is no run '' any more")
        recalled.append(key)

    plane = RunsPlane(recall)
    plane._handle_custom_msg({"kind": "recall", "key": "one"}, [])
    assert (recalled, plane.problem) == (["one"], "")
    plane._handle_custom_msg("no object", [])
    assert plane.problem == "there is no run '' any more"
    plane._handle_custom_msg({"key": "two"}, [])
    assert (recalled, plane.problem) == (["one", "two"], "")
