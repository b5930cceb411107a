"""What the lab shows, as HTML: the columns, the table of next tokens, two runs compared.

Every text from a model or a file is escaped. Colours are those of JupyterLab's theme; where the lab
marks something, it sets both foreground and background itself.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from labkit.bench.runs import Run, Turn
from labkit.bench.strength_fit import Worth
from labkit.errors import shown
from labkit.figures.palette import (
    ADAPTER_COLOR,
    BASE_COLOR,
    CARD,
    EDGE,
    INK,
    MARK,
    PAPER,
    SOFT_INK,
    WRONG,
)
from labkit.probing.intervals import Estimate

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
.labkit-lab .jupyter-widget-Collapse-header { padding: 5px 10px; color: var(--lab-ink); }
.labkit-lab .jupyter-widget-Collapse-contents { padding: 6px 10px 8px; }
.labkit-lab .lab-columns { display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); }
.labkit-lab .lab-column { border: 1px solid var(--lab-edge); border-top: 6px solid var(--lab-base);
  border-radius: 4px; background: var(--lab-card); color: var(--lab-ink); padding: 6px 10px;
  min-height: 108px; }
.labkit-lab .lab-column.full { border-top-color: var(--lab-adapter); }
.labkit-lab .lab-column.merged { border-image: var(--lab-both) 6;
  border-width: 6px 1px 1px; }
.labkit-lab .lab-column.plain { min-height: 0; border-top: 1px solid var(--lab-edge); }
.labkit-lab .lab-name { font-weight: 600; }
.labkit-lab .lab-text { white-space: pre-wrap; overflow-wrap: anywhere; }
.labkit-lab .lab-turn { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--lab-soft);
  border-bottom: 1px solid var(--lab-edge); margin-bottom: 4px; padding-bottom: 4px; }
.labkit-lab .lab-turn span { font-weight: 600; }
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
body[data-jp-theme-light="false"] .labkit-lab { --jp-widgets-dropdown-arrow:
  url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E\
%3Cpath fill='none' stroke='white' stroke-width='2' d='M4 6.5l5 5 5-5'/%3E%3C/svg%3E"); }
.labkit-lab h4 { margin: 6px 0 2px; font-size: 13px; color: var(--lab-ink); }
"""
STYLE = f"<style>\n{COLORS}{RULES}</style>"


def columns(
    tokens: Sequence[Sequence[str]],
    notes: Sequence[str] = ("", "", ""),
    weights: str = "",
    turns: Sequence[Turn] = (),
) -> str:
    """The three answers side by side; what differs from the base's answer is marked.

    Args:
        tokens: the answers of base, merge and full LoRA, as pieces of text, one for each token.
        notes: what stands beside each column's name, such as "(stopped)".
        weights: what stands beside the merge's name, such as "mean weight 0.50".
        turns: what was said before, in a conversation.
    """
    cells = []
    for index, (name, pieces) in enumerate(zip(COLUMNS, tokens, strict=True)):
        kind = ("base", "merged", "full")[index]
        text = "".join(map(html.escape, pieces)) if index == 0 else marked(pieces, tokens[0])
        before = "".join(
            f'<div class="lab-turn"><span>you</span> {html.escape(turn[0])}\n'
            f"<span>{name}</span> {html.escape(turn[index + 1])}</div>"
            for turn in turns
        )
        more = f" · {weights}" if kind == "merged" and weights else ""
        cells.append(
            f'<div class="lab-column {kind}"><div class="lab-name">{name}{html.escape(more)} '
            f'<span class="lab-status">{html.escape(notes[index])}</span></div>'
            f'{before}<div class="lab-text">{text}</div></div>'
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


def compared(one: Run, other: Run) -> str:
    """Two runs side by side: their answers, and what their NLLs differ by.

    What the first has not said is marked in the second. Differences are the second's number less
    the first's, in nats per token, paired by passage.
    """
    asked = one.question and other.question
    cells = []
    for run in (one, other):
        prompt = run.question.prompt if run.question else ""
        text = html.escape(run.answer)
        if run is other and asked:
            text = marked(words(other.answer), words(one.answer))
        said = text if run.question else '<span class="lab-status">no answer</span>'
        name, gradient = html.escape(shown(run.name, 60)), html.escape(shown(run.gradient, 200))
        cells.append(
            f'<div class="lab-column plain"><div class="lab-name">{name} '
            f'<span class="lab-status">{gradient}</span></div><div class="lab-text">'
            f'<span class="lab-status">{html.escape(prompt)}</span>\n{said}</div></div>'
        )
    notes = []
    if asked and one.question != other.question:
        notes.append("The two were asked differently.")
    lines = []
    for number, (name, sha256) in enumerate(one.texts):
        readings = [run.readings[number] if run.readings else None for run in (one, other)]
        if other.texts[number] != (name, sha256) or None in readings:
            notes.append(f"They were not both measured on {shown(name, 40)}.")
            continue
        first, second = (reading for reading in readings if reading is not None)
        lines.append(
            f'<tr><th scope="row">NLL on {html.escape(shown(name, 40))}</th>'
            f'<td class="number">{first.mean.value:.3f}</td>'
            f'<td class="number">{second.mean.value:.3f}</td>'
            f'<td class="number">{interval(second.less(first))}</td></tr>'
        )
    names = [one.name, other.name, f"{other.name} less {one.name}, 95 %"]
    heads = "".join(f'<th scope="col">{html.escape(shown(name, 90))}</th>' for name in names)
    table = (
        f'<table><thead><tr><th scope="col">nats per token</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    said = html.escape(" ".join(dict.fromkeys(notes)))
    return (
        f'<div class="lab-columns" role="group" aria-label="two runs compared">{"".join(cells)}'
        f'</div>{table if lines else ""}<div class="lab-status">{said}</div>'
    )


def words(text: str) -> list[str]:
    """A text in words and the spaces between them."""
    return re.findall(r"\s+|\S+", text)


def interval(estimate: Estimate) -> str:
    """A difference with its 95 % interval, in one line."""
    value = _signed(estimate.value)
    if not math.isfinite(estimate.low):
        return value
    return f"{value} [{_signed(estimate.low)}, {_signed(estimate.high)}]"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212")


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
