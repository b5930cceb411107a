"""The front's figure, by values read back from its axes."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import labkit as lk
from labkit.figures.front_figure import FIT_COLOR
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR, MARK, theme_for
from labkit.probing.front import Front


def found():
    points = {
        "base": (3.0, 0.0, 0.0),
        "full LoRA": (2.0, 1.0, 0.0),
        "constant, strength 0.3": (2.4, 0.3, 0.0),
        "fit, strength 0.3": (2.3, 0.31, -0.08),
        "constant, strength 1": (2.6, 0.2, 0.0),
        "fit, strength 1": (2.5, 0.2, -0.1),
    }
    rows = []
    for name, (nll, kl, gain) in points.items():
        against = {"from_constant": gain, "from_constant_low": gain - 0.03,
                   "from_constant_high": gain + 0.02}  # fmt: skip
        rows.append({"gradient": name, "text": "t$x$", "metric": "nll", "estimate": nll, **against})
        rows.append({"gradient": name, "text": "prose", "metric": "kl", "estimate": kl})
    curve = pd.DataFrame({"constant": [0, 0.5, 1], "nll": [3, 2.4, 2], "kl": [0, 0.3, 1]})
    return Front({}, {}, {}, pd.DataFrame(rows), curve, pd.DataFrame(), 1.0)


@pytest.mark.parametrize("dark", [False, True])
def test_points_whiskers_and_curve(dark):
    figure = lk.figures.front(found(), dark=dark)
    (axes,) = figure.axes
    curve, *others = axes.lines
    np.testing.assert_allclose(curve.get_xydata(), [[0, 3], [0.3, 2.4], [1, 2]])
    drawn = [(to_hex(line.get_color()), line.get_xydata().tolist()) for line in others]
    for one in [
        (BASE_COLOR, [[0.0, 3.0]]),
        (ADAPTER_COLOR, [[1.0, 2.0]]),
        (MARK, [[0.3, 2.4]]),
        (MARK, [[0.2, 2.6]]),
        (FIT_COLOR, [[0.31, 2.3]]),
        (FIT_COLOR, [[0.2, 2.5]]),
    ]:
        assert one in drawn
    whiskers = [np.array(points) for _, points in drawn if len(points) == 2]
    # At the same KL the constant has 2.3 + 0.08; the interval is [-0.11, -0.06] from there.
    np.testing.assert_allclose(whiskers[0], [[0.31, 2.27], [0.31, 2.32]])
    assert [text.get_text() for text in axes.texts] == ["0.3", "1"]
    assert axes.get_xlabel() == "KL(base ‖ merge) on prose, nats a token"
    assert axes.get_ylabel() == r"NLL on t\$x\$, nats a token"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["constants", "base", "full LoRA", "best constants", "fits, by strength"]
    assert to_hex(figure.get_facecolor()) == theme_for(dark).paper
    figure.canvas.draw()
