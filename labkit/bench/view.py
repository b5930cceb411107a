"""What the lab shows, as HTML: the columns, the table of next tokens, the plane of NLLs.

Every text from a model or a file is escaped. Colours are those of JupyterLab's theme; where the lab
marks something, it sets both foreground and background itself.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from labkit.bench.strength_fit import Worth
from labkit.errors import shown
from labkit.figures.palette import (
    ADAPTER_COLOR,
    BASE_COLOR,
    CARD,
    EDGE,
    INK,
    LIGHT_INK,
    MARK,
    PAPER,
    SOFT_INK,
    WRONG,
)

COLUMNS = ("base", "merged", "full LoRA")
COLORS = f""".labkit-lab {{ --lab-ink: var(--jp-ui-font-color0, {INK});
  --lab-paper: var(--jp-layout-color0, {PAPER});
  --lab-soft: var(--jp-ui-font-color1, {SOFT_INK}); --lab-edge: var(--jp-border-color1, {EDGE});
  --lab-card: var(--jp-layout-color1, {CARD});
  --lab-base: {BASE_COLOR}; --lab-adapter: {ADAPTER_COLOR}; --lab-line: {INK};
  --lab-mark: {MARK}; --lab-wrong: {WRONG}; --lab-on-wrong: {PAPER};
  --lab-both: linear-gradient(90deg, {BASE_COLOR} 50%, {ADAPTER_COLOR} 50%); }}
"""
RULES = """.labkit-lab { color: var(--lab-ink); background: var(--lab-paper);
  font: 13px/1.45 var(--jp-ui-font-family, system-ui, sans-serif); }
.labkit-lab.widget-box { padding: 4px 8px; border-radius: 6px; }
.labkit-lab .widget-html, .labkit-lab .widget-html-content { color: inherit; font: inherit;
  line-height: 1.45; overflow: visible; height: auto; }
.labkit-lab .lab-columns { display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); }
.labkit-lab .lab-column { border: 1px solid var(--lab-edge); border-top: 6px solid var(--lab-base);
  border-radius: 4px; background: var(--lab-card); color: var(--lab-ink); padding: 6px 10px;
  min-height: 108px; }
.labkit-lab .lab-column.full { border-top-color: var(--lab-adapter); }
.labkit-lab .lab-column.merged { border-image: var(--lab-both) 6;
  border-width: 6px 1px 1px; }
.labkit-lab .lab-name { font-weight: 600; }
.labkit-lab .lab-text { white-space: pre-wrap; overflow-wrap: anywhere; }
.labkit-lab mark { background: var(--lab-mark); color: var(--lab-line); border-radius: 2px; }
.labkit-lab table { border-collapse: collapse; margin: 0; color: var(--lab-ink); }
.labkit-lab :is(td, th) { text-align: left; padding: 2px 6px; font-size: 12px;
  background: transparent; color: var(--lab-ink); }
.labkit-lab td.number { text-align: right; font-variant-numeric: tabular-nums; }
.labkit-lab .lab-bar { display: inline-block; height: 9px; background: var(--lab-base);
  border: 1px solid var(--lab-line); vertical-align: middle; }
.labkit-lab .lab-bar.merged { background: var(--lab-both); }
.labkit-lab .lab-bar.full { background: var(--lab-adapter); }
.labkit-lab .lab-problem { background: var(--lab-wrong); color: var(--lab-on-wrong);
  padding: 4px 8px; border-radius: 4px; overflow-wrap: anywhere; }
.labkit-lab :is(.lab-status, .lab-done) { color: var(--lab-soft); }
.labkit-lab h4 { margin: 6px 0 2px; font-size: 13px; color: var(--lab-ink); }
"""
STYLE = f"<style>\n{COLORS}{RULES}</style>"


def columns(
    tokens: Sequence[Sequence[str]], notes: Sequence[str] = ("", "", ""), weights: str = ""
) -> str:
    """The three answers side by side; what differs from the base's answer is marked.

    Args:
        tokens: the answers of base, merge and full LoRA, as pieces of text, one for each token.
        notes: what stands beside each column's name, such as "(stopped)".
        weights: what stands beside the merge's name, such as "mean weight 0.50".
    """
    cells = []
    for index, (name, pieces) in enumerate(zip(COLUMNS, tokens, strict=True)):
        kind = ("base", "merged", "full")[index]
        text = "".join(map(html.escape, pieces)) if index == 0 else marked(pieces, tokens[0])
        more = f" · {weights}" if kind == "merged" and weights else ""
        cells.append(
            f'<div class="lab-column {kind}"><div class="lab-name">{name}{html.escape(more)} '
            f'<span class="lab-status">{html.escape(notes[index])}</span></div>'
            f'<div class="lab-text">{text}</div></div>'
        )
    return f'<div class="lab-columns">{"".join(cells)}</div>'


def marked(pieces: Sequence[str], base: Sequence[str]) -> str:
    """The pieces as HTML, those marked that the base's answer does not have there."""
    written = []
    matcher = SequenceMatcher(a=list(base), b=list(pieces), autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        text = html.escape("".join(pieces[start:end]))
        if text:
            written.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return "".join(written)


def next_tokens(
    rows: Sequence[tuple[str, Sequence[float]]], divergences: tuple[float, float]
) -> str:
    """The next token's probabilities of the three models, side by side.

    Args:
        rows: a token's text, and its probability in base, merge and full LoRA.
        divergences: KL(merged‖base) and KL(merged‖full LoRA), in nats.
    """
    most = max((share for _, shares in rows for share in shares), default=1.0)
    lines = []
    for token, shares in rows:
        cells = "".join(
            f'<td class="number">{share:.3f}</td><td style="width:54px"><span aria-hidden="true" '
            f'class="lab-bar {kind}" style="width:{44 * share / most:.0f}px"></span></td>'
            for kind, share in zip(("base", "merged", "full"), shares, strict=True)
        )
        lines.append(f"<tr><td><code>{html.escape(repr(token)[1:-1])}</code></td>{cells}</tr>")
    heads = "".join(f'<th colspan="2" scope="col">{name}</th>' for name in COLUMNS)
    return (
        f'<table><thead><tr><th scope="col">next token</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
        f'<div class="lab-status">KL(merged‖base) {divergences[0]:.4f} · '
        f"KL(merged‖full LoRA) {divergences[1]:.4f} nats</div>"
    )


def plane(
    names: Sequence[str],
    base: tuple[float, float],
    full: tuple[float, float],
    trail: Sequence[tuple[float, float]],
    constants: Mapping[float, tuple[float, float]] | None = None,
    best: float | None = None,
) -> str:
    """The NLL on two texts as a point in a plane, and the trail of the gradients tried.

    Args:
        names: of the two texts: along the horizontal axis, and along the vertical one.
        base: the base model's two NLLs, in nats for a token.
        full: the full LoRA's.
        trail: the merges', the latest last.
        constants: those of constant gradients, by their weight.
        best: the weight of the best constant.
    """
    constants = constants or {}
    points = [base, full, *constants.values(), *trail]
    width, height, left, bottom, edge = 330, 230, 50, 40, 14
    low, high = [], []
    for axis in (0, 1):
        values = [point[axis] for point in points]
        margin = max((max(values) - min(values)) * 0.12, 0.01)
        low.append(min(values) - margin)
        high.append(max(values) + margin)

    def x(value: float) -> float:
        return left + (value - low[0]) / (high[0] - low[0]) * (width - left - edge)

    def y(value: float) -> float:
        return height - bottom - (value - low[1]) / (high[1] - low[1]) * (height - bottom - edge)

    def dot(point: tuple[float, float], color: str, radius: int) -> str:
        return (
            f'<circle cx="{x(point[0]):.1f}" cy="{y(point[1]):.1f}" r="{radius}" fill="{color}" '
            f'stroke="{INK}" stroke-width="1.5"/>'
        )

    # A label stands where it covers no dot and no other label, if there is such a place.
    covered = [(x(a) - 5, y(b) - 5, 10.0, 10.0) for a, b in points]

    def label(point: tuple[float, float], text: str) -> str:
        long = 6.2 * len(text)
        across, up = x(point[0]), y(point[1])
        places = [
            (across + dx, up + dy)
            for dx, dy in ((9, 4), (-9 - long, 4), (-long / 2, -10), (-long / 2, 18), (9, 16))
            if left <= across + dx <= width - edge - long and edge + 9 <= up + dy <= height - bottom
        ]
        boxes = [(at, (at[0], at[1] - 10, long, 12.0)) for at in places or [(left + 2.0, up)]]
        (at, box) = min(boxes, key=lambda one: sum(_meet(one[1], other) for other in covered))
        covered.append(box)
        return (
            f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" style="paint-order:stroke;'
            f'stroke:var(--lab-card);stroke-width:3px">{text}</text>'
        )

    marks = []
    for share in (0.1, 0.5, 0.9):
        across = low[0] + share * (high[0] - low[0])
        up = low[1] + share * (high[1] - low[1])
        marks.append(
            f'<text x="{x(across):.1f}" y="{height - bottom + 15}" text-anchor="middle">'
            f"{across:.2f}</text>"
            f'<text x="{left - 5}" y="{y(up) + 4:.1f}" text-anchor="end">{up:.2f}</text>'
        )
    curve = [base, *(constants[weight] for weight in sorted(constants)), full]
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in curve) if constants else ""
    steps = "".join(dot(point, EDGE, 3) for point in constants.values())
    way = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in trail)
    dots = "".join(dot(point, LIGHT_INK, 3) for point in trail[:-1])
    labels = label(base, "base") + label(full, "full LoRA")
    now = dot(trail[-1], MARK, 6) if trail else ""
    labels += label(trail[-1], "merged") if trail else ""
    labels += label(constants[best], f"best constant {best:g}") if best is not None else ""
    first, second = (html.escape(shown(name, 40)) for name in names)
    said = (
        f"NLL on {first} and {second}: base {base[0]:.3f}, {base[1]:.3f}; "
        f"full LoRA {full[0]:.3f}, {full[1]:.3f}"
    )
    if trail:
        said += f"; merged {trail[-1][0]:.3f}, {trail[-1][1]:.3f}"
    if best is not None:
        said += f"; constant {best:g} {constants[best][0]:.3f}, {constants[best][1]:.3f}"
    return (
        f'<svg role="img" aria-label="{said}" viewBox="0 0 {width} {height}" '
        f'style="width:{width}px;max-width:100%;font-size:11px;fill:var(--lab-ink)">'
        f'<rect x="{left}" y="{edge}" width="{width - left - edge}" '
        f'height="{height - bottom - edge}" style="fill:var(--lab-card);stroke:var(--lab-edge)"/>'
        f'{"".join(marks)}<polyline points="{way}" fill="none" style="stroke:var(--lab-soft)"/>'
        f'<polyline points="{line}" fill="none" stroke-dasharray="4 3" '
        f'style="stroke:var(--lab-soft)"/>{steps}'
        f"{dots}{dot(base, BASE_COLOR, 5)}{dot(full, ADAPTER_COLOR, 5)}{now}{labels}"
        f'<text x="{(left + width - edge) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        f"NLL on {first} (nats per token)</text>"
        f'<text transform="translate(11 {(height - bottom + edge) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">NLL on {second}</text></svg>'
    )


def fitted(
    strength: float,
    names: Sequence[str],
    rows: Mapping[str, Worth | None],
    said: str,
) -> str:
    """What a gradient that follows from a strength is worth, as far as it is known.

    Args:
        strength: of keeping.
        names: of the two texts.
        rows: what is known and how ("predicted") -> the NLL on the first text and the KL on the
            second; None while it is being measured.
        said: what was read.
    """
    first, second = (html.escape(shown(name, 40)) for name in names)
    lines = []
    for kind, worth in rows.items():
        cells = ["…", "…"] if worth is None else [f"{worth.nll:.3f}", f"{worth.kl:.3f}"]
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        lines.append(f'<tr><th scope="row">{html.escape(kind)}</th>{numbers}</tr>')
    return (
        f'<table role="status"><thead><tr><th scope="col">strength {strength:g}</th>'
        f'<th scope="col">NLL on {first}</th><th scope="col">KL to the base on {second}</th></tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table>"
        f'<div class="lab-done">{html.escape(said)}</div>'
    )


def _meet(one: Sequence[float], other: Sequence[float]) -> float:
    """How much of two boxes (left, top, width, height) covers the other: an area."""
    across, down = (
        min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis])
        for axis in (0, 1)
    )
    return max(across, 0.0) * max(down, 0.0)


def problem(error: BaseException | str) -> str:
    """An error as a red line."""
    text = str(error) or type(error).__name__
    return f'<div class="lab-problem" role="alert">{html.escape(shown(text, 600))}</div>'


def status(text: str) -> str:
    """A line that says what is going on; a screen reader reads it out when it changes."""
    return f'<div class="lab-status" role="status">{html.escape(shown(text, 400))}</div>'


def done(text: str) -> str:
    """A line beside a button that says what it did; a screen reader reads it out."""
    return f'<div class="lab-done" role="status">{html.escape(shown(text, 400))}</div>'


def remark(text: str) -> str:
    """A line that looks like `status`, and that a screen reader does not read out by itself."""
    return f'<div class="lab-status">{html.escape(shown(text, 400))}</div>'
