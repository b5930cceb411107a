"""Figures of what was measured from behaviour, by values read back from their axes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text

from labkit.errors import LabkitError
from labkit.figures import (
    benefit_against_harm,
    effects_by_layer,
    effects_map,
    gradients_compared,
    picture_bytes,
)
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR, HARMS, HELPS, UNSURE

LAYERS = [0, 1, 2, 10, None]
ON_TARGET = [-0.3, -0.1, 0.2, -0.01, -0.05]
ON_KEEP = [0.1, -0.2, 0.0, 0.02, 0.4]


def effects(modules=("",), method="attribution, 4 nodes", metric="nll_change"):
    rows = [
        {
            "adapter": "kjv", "layer": layer, "module": module, "text": text, "metric": metric,
            "estimate": value, "low": value - 0.03, "high": value + 0.04, "passages": 9,
            "tokens": 90, "method": method,
        }
        for text, values in (("a$b", ON_TARGET), ("keep", ON_KEEP))
        for layer, value in zip(LAYERS, values, strict=True)
        for module in modules
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table["layer"] = table["layer"].astype("Int64")
    return table


@pytest.fixture(params=[False, True], ids=["light", "dark"])
def dark(request):
    return request.param


def drawn(figure, dark):
    assert picture_bytes(figure, pixels=300).startswith(b"\x89PNG")
    assert to_hex(figure.get_facecolor()) == ("#1e1e2e" if dark else "#ffffff")
    return figure.axes


def test_effects_by_layer(dark):
    figure = effects_by_layer(effects(), dark=dark)
    above, below = drawn(figure, dark)
    assert above.get_ylim() == below.get_ylim()
    for axes, values, told in ((above, ON_TARGET, 4), (below, ON_KEEP, 3)):
        bars = axes.containers[0].patches
        assert [bar.get_height() for bar in bars] == pytest.approx(values)
        assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [0, 1, 2, 10, 11]
        assert f"{told} of 5 intervals leave out 0" in axes.get_title(loc="left")
        lines = axes.containers[1].lines[2][0].get_segments()
        np.testing.assert_allclose([y for _, y in lines[0]], [values[0] - 0.03, values[0] + 0.04])
    assert [to_hex(bar.get_facecolor()) for bar in above.containers[0].patches] == [
        HELPS, HELPS, HARMS, UNSURE, HELPS
    ]  # fmt: skip
    assert "all layers together −0.260" in above.get_title(loc="left")
    assert "of 5 intervals at 95 %, 0.25 miss by chance" in [
        text.get_text() for text in figure.legends[0].get_texts()
    ]
    ablated = effects_by_layer(effects(method="leave_one_out"), dark=dark)
    # Effects of single layers do not add up to anything.
    assert "together" not in ablated.axes[0].get_title(loc="left")
    slopes = effects_by_layer(effects(method="sensitivity", metric="dnll_dw"), dark=dark)
    assert slopes._supylabel.get_text() == "∂NLL/∂w, nats per token"


def test_effects_map(dark):
    table = effects(("q_proj", "down_proj"))
    above, below, bar = drawn(effects_map(table, dark=dark), dark)
    for axes, values in ((above, ON_TARGET), (below, ON_KEEP)):
        grid = axes.images[0].get_array()
        assert grid.shape == (2, 12)
        assert list(grid[0, [0, 1, 2, 10, 11]]) == values
        assert grid.mask[:, 3:10].all()
        dots = {tuple(place) for place in axes.collections[0].get_offsets().tolist()}
        unsure = [x for x, v in zip([0, 1, 2, 10, 11], values, strict=True) if -0.04 < v < 0.03]
        assert dots == {(x, y) for x in unsure for y in (0, 1)}
        limit = axes.images[0].norm.vmax
        assert axes.images[0].norm.vmin == -limit
        assert 0.39 < limit <= 0.4
    assert bar.get_ylabel() == "change of the NLL, nats per token"


def test_benefit_against_harm(dark):
    axes, _ = drawn(benefit_against_harm(effects(), dark=dark), dark)
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [-value for value in ON_TARGET]
    assert [dot.get_ydata()[0] for dot in dots] == ON_KEEP
    assert to_hex(dots[3].get_color()) == UNSURE
    names = {text.get_text(): text.xy for text in axes.texts}
    places = [(-x, y) for x, y in zip(ON_TARGET, ON_KEEP, strict=True)]
    assert names == dict(zip(["0", "1", "2", "10", "outside"], places, strict=True))
    # The whisker of benefit is the interval with its sign turned.
    across = axes.containers[0].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(across[:, 0], [0.26, 0.33])
    turned = benefit_against_harm(effects(), "keep", "a$b", dark=dark).axes[0]
    assert "keep becomes likelier" in turned.get_xlabel()
    assert r"a\$b becomes less likely" in turned.get_ylabel()


def test_numbers_in_a_crowd_are_written_apart():
    dice = np.random.default_rng(0)
    table = pd.concat([effects().iloc[:1]] * 60, ignore_index=True)
    table["layer"] = pd.array(list(range(30)) * 2, dtype="Int64")
    table["text"] = ["a"] * 30 + ["b"] * 30
    table["estimate"] = dice.normal(0, 0.01, 60)
    table.loc[[0, 30], "estimate"] = [-0.1, 0.1]
    table["low"], table["high"] = table["estimate"] - 0.01, table["estimate"] + 0.01
    figure = benefit_against_harm(table)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    # An annotation's own extent has its line to the dot in it.
    boxes = [Text.get_window_extent(text, renderer) for text in figure.axes[0].texts]
    middles = np.array([[(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2] for box in boxes])
    apart = np.hypot(*(middles[:, None] - middles).transpose(2, 0, 1)) * 72 / figure.dpi
    np.fill_diagonal(apart, 99)
    assert apart.min() > 8


VALUES = {"base": 0.0, "full LoRA": -0.4, "mine": -0.5, "constant 0.5": -0.3}


def compared():
    rows = [
        {
            "gradient": name, "text": text, "metric": metric, "estimate": 2 + value,
            "low": 1.5 + value, "high": 2.5 + value, "from_base": value,
            "from_base_low": value - 0.1, "from_base_high": value + 0.2,
        }
        for metric in ("nll", "kl")
        for text in ("target", "keep")
        for name, value in VALUES.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table.attrs["best_constant"] = "constant 0.5"
    return table


def test_gradients_compared(dark):
    panels = drawn(gradients_compared(compared(), dark=dark), dark)
    assert len(panels) == 4
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == ["base", "full LoRA", "constant 0.5", "mine"]
    for axes, first, spread in ((panels[0], 0.0, (0.1, 0.2)), (panels[3], 2.0, (0.5, 0.5))):
        points = [one.lines[0] for one in axes.containers]
        places = dict(zip(names, axes.get_yticks(), strict=True))
        found = {point.get_ydata()[0]: point for point in points}
        for name, value in VALUES.items():
            assert found[places[name]].get_xdata()[0] == pytest.approx(first + value)
        assert to_hex(found[places["base"]].get_color()) == BASE_COLOR
        assert to_hex(found[places["full LoRA"]].get_color()) == ADAPTER_COLOR
        assert found[places["constant 0.5"]].get_marker() == "D"
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [line.get_xdata()[0] for line in dashed] == [first - 0.3]
        whisker = axes.containers[0].lines[2][0].get_segments()[0][:, 0]
        np.testing.assert_allclose(whisker, [first - spread[0], first + spread[1]])
    assert panels[0].get_title() == "target"
    assert panels[3].get_xlabel() == "KL(base ‖ merge), nats per token"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: effects_by_layer(compared()), "the table has no effects of layers; make it with"),
        (lambda: effects_by_layer(effects(("q", "k"))), "has several rows for a layer; measure by"),
        (lambda: effects_map(effects()), 'the table has no modules; measure with by="kind"'),
        (
            lambda: effects_map(pd.concat([effects(), effects(method="only_one")])),
            "several methods, whose effects are not drawn on one scale",
        ),
        (lambda: benefit_against_harm(effects(), "x"), "takes two texts of the table, which has a"),
        (lambda: benefit_against_harm(effects(("q", "k"))), "one dot for each layer of one adapt"),
        (lambda: gradients_compared(effects()), "the table compares no gradients; make it with"),
    ],
)
def test_other_tables_are_refused(draw, message):
    with pytest.raises(LabkitError, match=message):
        draw()
