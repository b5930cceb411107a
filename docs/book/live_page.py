"""The page "Try it here": the editor without a kernel, beside what was measured before.

The page holds the editor's own JavaScript, the state that Python gives it, and measured.json.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import anywidget

import labkit as lk
from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR, MARK, MINE, UNSURE
from labkit.gradients.presets import SHAPES
from labkit.widgets.front_picker import FrontPicker
from labkit.widgets.sources import styled

HERE = Path(__file__).parent
WIDGETS = {"editor": lk.GradientEditor, "front_picker": FrontPicker}
LABELLED = ("base", "full LoRA", "early half", "late half")
EDITOR = "labkit.widgets.editor.GradientEditor"
OTHER_COLOR = "#ffffff"
FIRST = "late half"
"""What is drawn when the page opens."""


def measured() -> dict[str, Any]:
    """What measure.py measured."""
    found: dict[str, Any] = json.loads((HERE / "measured.json").read_text(encoding="utf-8"))
    return found


def write_live_parts(folder: Path) -> None:
    """Write the page, and the scripts and styles of all pages.

    Args:
        folder: the book's sources.
    """
    static = folder / "_static"
    shutil.copytree(HERE / "static", static)
    css = styled(*(f"{name}.css" for name in WIDGETS))
    (static / "widgets.css").write_text(css, encoding="utf-8")
    found = measured()
    modules = {name: str(widget._esm) for name, widget in WIDGETS.items()}
    counts = range(1, found["about"]["layers"] + 1)
    shapes = {name: [list(shape(count)) for count in counts] for name, shape in SHAPES.items()}
    lines = [
        f"globalThis.labkitPage.{name} = {json.dumps(value)};\n"
        for name, value in {"modules": modules, "shapes": shapes}.items()
    ]
    (static / "widgets.js").write_text("".join(lines), encoding="utf-8")
    page = (HERE / "try_it.md").read_text(encoding="utf-8")
    (folder / "try_it.md").write_text(filled(page, found), encoding="utf-8")


def filled(page: str, found: dict[str, Any]) -> str:
    """The page's text with its data, and its numbers out of what was measured.

    `{from_base of late half}` becomes a number with its interval, `{passages}` what they are of.
    """
    points = {point["name"]: point for point in found["points"]}

    def number(match: re.Match[str]) -> str:
        if match[2] is None:
            return str({**found["about"], "count": len(points)}[match[1]])
        if match[1] == "fit":
            return str(found["about"]["fits"][match[2]])
        estimate, low, high = points[match[2]][match[1]]
        sign = "+" if match[1] == "from_base" else ""
        return f"{estimate:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]".replace("-", "\u2212")

    text = re.sub(r"\{(\w+)(?: of ([^}]+))?\}", number, page)
    # No text of a model may end the script that it stands in.
    data = json.dumps(page_data(found), ensure_ascii=False).replace("</", "<\\/")
    return text.replace("DATA", data, 1)


def page_data(found: dict[str, Any]) -> dict[str, Any]:
    """What the page's script reads: states of the two widgets, presets, and the points."""
    about, points = found["about"], found["points"]
    weights = {point["name"]: lk.Gradient.parse(point["weights"]) for point in points}
    constants = [
        point
        for point in points
        if len(set(weights[point["name"]])) == 1 and point["name"] not in LABELLED
    ]
    best = min(constants, key=lambda point: point["nll"][0])["name"]
    editor = lk.GradientEditor(
        weights[FIRST], norms=about["norms"], names=[about["base"], about["lora"]]
    )
    curve = sorted(
        [point["kl"][0], point["from_base"][0]]
        for point in points
        if point in constants or point["name"] in LABELLED[:2]
    )
    plane = FrontPicker(
        [dot(point, weights[point["name"]], best) for point in points],
        curve,
        (
            "KL to the base on modern prose, nats a token: what it costs",
            "NLL on scripture less the base's, nats a token",
        ),
        lambda _: None,
    )
    return {
        "editor": own_state(editor.get_state()),
        "plane": own_state(plane.get_state()),
        "points": points,
        "best_constant": best,
    }


def dot(point: dict[str, Any], weights: lk.Gradient, best: str) -> dict[str, Any]:
    """A point as FrontPicker takes it."""
    name = point["name"]
    change, low, high = point["from_base"]
    fitted = name.startswith("fitted")
    colors = {"base": BASE_COLOR, "full LoRA": ADAPTER_COLOR, best: MARK}
    constant = len(set(weights)) == 1
    color = colors.get(name, MINE if fitted else UNSURE if constant else OTHER_COLOR)
    marked = name in (*LABELLED, best) or fitted
    whisker = marked and name not in ("base", "full LoRA")  # a dot without one has its name above
    label = f"best constant ({name.split()[0]})" if name == best else name if marked else ""
    said = f"{name}: NLL {change:+.2f} [{low:+.2f}, {high:+.2f}], KL {point['kl'][0]:.2f}"
    return {
        "name": name,
        "x": point["kl"][0],
        "y": change,
        "low": low if whisker else None,
        "high": high if whisker else None,
        "label": label,
        "said": f"{said}, mean weight {weights.mean:.2f}".replace("-0", "\u22120"),
        "color": color,
    }


def own_state(state: dict[str, Any]) -> dict[str, Any]:
    """A widget's own part of what a kernel sends of it, without what every widget has."""
    everything = set(anywidget.AnyWidget.class_trait_names())
    return {
        name: value
        for name, value in state.items()
        if name not in everything and not name.startswith("_")
    }


def live_editors(model_id: str, models: dict[str, Any]) -> str:
    """The editors in a notebook's widget, as HTML that works without a kernel; "" where none is.

    Args:
        model_id: the widget's.
        models: the states of the notebook's widgets, as it keeps them.
    """
    state = models[model_id]["state"]
    if state.get("_anywidget_id") == EDITOR:
        value = html.escape(json.dumps(own_state(state), ensure_ascii=False))
        return f'<div class="labkit-live" data-state="{value}"></div>'
    inside = re.findall(r"IPY_MODEL_(\w+)", json.dumps(state))
    return "".join(live_editors(one, models) for one in inside if one in models)
