import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import labkit as lk
from labkit.errors import shown

SEED = "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0.5,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"
finite = st.floats(allow_nan=False, allow_infinity=False)
lists = st.lists(finite, min_size=1, max_size=130)


def generator_rule(n, layer_start, layer_end, gradient_start, gradient_end):
    """The generator's rule, written out as its page states it."""
    weights = []
    for i in range(n):
        if i < layer_start:
            weights.append(gradient_start)
        elif i > layer_end:
            weights.append(gradient_end)
        else:
            # In its order of operations: ties between two decimals hang on it.
            rise = (gradient_end - gradient_start) * (i - layer_start) / (layer_end - layer_start)
            weights.append(round(gradient_start + rise, 2))
    return weights


def test_the_published_list():
    gradient = lk.Gradient.ramp(40, 18, 20)
    assert str(gradient) == SEED
    assert gradient.mean == 0.5125
    assert gradient == lk.Gradient.parse(SEED) == lk.Gradient.parse("0x19,0.5,1x20")
    assert gradient.runs() == "0x19,0.5,1x20"
    assert hash(gradient) == hash(lk.Gradient.parse(SEED))


@given(st.data())
def test_ramp_is_the_generators_rule(data):
    layers = data.draw(st.integers(2, 126))
    start = data.draw(st.integers(0, layers - 2))
    stop = data.draw(st.integers(start + 1, layers - 1))
    first = data.draw(st.floats(-2, 2))
    last = data.draw(st.floats(-2, 2))
    expected = generator_rule(layers, start, stop, first, last)
    # The ends themselves are given, not rounded.
    expected[start], expected[stop] = round(first, 2), last
    ours = list(lk.Gradient.ramp(layers, start, stop, first, last))
    assert ours == pytest.approx(expected, abs=1e-12)


@given(lists)
def test_both_ways_of_writing_read_back(weights):
    gradient = lk.Gradient(weights)
    assert lk.Gradient.parse(str(gradient)) == gradient
    assert lk.Gradient.parse(gradient.runs()) == gradient


@given(st.text(max_size=40))
def test_parse_gives_a_gradient_or_a_clear_error(text):
    try:
        gradient = lk.Gradient.parse(text)
    except lk.LabkitError as error:
        assert "\n" not in str(error)
    else:
        assert all(math.isfinite(weight) for weight in gradient)


def test_parse_allows_what_people_paste():
    expected = lk.Gradient([0, 0, 0, 1, 2])
    for text in ("0,0,0,1,2,", "[0, 0, 0, 1, 2]", "0 0 0\n1 2", " 0x3 , 1,\n2 ", "0 x 3,1,2"):
        assert lk.Gradient.parse(text) == expected
    assert list(lk.Gradient.parse("-0.5,1.5")) == [-0.5, 1.5]
    assert str(lk.Gradient([-0.0])) == "0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list of layer weights is empty"),
        (" ,", "the list of layer weights is empty"),
        ("0,zero,1", "entry 2 of the layer weights, 'zero', is not a number"),
        ("0,1,nan", "entry 3 of the layer weights, 'nan', is not a finite number"),
        ("inf", "entry 1 of the layer weights, 'inf', is not a finite number"),
        ("0,,1", "entry 2 of the layer weights is empty: two commas follow each other"),
        ("0x", "entry 1 of the layer weights, '0x', is not a run"),
        ("1,0x0", "entry 2 of the layer weights, '0x0', is not a run"),
        ("0x1.5", "entry 1 of the layer weights, '0x1.5', is not a run"),
        ("1x99999999999999", "is not a run"),
        ("1x9999,1x9999", "has more than 10000 entries"),
    ],
)
def test_bad_lists_say_what_and_where(text, message):
    with pytest.raises(lk.LabkitError) as error:
        lk.Gradient.parse(text)
    assert message in str(error.value)


def test_wrong_counts_and_values():
    with pytest.raises(lk.LabkitError, match="^41 weights for 40 layers"):
        lk.Gradient.parse("1x41", layers=40)
    with pytest.raises(lk.LabkitError, match="at least one layer weight"):
        lk.Gradient([])
    with pytest.raises(lk.LabkitError, match="layer 1 is nan"):
        lk.Gradient([0, math.nan])
    with pytest.raises(lk.LabkitError, match="layer 0 is not a number: 'a'"):
        lk.Gradient(["a"])
    with pytest.raises(lk.LabkitError, match="use Gradient.parse"):
        lk.Gradient("0,1")
    with pytest.raises(lk.LabkitError, match="0 ≤ start ≤ stop ≤ 9, found start=4, stop=3"):
        lk.Gradient.ramp(10, 4, 3)
    with pytest.raises(lk.LabkitError, match="found at=11"):
        lk.Gradient.step(10, 11)
    with pytest.raises(lk.LabkitError, match="from 1 to 10000, found 0"):
        lk.Gradient.constant(0)
    with pytest.raises(lk.LabkitError, match="at least one anchor"):
        lk.Gradient.from_anchors(10, [])
    with pytest.raises(lk.LabkitError, match="depth lies from 0 to 1, found 2"):
        lk.Gradient.from_anchors(10, {2: 1})
    with pytest.raises(lk.LabkitError, match="positive number of layers, found 0"):
        lk.Gradient.bell(10, width=0)


def test_shapes():
    assert list(lk.Gradient.constant(3, 0.25)) == [0.25] * 3
    assert list(lk.Gradient.step(4, 1)) == [0, 1, 1, 1]
    assert list(lk.Gradient.ramp(4, 2, 2)) == [0, 0, 1, 1]
    bell, valley = lk.Gradient.bell(31), lk.Gradient.valley(31)
    assert bell[15] == max(bell) == 1
    assert bell == bell.reversed()
    assert valley == (1 - bell).rounded()
    assert list(lk.Gradient.from_anchors(5, [0, 1, 0])) == [0, 0.5, 1, 0.5, 0]
    assert list(lk.Gradient.from_anchors(5, {0.5: 1, 1: 0})) == [1, 1, 1, 0.5, 0]
    assert list(lk.Gradient.from_anchors(1, [3, 4])) == [3]


def test_resample():
    gradient = lk.Gradient.parse(SEED).resample(30)
    assert len(gradient) == 30
    assert gradient[0] == 0
    assert gradient[-1] == 1
    assert gradient.mean == pytest.approx(0.5125, abs=0.01)
    assert gradient.resample(30) == gradient


@given(lists)
def test_arithmetic(weights):
    gradient = lk.Gradient([weight % 10 for weight in weights])
    assert 1 - (1 - gradient) == pytest.approx(list(gradient))
    assert list(gradient + gradient) == list(gradient * 2) == list(2 * gradient)
    assert list(-gradient) == [-weight + 0.0 for weight in gradient]
    assert list(gradient - gradient) == [0] * len(gradient)
    assert gradient.reversed().reversed() == gradient


def test_arithmetic_of_other_lengths_and_kinds():
    with pytest.raises(lk.LabkitError, match="two gradients of 2 and 3 layers"):
        lk.Gradient([1, 2]) + lk.Gradient([1, 2, 3])
    with pytest.raises(TypeError):
        lk.Gradient([1]) + "a"


def test_it_is_a_value():
    gradient = lk.Gradient([0, 1])
    with pytest.raises(AttributeError):
        gradient.weights = (1,)
    assert gradient[-1] == 1
    assert gradient[:1] == (0,)
    assert {gradient: 1}[lk.Gradient([0.0, 1.0])] == 1


def test_a_cell_shows_the_picture_the_mean_and_the_list():
    shown_as = lk.Gradient.parse("0x3,1")._repr_mimebundle_()
    assert shown_as["text/html"].count("data:image/png;base64,") == 2  # for light and dark
    assert "mean weight 0.25" in shown_as["text/html"]
    assert "0,0,0,1" in shown_as["text/html"]
    assert "0x3,1" in shown_as["text/plain"]


def test_text_from_files_is_made_safe():
    assert shown("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert len(shown("x" * 10_000)) < 200
    assert "10000 characters" in shown("x" * 10_000)
