"""The editor's Python side: what its traits hold, what it answers, and who is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from traitlets import TraitError

from labkit.errors import LabkitError
from labkit.gradients.gradient import Gradient
from labkit.gradients.presets import SHAPES, preset
from labkit.widgets.editor import GradientEditor
from labkit.widgets.plain_sliders import sliders

SEED = "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0.5,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"


@pytest.fixture
def editor() -> GradientEditor:
    return GradientEditor(Gradient([0, 0.25, 0.5, 1]))


class Asking:
    """Sends the editor what a browser sends, and keeps what it answers."""

    def __init__(self, editor: GradientEditor) -> None:
        self.editor, self.answers = editor, []
        editor.send = lambda content, buffers=None: self.answers.append(content)

    def __call__(self, **request: Any) -> dict[str, Any]:
        number = f"request {len(self.answers)}"
        self.editor.set_state({"request": {**request, "number": number}})
        answer = dict(self.answers[-1])
        assert answer.pop("number") == number
        return answer


def test_gradient_reads_and_sets_and_calls_back(editor: GradientEditor) -> None:
    seen = []
    editor.observe(lambda change: seen.append(change["new"]), "weights")
    assert editor.gradient == Gradient([0, 0.25, 0.5, 1])
    editor.gradient = Gradient([1, 1, 0, 0])
    assert editor.weights == [1, 1, 0, 0]
    editor.weights = [0, 0, 0, 0.125]
    assert editor.gradient == Gradient([0, 0, 0, 0.125])
    assert seen == [[1, 1, 0, 0], [0, 0, 0, 0.125]]


def test_it_is_made_from_any_numbers() -> None:
    assert GradientEditor([0, 1]).gradient == Gradient([0, 1])
    with pytest.raises(LabkitError, match="the weight of layer 1 is not a number: 'x'"):
        GradientEditor([0, "x"])
    with pytest.raises(LabkitError, match="at least one layer weight"):
        GradientEditor([])


def test_a_gradient_of_another_length_is_refused(editor: GradientEditor) -> None:
    with pytest.raises(LabkitError, match="3 weights for 4 layers \\(the editor\\)"):
        editor.gradient = Gradient([1, 1, 1])
    with pytest.raises(TraitError, match="3 weights for 4 layers \\(weights of the editor\\)"):
        editor.weights = [1, 1, 1]
    assert editor.gradient == Gradient([0, 0.25, 0.5, 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(editor: GradientEditor, bad: float) -> None:
    with pytest.raises(TraitError, match=f"the weight of layer 2 is {bad}; a layer weight is fini"):
        editor.weights = [0, 0, bad, 0]


def test_weights_beyond_the_bounds_widen_them(editor: GradientEditor) -> None:
    assert editor.bounds == (0, 1)
    editor.gradient = Gradient([-0.5, 0, 0, 2])
    assert editor.bounds == (-0.5, 2)
    assert GradientEditor([0.5, 1.5]).bounds == (0, 1.5)


def test_the_axis_comes_back(editor: GradientEditor) -> None:
    editor.gradient = Gradient([-0.5, 0, 0, 1.7])
    assert editor.bounds == (-0.5, 1.7)
    editor.others = {"attention": [0, 0, 0, 2]}
    assert editor.bounds == (-0.5, 2)
    editor.gradient = Gradient([0, 0, 0, 1])
    assert editor.bounds == (0, 2)
    editor.others = {}
    assert editor.bounds == (0, 1)
    # What was asked for stays.
    editor.bounds = (-1, 1.5)
    editor.gradient = Gradient([0, 0, 0, 3])
    editor.gradient = Gradient([0, 0, 0, 1])
    assert editor.bounds == (-1, 1.5)
    assert GradientEditor([0, 1], bounds=(0, 2)).bounds == (0, 2)


@pytest.mark.parametrize(
    ("trait", "value", "message"),
    [
        ("bounds", (1, 0), "two finite numbers, the lower first; found 1.0, 0.0"),
        ("bounds", (0, math.inf), "two finite numbers"),
        ("bounds", (0, 0.75), "the bounds 0.0 to 0.75 leave out the weight 1.0 of layer 3"),
        ("step", 0, "the editor's step lies from 0.000001 to 1, found 0.0"),
        ("norms", [1, 2], "2 norms for 4 layers; give one norm for each layer"),
        ("norms", [1, 2, -3, 4], "the norm of layer 2 is -3.0; a norm is finite and not negative"),
        (
            "evidence",
            {"a": [(0, 0, 0)]},
            "the evidence on 'a' has 1 entries for 4 layers; give one",
        ),
        (
            "evidence",
            {"a": [(0, 0, 0)] * 3 + [(0, 1, 0)]},
            "the evidence on 'a' for layer 3 is [0, 1, 0]; expected estimate, low and high, finite",
        ),
        ("evidence", {"a": [(math.nan, None, None)] * 4}, "for layer 0 is [nan, None, None]"),
        ("evidence", {"a": [(0, 1, None)] * 4}, "for layer 0 is [0, 1, None]"),
        ("evidence", {"a": [(0, 1)] * 4}, "for layer 0 is [0, 1]"),
        ("others", {"mlp": [1, 2]}, "2 weights for 4 layers (mlp in the editor)"),
        ("others", {"mlp": [1, 2, 3, math.inf]}, "the weight of layer 3 is inf"),
        ("evidence", {"a": [], "b": [], "c": []}, "evidence is shown for 2 texts at most, found 3"),
        ("names", ["one"], "names are two, the base model's and the LoRA's; found 1"),
    ],
)
def test_bad_traits_are_refused_in_one_line(
    editor: GradientEditor, trait: str, value: Any, message: str
) -> None:
    with pytest.raises(TraitError) as caught:
        setattr(editor, trait, value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_evidence_is_kept_as_plain_numbers(editor: GradientEditor) -> None:
    rows = np.array([[-0.5, -1, 0.25], [0, -1, 1], [1, 0, 2], [2, 2, 2]])
    editor.evidence = {"scripture": rows, "one\x1bpassage": [(0.5, None, None)] * 4}
    assert editor.evidence["scripture"] == rows.tolist()
    assert all(type(one) is float for row in editor.evidence["scripture"] for one in row)
    assert "\x1b" not in list(editor.evidence)[1]
    assert editor.evidence[list(editor.evidence)[1]] == [[0.5, None, None]] * 4
    editor.evidence = {}
    assert GradientEditor([0, 1], evidence={"a": [(1, 0, 2)] * 2}).evidence == {
        "a": [[1.0, 0.0, 2.0]] * 2
    }


def test_names_from_files_are_made_safe() -> None:
    editor = GradientEditor([0, 1], names=("base\x1b[31m", "y" * 1000))
    assert "\x1b" not in editor.names[0]
    assert len(editor.names[1]) < 100


def test_a_pasted_list_is_taken() -> None:
    editor = GradientEditor(Gradient.constant(40))
    assert Asking(editor)(kind="parse", text=SEED) == {"kind": "done"}
    assert str(editor.gradient) == SEED


def test_a_bad_list_is_answered_with_what_is_wrong(editor: GradientEditor) -> None:
    answer = Asking(editor)(kind="parse", text="0,0,y,1")
    assert answer["kind"] == "problem"
    assert "entry 3 of the layer weights, 'y', is not a number" in answer["text"]
    assert answer["found"] == 0
    assert editor.gradient == Gradient([0, 0.25, 0.5, 1])


def test_a_list_of_another_length_can_be_stretched(editor: GradientEditor) -> None:
    ask = Asking(editor)
    answer = ask(kind="parse", text=SEED)
    assert "40 weights for 4 layers" in answer["text"]
    assert answer["found"] == 40
    assert ask(kind="stretch", text=SEED) == {"kind": "done"}
    assert editor.gradient == Gradient([0, 0, 1, 1])


@pytest.mark.parametrize("layers", [1, 2, 12, 40, 126])
@pytest.mark.parametrize("name", list(SHAPES))
def test_every_preset_fits_every_depth(name: str, layers: int) -> None:
    assert len(preset(name, layers)) == layers


def test_the_seed_is_a_preset() -> None:
    assert str(preset("half and half (SuperCOT)", 40)) == SEED
    answer = Asking(GradientEditor([0, 1]))(kind="preset", name="belll")
    assert answer["text"].startswith("no preset 'belll'; the presets are constant 0, constant 0.5,")


def test_a_preset_can_fill_a_range_only(editor: GradientEditor) -> None:
    ask = Asking(editor)
    ask(kind="preset", name="constant 1", first=0, last=1)
    assert editor.gradient == Gradient([1, 1, 0.5, 1])
    ask(kind="preset", name="reversed")
    assert editor.gradient == Gradient([1, 0.5, 1, 1])
    assert "no range of 4" in ask(kind="preset", name="bell", first=2, last=9)["text"]
    assert "no preset 'nonsense'" in ask(kind="preset", name="nonsense")["text"]


def test_rounding() -> None:
    editor = GradientEditor([0.123, 1 / 3])
    Asking(editor)(kind="round")
    assert editor.gradient == Gradient([0.12, 0.33])


def test_an_unknown_request_is_answered(editor: GradientEditor) -> None:
    assert "does not know the request 'dance'" in Asking(editor)(kind="dance")["text"]


def test_sliders_and_their_gradient_are_one_state() -> None:
    shown = sliders(Gradient([0, 0.5]))
    shown._sliders[0].value = 0.75
    assert shown.gradient == Gradient([0.75, 0.5])
    shown.gradient = Gradient([1, 2])
    assert [slider.value for slider in shown._sliders] == [1, 2]
    assert shown._mean.value == "mean weight 1.50"
    with pytest.raises(LabkitError, match="3 weights for 2 layers \\(the sliders\\)"):
        shown.gradient = Gradient([1, 2, 3])


def test_sliders_of_an_editor_follow_it_and_lead_it(editor: GradientEditor) -> None:
    shown = sliders(editor)
    editor.gradient = Gradient([1, 1, 1, 3])
    assert [slider.value for slider in shown._sliders] == [1, 1, 1, 3]
    shown._sliders[1].value = 0.5
    assert editor.gradient == Gradient([1, 0.5, 1, 3])
