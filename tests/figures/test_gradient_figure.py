"""The picture of a gradient, by what is read back from its axes."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib
import pytest

import labkit as lk
from labkit.figures import gradient_picture, picture_bytes, recipe_picture
from labkit.figures.gradient_figure import described
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR


def axes_of(gradient, **names):
    return gradient_picture(gradient, **names).axes[0]


def test_the_bars_are_the_weights():
    gradient = lk.Gradient.ramp(40, 18, 20)
    axes = axes_of(gradient)
    values, edges, baseline = axes.patches[0].get_data()
    assert list(values) == list(gradient)
    assert baseline == 0
    # Touching: one bar ends where the next begins, and layer 0 is at the left.
    assert list(edges) == [layer - 0.5 for layer in range(41)]
    assert axes.get_xlim() == (-0.5, 39.5)
    assert axes.get_ylim() == (0, 1)
    assert axes.get_title() == "mean weight 0.51"


def test_the_colours_are_the_published_ones():
    axes = axes_of(lk.Gradient([0, 1]))
    same = matplotlib.colors.same_color
    assert (BASE_COLOR, ADAPTER_COLOR) == ("#89b4fa", "#a6e3a1")
    assert same(axes.get_facecolor(), BASE_COLOR)
    assert same(axes.patches[0].get_facecolor(), ADAPTER_COLOR)


def test_negative_and_large_weights_are_all_seen():
    axes = axes_of(lk.Gradient([-0.5, 0, 1.5]))
    assert axes.get_ylim() == (-0.5, 1.5)
    assert axes_of(lk.Gradient([0.2, 0.3])).get_ylim() == (0, 1)


@pytest.mark.parametrize("layers", [1, 2, 12, 30, 126])
def test_the_layer_axis_is_in_whole_numbers(layers):
    axes = axes_of(lk.Gradient.constant(layers))
    ticks = [tick for tick in axes.get_xticks() if -0.5 <= tick <= layers - 0.5]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


def test_the_legend_has_both_names_as_they_are():
    figure = gradient_picture(lk.Gradient([0, 1]), "a$b$ base", "x" * 500)
    texts = figure.legends[0].get_texts()
    assert texts[0].get_text() == "a$b$ base"
    assert not texts[0].get_parse_math()
    assert len(texts[1].get_text()) < 60
    patches = figure.legends[0].get_patches()
    colors = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in patches]
    assert colors == [BASE_COLOR, ADAPTER_COLOR]
    picture_bytes(figure)


def test_each_gradient_of_some_modules_has_a_panel():
    some = {"self_attn": lk.Gradient([1, 1, 0, 1]), "$q$": lk.Gradient([-1, 0, 0, 2])}
    figure = gradient_picture(lk.Gradient.constant(4, 0), weights_for=some)
    assert [axes.get_title() for axes in figure.axes] == [
        "all other modules · mean weight 0.00",
        "self_attn · mean weight 0.75",
        "$q$ · mean weight 0.25",
    ]
    drawn = [list(axes.patches[0].get_data().values) for axes in figure.axes]
    assert drawn == [[0, 0, 0, 0], [1, 1, 0, 1], [-1, 0, 0, 2]]
    assert [axes.get_ylim() for axes in figure.axes] == [(0, 1), (0, 1), (-1, 2)]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "layer"]
    picture_bytes(figure)


class Source:
    """What a picture asks of an adapter or a model."""

    kind = "adapter"

    def __init__(self, name, modules=("q_proj", "up_proj")):
        self.name = name
        self.parts = [
            SimpleNamespace(name=f"model.layers.{layer}.{module}")
            for layer in range(4)
            for module in modules
        ]

    def why_skipped(self, part, base):
        return None


def recipe_of(*terms):
    base = SimpleNamespace(name="base", layer_of=lambda name: int(name.split(".")[2]))
    made = []
    for source, weights, weights_for in terms:
        term = object.__new__(lk.Term)
        given = {"source": source, "weights": weights, "weights_for": weights_for, "fitted": None}
        for name, value in given.items():
            object.__setattr__(term, name, value)
        made.append(term)
    return SimpleNamespace(base=base, terms=tuple(made))


RAMP, ZERO, ONE = (lk.Gradient(each) for each in ([0, 0, 1, 1], [0] * 4, [1] * 4))


def test_the_picture_of_one_lora_is_that_of_its_gradient():
    recipe = recipe_of((Source("lora"), RAMP, {}))
    one = gradient_picture(RAMP, "base", "lora")
    assert picture_bytes(recipe_picture(recipe)) == picture_bytes(one)
    said = "Layer weights of lora in base as bars, 4 layers, mean weight 0.50, 0–1: 0; 2–3: 1"
    assert described(recipe) == said


def test_every_lora_has_its_panel_on_one_scale():
    two = lk.Gradient([0, 0, 0, 2])
    model = Source("x" * 100)
    model.kind = "model"
    terms = [
        (Source("a$b$"), RAMP, {}),
        (Source("second"), ZERO, {"q_proj": two}),
        (model, ONE, {}),
    ]
    recipe = recipe_of(*terms)
    figure = recipe_picture(recipe)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == [
        "a$b$ · mean weight 0.50",
        "second · mean weight 0.25\nall other modules · mean weight 0.00",
        "second, q_proj · mean weight 0.50",
    ]
    assert titles[3].endswith("… (100 characters) · mean weight 1.00")
    drawn = [list(axes.patches[0].get_data().values) for axes in figure.axes]
    assert drawn == [list(RAMP), list(ZERO), list(two), list(ONE)]
    assert {axes.get_xlim() for axes in figure.axes} == {(-0.5, 3.5)}
    assert {axes.get_ylim() for axes in figure.axes} == {(0, 2)}
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", "layer"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["base", "the LoRA or full model named above"]
    picture_bytes(figure)
    said = described(recipe)
    assert said.startswith(
        "Layer weights in base, 4 layers. a$b$: mean weight 0.50, 0–1: 0; 2–3: 1. second: mean "
        "weight 0.25 over all modules; all other modules: mean weight 0.00, 0–3: 0; q_proj: mean "
        "weight 0.50, 0–2: 0; 3: 2. "
    )


def test_many_gradients_of_some_modules_are_rows_of_a_map():
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")
    rows = {name: lk.Gradient([0, 0.5, 1, 1.5 + number]) for number, name in enumerate(modules[:4])}
    rows["o_proj"] = lk.Gradient([-1, 0, 0, 0])
    recipe = recipe_of((Source("lora", modules), RAMP, rows))
    others, of_modules = recipe_picture(recipe).axes
    assert others.get_title() == "all other modules · mean weight 0.50"
    assert of_modules.images[0].get_array().tolist() == [list(each) for each in rows.values()]
    labels = [label.get_text() for label in of_modules.get_yticklabels()]
    assert labels == ["q_proj  0.75", "k_proj  1.00", "v_proj  1.25", "o_proj  -0.25"]
    legend = [text.get_text() for text in of_modules.figure.legends[0].get_texts()]
    assert legend == ["base", "lora", "below 0", "above 1"]
    assert of_modules.figure.get_suptitle() == "mean weight over all modules 0.65"
    # Where every module has its own, nothing is left for all others.
    everyone = recipe_of((Source("lora", modules[:4]), RAMP, rows))
    assert len(recipe_picture(everyone).axes) == 1
    assert "all other modules" not in described(everyone)


@pytest.mark.parametrize("layers", [22, 80])
def test_four_loras_fit(layers):
    gradient = lk.Gradient.ramp(layers, 3, layers - 3)
    figure = recipe_picture(recipe_of(*[(Source("name " * 9), gradient, {})] * 4), dark=True)
    picture_bytes(figure, pixels=500)
    width = figure.bbox.width
    for axes in figure.axes:
        box = axes.title.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width


def test_a_weight_that_cannot_be_drawn_is_refused_in_a_map_too():
    rows = {f"m{number}": lk.Gradient([0, 0, 0, 1e200]) for number in range(4)}
    recipe = recipe_of((Source("lora", tuple(rows)), RAMP, rows))
    with pytest.raises(lk.LabkitError, match="a layer weight of 1e\\+200 cannot be drawn"):
        recipe_picture(recipe)
