"""The front of fitted gradients above the constants' curve."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from labkit.figures.palette import ADAPTER_COLOR, BASE_COLOR, MARK, MODULE_COLORS, theme_for
from labkit.figures.papers import follows_theme
from labkit.figures.style import legend_below, new_figure, safe_name
from labkit.probing.evaluation import BASE, FULL
from labkit.probing.front import Front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIT_COLOR = MODULE_COLORS[5]


@follows_theme
def front(found: Front, *, dark: bool = False) -> Figure:
    """Draw what each fit gains and costs, against the constants: better is lower and to the left.

    Across is the KL to the base on the texts to keep, upward the NLL on the target, both held out,
    in nats a token (means over sets, where there are several). A whisker is the 95 % interval of
    the NLL against the constant of the same KL, paired by passage, drawn from the curve: a fit is
    better where its whisker ends below the curve.

    Args:
        found: what `lk.pareto` found.
        dark: on dark paper.
    """
    theme = theme_for(dark)
    figure, (axes,) = new_figure((6.4, 4.2), dark)
    curve = found.curve
    axes.plot(curve["kl"], curve["nll"], color=theme.ink, linewidth=1.2, label="constants")
    points = front_points(found)
    for name, point in points.items():
        kind, strength = strength_in(name)
        if kind in (BASE, FULL):
            color = BASE_COLOR if name == BASE else ADAPTER_COLOR
            axes.plot(point["kl"], point["nll"], "o", color=color, markersize=9,
                      markeredgecolor=theme.ink, label=safe_name(name), zorder=3)  # fmt: skip
        elif kind == "constant":
            label = "best constants" if "best constants" not in _labels(axes) else None
            axes.plot(point["kl"], point["nll"], "D", color=MARK, markersize=6,
                      markeredgecolor=theme.ink, label=label, zorder=3)  # fmt: skip
        else:
            label = "fits, by strength" if "fits, by strength" not in _labels(axes) else None
            at_constant = point["nll"] - point["from_constant"]
            axes.plot([point["kl"]] * 2, [at_constant + point["from_constant_low"],
                      at_constant + point["from_constant_high"]], color=FIT_COLOR)  # fmt: skip
            axes.plot(point["kl"], point["nll"], "o", color=FIT_COLOR, label=label, zorder=4)
            axes.annotate(strength, (point["kl"], point["nll"]), xytext=(6, -10),
                          textcoords="offset points", color=theme.ink, fontsize=9)  # fmt: skip
    across, upward = axis_labels(found, safe_name)
    axes.set_xlabel(across)
    axes.set_ylabel(upward)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    legend_below(figure, axes, theme)
    return figure


def axis_labels(found: Front, name: Callable[[str], str]) -> tuple[str, str]:
    """What lies across and upward; `name` makes the name of a text safe to show."""
    table = found.table
    target, keep = (
        " and ".join(map(name, dict.fromkeys(table.loc[table["metric"] == metric, "text"])))
        for metric in ("nll", "kl")
    )
    return f"KL(base ‖ merge) on {keep}, nats a token", f"NLL on {target}, nats a token"


def strength_in(name: str) -> tuple[str, str]:
    """What a merge of the table is ("fit", "constant", or its name), and its strength as text."""
    kind, found, strength = name.partition(", strength ")
    return (kind, strength) if found else (name, "")


def front_points(found: Front) -> dict[str, dict[str, float]]:
    """For each merge the means over sets: `nll`, `kl`, and the NLL from the constant of its KL."""
    points: dict[str, dict[str, float]] = {}
    for name, rows in found.table.groupby("gradient", sort=False):
        targets, keeps = rows[rows["metric"] == "nll"], rows[rows["metric"] == "kl"]
        against = ["from_constant", "from_constant_low", "from_constant_high"]
        points[str(name)] = {
            "nll": float(targets["estimate"].mean()),
            "kl": float(keeps["estimate"].mean()),
            **{column: float(targets[column].mean()) for column in against},
        }
    return points


def _labels(axes: Any) -> list[str]:
    return list(axes.get_legend_handles_labels()[1])
