"""Each figure, by values read back from its axes."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

import labkit as lk
from labkit.figures import (
    gradient_over_norms,
    heatmap,
    norms_by_layer,
    overlap_by_layer,
    picture_bytes,
    side_by_side,
    singular_values,
    survival_map,
)
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR
from tests.tiny import make_adapter

GRADIENT = lk.Gradient([0, 0.5, 1, 2])


@pytest.fixture(scope="module")
def table(tiny_base, tiny_adapter, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return lk.survey(tiny_base, tiny_adapter, GRADIENT, progress=False)


@pytest.fixture(scope="module")
def pair(tiny_base, tiny_adapter, tmp_path_factory):
    other = make_adapter(
        tmp_path_factory.mktemp("adapter") / "a$b", tiny_base, scale=0.1, target_modules=["q_proj"]
    )
    return lk.overlap([tiny_adapter, other])


@pytest.fixture(autouse=True, params=[False, True], ids=["light", "dark"])
def dark(request):
    before = style()
    yield request.param
    assert style() == before


def style():
    """Matplotlib's global style; the backend is decided by whoever looks at it first."""
    return {key: value for key, value in mpl.rcParams.items() if "backend" not in key}


def drawn(figure, dark):
    """Check what all figures share: they render, on their own paper."""
    assert picture_bytes(figure, pixels=200).startswith(b"\x89PNG")
    assert to_hex(figure.get_facecolor()) == ("#1e1e2e" if dark else "#ffffff")
    return figure.axes


def test_a_figure_shows_itself_without_pyplot(table):
    data, size = norms_by_layer(table)._repr_png_()
    assert data.startswith(b"\x89PNG")
    assert size == {"width": 720}


def test_norms_by_layer(table, dark):
    (axes,) = drawn(norms_by_layer(table, dark=dark), dark)
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
    assert tops == pytest.approx(list(lk.totals(table)["norm"]))
    first = table[table["layer"] == 0]
    q = axes.containers[0][0].get_height()
    assert q == pytest.approx(tops[0] * first["norm"].iloc[0] ** 2 / (first["norm"] ** 2).sum())
    assert [bars.get_label() for bars in axes.containers] == list(first["module"])


def test_norms_by_layer_with_rows_outside(table, dark):
    more = table.copy()
    more.loc[more.index[-1], ["layer", "module"]] = [None, "lm_head"]
    (axes,) = drawn(norms_by_layer(more, dark=dark), dark)
    assert axes.get_xticklabels()[-1].get_text() == "out"
    assert axes.containers[-1][4].get_height() == pytest.approx(table["norm"].iloc[-1])


def test_heatmap(table, dark):
    axes, bar = drawn(heatmap(table, "relative_norm", dark=dark), dark)
    values = axes.images[0].get_array()
    assert values.shape == (7, 4)
    np.testing.assert_allclose(values.T.ravel(), table["relative_norm"])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(table["module"][:7])
    assert bar.get_ylabel() == "‖ΔW‖ / ‖W‖"
    with pytest.raises(lk.LabkitError, match="no column of numbers 'shape'; it has layer, rank"):
        heatmap(table, "shape")


def test_singular_values(tiny_adapter, dark):
    spectra = lk.spectra(None, tiny_adapter)
    panels = drawn(singular_values(spectra, dark=dark), dark)
    titled = [axes for axes in panels if axes.get_title()]
    assert [axes.get_title() for axes in titled] == list(dict.fromkeys(spectra["module"]))
    one = spectra[(spectra["module"] == "k_proj") & (spectra["layer"] == 2)]
    line = titled[1].lines[2]
    assert line.get_label() == "layer 2"
    np.testing.assert_allclose(line.get_ydata(), one["relative"])
    absolute = singular_values(spectra, relative=False, dark=dark).axes[1].lines[2]
    np.testing.assert_allclose(absolute.get_ydata(), one["value"])


def test_gradient_over_norms(table, dark):
    axes, right = drawn(gradient_over_norms(table, dark=dark), dark)
    layers = lk.totals(table)
    whole, weighted = axes.containers
    assert [bar.get_height() for bar in whole] == pytest.approx(list(layers["norm"]))
    expected = [weight * norm for weight, norm in zip(GRADIENT, layers["norm"], strict=True)]
    assert [bar.get_height() for bar in weighted] == pytest.approx(expected)
    assert to_hex(whole[0].get_facecolor()) == BASE_COLOR
    assert to_hex(weighted[0].get_facecolor()) == ADAPTER_COLOR
    assert list(right.patches[-1].get_data().values) == list(GRADIENT)
    share = math.hypot(*expected) / math.hypot(*layers["norm"])
    assert axes.get_title().startswith("mean weight 0.88, effective norm ")
    assert axes.get_title().endswith(f"({share:.0%})")
    with pytest.raises(lk.LabkitError, match="the table has no weights; make it with survey"):
        gradient_over_norms(table.drop(columns="weighted_norm"))


def test_survival_map(table, dark):
    changed, lost, *_ = drawn(survival_map(table, dark=dark), dark)
    for axes, column in ((changed, "changed"), (lost, "lost")):
        values = axes.images[0].get_array()
        assert values.mask[:, 0].all()  # weight 0 asks for nothing
        np.testing.assert_allclose(values[:, 1:].T.ravel(), table[column][7:])
    assert changed.get_title() == "what survives rounding to bfloat16 (empty: weight 0)"
    with pytest.raises(lk.LabkitError, match="does not say what survives rounding"):
        survival_map(table.drop(columns="lost"))


def test_overlap_by_layer(pair, dark):
    above, below = drawn(overlap_by_layer(pair, dark=dark), dark)
    q = pair[pair["module"] == "q_proj"]
    np.testing.assert_allclose(above.lines[0].get_ydata(), q["cosine"])
    np.testing.assert_allclose(below.lines[0].get_ydata(), q["left_overlap"])
    np.testing.assert_allclose(below.lines[2].get_ydata(), q["right_overlap"])
    np.testing.assert_allclose(below.lines[3].get_ydata(), q["right_chance"])
    assert above.get_title() == r"tiny-lora and a\$b"
    twice = pair.copy()
    twice.loc[0, "a"] = "another"
    with pytest.raises(lk.LabkitError, match="one pair of adapters, found 2"):
        overlap_by_layer(twice)


def test_side_by_side_gradients(dark):
    second = lk.Gradient([-1, 0, 0, 1])
    left, right = drawn(side_by_side(GRADIENT, second, ("one", "two"), dark=dark), dark)
    assert list(left.patches[0].get_data().values) == list(GRADIENT)
    assert list(right.patches[0].get_data().values) == list(second)
    assert left.get_ylim() == right.get_ylim() == (-1, 2)
    assert right.get_title() == "two, mean weight 0.00"


def test_side_by_side_adapters(table, dark):
    larger = table.assign(norm=table["norm"] * 3)
    for first, second in ((table, larger), (larger, table)):
        left, right = drawn(side_by_side(first, second, dark=dark), dark)
        assert left.get_ylim() == right.get_ylim()
        top = max(bar.get_y() + bar.get_height() for bar in [*left.patches, *right.patches])
        assert left.get_ylim()[1] == pytest.approx(1.05 * top)
    assert left.get_title() == "tiny-lora"


def test_singular_values_of_a_survey_say_what_to_give(tiny_adapter):
    table = lk.survey(None, tiny_adapter, progress=False)
    with pytest.raises(lk.LabkitError, match=r"make it with spectra\(base, adapter\), found"):
        singular_values(table)


def test_a_map_has_its_layers_from_left_to_right_and_modules_from_top_to_bottom(table, dark):
    axes, _ = drawn(heatmap(table, dark=dark), dark)
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    assert (left, right, bottom, top) == (-0.5, 3.5, 6.5, -0.5)
    assert axes.images[0].origin == "upper"


@pytest.mark.parametrize(
    ("column", "begins"), [("norm", 0), ("stable_rank", 1), ("effective_rank", 1), ("rank", 0)]
)
def test_scales_begin_where_the_column_says(column, begins, table, dark):
    image = drawn(heatmap(table, column, dark=dark), dark)[0].images[0]
    assert image.get_clim() == (begins, table[column].max())
    assert image.get_cmap().name == "cividis"


def test_values_of_both_signs_have_two_colours_around_0(table, pair, dark):
    signed = table.assign(norm=np.linspace(-2, 1, len(table)))
    for rows, column in ((signed, "norm"), (pair, "cosine")):
        axes, bar = drawn(heatmap(rows, column, dark=dark), dark)
        low, high = axes.images[0].get_clim()
        assert low == -high
        assert high == pytest.approx(rows[column].abs().max())
        assert axes.images[0].get_cmap().name == "PuOr"
    assert bar.get_ylabel() == "cosine of the two deltas"


@pytest.mark.parametrize(("column", "per_cent"), [("share", True), ("lost", True), ("norm", False)])
def test_parts_of_a_whole_are_written_in_per_cent(column, per_cent, table, dark):
    _, bar = drawn(heatmap(table, column, dark=dark), dark)
    assert (bar.yaxis.get_major_formatter()(0.5).endswith("%")) == per_cent
    if per_cent:
        assert bar.yaxis.get_major_formatter()(0.5).startswith("50")


def test_the_labels_are_those_of_the_columns(table, dark):
    (axes,) = drawn(norms_by_layer(table, "weighted_norm", dark=dark), dark)
    assert axes.get_ylabel() == "‖wΔW‖ (Frobenius)"
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
    assert tops == pytest.approx(list(lk.totals(table)["weighted_norm"]))
    assert axes.get_ylim() == (0, pytest.approx(1.05 * max(tops)))
    assert axes.get_xlim() == (-0.5, 3.5)
    with pytest.raises(lk.LabkitError, match="no column 'weighted_norm'; give survey weights"):
        norms_by_layer(table.drop(columns="weighted_norm"), "weighted_norm")


def test_the_scales_of_what_survives(table, dark):
    for most in (0.05, 0.7):
        scaled = table.assign(lost=table["lost"] / table["lost"].max() * most)
        changed, lost, *_ = drawn(survival_map(scaled, dark=dark), dark)
        assert changed.images[0].get_clim() == (0, 1)
        assert lost.images[0].get_clim() == (0, pytest.approx(max(0.2, most)))


def test_the_line_of_weights_stands_on_an_axis_of_its_own(table, dark):
    axes, right = drawn(gradient_over_norms(table, dark=dark), dark)
    assert right.get_ylim() == (0, pytest.approx(2 * 1.08))
    top = max(bar.get_height() for bars in axes.containers for bar in bars)
    assert axes.get_ylim() == (0, pytest.approx(1.08 * top))
    assert right.get_ylabel() == "layer weight"
    whole = math.hypot(*table["norm"])
    arrives = math.hypot(*(table["norm"] * [GRADIENT[layer] for layer in table["layer"]]))
    assert f"effective norm {arrives:.3g} of {whole:.3g} " in axes.get_title()
    (legend,) = axes.figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["‖ΔW‖ left out", "‖wΔW‖ merged", "layer weight w"]
    colors = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert colors == [BASE_COLOR, ADAPTER_COLOR]


def test_the_band_in_which_adapters_do_not_meet(pair, dark):
    above, below = drawn(overlap_by_layer(pair, dark=dark), dark)
    (band,) = above.patches
    assert (band.get_y(), band.get_height()) == (pytest.approx(-0.1), pytest.approx(0.2))
    low, high = above.get_ylim()
    assert low == -high
    assert high == pytest.approx(max(0.15, 1.1 * pair["cosine"].abs().max()))
    q = pair[pair["module"] == "q_proj"]
    np.testing.assert_allclose(below.lines[1].get_ydata(), q["left_chance"])
    assert [line.get_label() for line in below.lines] == [
        "written (left)", "written (left), by chance", "read (right)", "read (right), by chance"
    ]  # fmt: skip
    words = {text.get_text(): text.get_position()[1] for text in above.texts}
    assert words["together"] > words["apart"]


def test_singular_values_stand_over_their_index(tiny_adapter, dark):
    axes = drawn(singular_values(lk.spectra(None, tiny_adapter), dark=dark), dark)[0]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert axes.get_yscale() == "log"
