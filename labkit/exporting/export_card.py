"""The card of an export, in the form that publishers of quantised models use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from labkit.merging.recipe import FILE_NAME as RECIPE_NAME
from labkit.probing.intervals import Estimate
from labkit.writing.card import as_code, as_text, fenced, linked
from labkit.writing.front_matter import front_matter, own_card

if TYPE_CHECKING:
    from labkit.exporting.export_receipt import Export
    from labkit.exporting.job import Format, Job


def export_card(format: Format, job: Job, export: Export) -> str:
    """Write the README.md of an export.

    Args:
        format: the format.
        job: what was exported.
        export: what was done.
    """
    lines = [
        *_head(format, job),
        "",
        f"# {as_text(export.folder.name)}",
        "",
        _what(format, job, export),
        *_origin(job, export),
        "",
        *_files(export),
        *_measured(job, export),
        *_usage(export),
        *_calibration(export),
        *_made(export),
    ]
    return "\n".join(lines)


def _head(format: Format, job: Job) -> list[str]:
    """What the hub reads: a quantised model's base is the merge, and a LoRA's its base model."""
    relation, source = ("adapter", job.model) if job.adapter else ("quantized", job.subject)
    lines = front_matter(
        format.library,
        [source.repository] if source.repository else [],
        relation,
        own_card(job.subject.folder),
        "fill in the license that the original has",
        ("lora" if job.adapter else "quantized", *format.tags),
    )
    if not source.repository:
        comment = (
            f"# base_model: fill in where {as_code(source.name)} is on the hub\n"
            f"# base_model_relation: {relation}"
        )
        lines.insert(-1, comment)
    return lines


def _what(format: Format, job: Job, export: Export) -> str:
    name = as_text(format.name)
    if export.tools:
        return f"{linked(job.subject)} as {name}: {format.what}."
    return (
        f"NOT a model yet: what makes {name} ({format.what}) of {linked(job.subject)}, where its "
        "tools run. Replace this card when that is done."
    )


def _origin(job: Job, export: Export) -> Iterator[str]:
    if RECIPE_NAME in export.beside:
        yield (
            "`recipe.yaml` says what was merged; `labkit merge --recipe recipe.yaml --out merged` "
            "makes the model again."
        )
    elif job.adapter:
        yield f"It belongs on the base model {linked(job.model)}, in any of llama.cpp's formats."
    elif (job.model.folder / RECIPE_NAME).is_file():
        yield "The merged model's own card says what it was merged of, and how it is prompted."


def _files(export: Export) -> Iterator[str]:
    yield from ("## Files", "", "| file | size | SHA-256 |", "|---|---:|---|")
    for name, size in export.files.items():
        yield f"| {as_text(name)} | {size / 1e9:.3f} GB | `{export.sha256[name]}` |"
    yield ""


def _measured(job: Job, export: Export) -> Iterator[str]:
    checked = export.checked
    yield from ("## What was measured", "")
    if checked is None:
        yield from ("Nothing: nobody ran it yet.", "")
        return
    tools = ", ".join(f"{name} {version}" for name, version in checked.tools.items())
    on = ", on the base in bfloat16" if job.adapter else ""
    yield (
        f"Run by {as_text(tools)}{on}, and compared with the merged model in {checked.reference}; "
        "95 % intervals, by document. KL is KL(merged ‖ this) of the next token over the whole "
        "vocabulary, in nats."
    )
    yield ""
    yield "| texts | tokens | KL | same token on top | NLL | NLL, less that of the merged model |"
    yield "|---|---:|---:|---:|---:|---:|"
    for one in checked.texts:
        yield (
            f"| {as_text(one.name)} | {one.tokens} | {_said(one.kl)} | {_said(one.top, True)} | "
            f"{one.nll.value:.3f} | {_said(one.nll_change)} |"
        )
    yield ""
    sentences = [
        f"Of {checked.steps} tokens that the merged model writes, always the most probable one, "
        f"{checked.greedy} would have been the same."
    ]
    if checked.same_tokens is not None:
        equal = "the same" if checked.same_tokens else "NOT the same"
        sentences.append(f"Texts are cut into {equal} tokens.")
    if checked.same_template is not None:
        equal = "is" if checked.same_template else "is NOT"
        sentences.append(f"The chat template {equal} the merged model's.")
    yield from (" ".join(sentences), "")


def _said(estimate: Estimate, share: bool = False) -> str:
    if share:
        return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"
    return f"{estimate.value:.4f} ({estimate.low:.4f} to {estimate.high:.4f})"


def _usage(export: Export) -> Iterator[str]:
    yield from ("## Usage", "", *fenced(export.usage, "bash"), "")


def _calibration(export: Export) -> Iterator[str]:
    if export.calibration:
        yield "## Calibration"
        yield ""
        begins = "Calibrated" if export.tools else "To be calibrated"
        yield (
            f"{begins} on {export.calibrated} tokens of {as_text(export.calibration)} (SHA-256 "
            f"`{export.calibration_sha256}`); nothing was measured on them."
        )
        yield ""


def _made(export: Export) -> Iterator[str]:
    from labkit import __version__

    yield from ("## How it was made", "")
    tools = ", ".join(f"{name} {version}" for name, version in export.tools.items())
    by = f", by {as_text(tools)}" if tools else ""
    yield from (f"{'Made' if tools else 'Prepared'} with labkit {__version__}{by}.", "")
    for note in export.notes:
        yield f"- {as_text(note)}"
    yield ""
