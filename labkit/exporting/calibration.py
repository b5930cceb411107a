"""The texts that a format is calibrated on, and those that its check measures on.

Calibrating on the model's own domain decides much: 4-bit GPTQ loses twice as much on scripture when
it was calibrated on technical documents. A merge of the demo's LoRAs knows its domains by their
SHA-256 sums, and is calibrated on what they were trained on; the check has what they never saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from labkit.demonstration.base import adapter_folders
from labkit.demonstration.passages import demo_texts
from labkit.demonstration.stepwise import training_examples
from labkit.demonstration.texts import chapters
from labkit.errors import LabkitError, shown, spelled
from labkit.exporting.job import Format, Job
from labkit.files.direct_io import hash_file
from labkit.files.paths import user_path
from labkit.files.small_files import read_text
from labkit.inference.prompts import PLAIN
from labkit.merging.recipe import FILE_NAME as RECIPE_NAME
from labkit.merging.recipe import Recipe
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.models.model_files import ADAPTER_WEIGHTS
from labkit.probing.texts import Passage, Texts

SEQUENCES, LENGTH = 16, 256
"""How many sequences of how many tokens are read to calibrate."""
STEPWISE_SEED = 11
STEPWISE_EXAMPLES = 400
HELD_OUT = {"kjv": "scripture", "stepwise": "numbered steps"}
"""A demo's adapter -> the set of texts that it is to be good at, and never saw."""
GENERAL = "modern prose"


def own_domains(model: Checkpoint) -> list[str]:
    """The demo's adapters that a merge was made of, by the SHA-256 sums in its recipe."""
    path = model.folder / RECIPE_NAME
    if not path.is_file():
        return []
    said = read_text(path, "recipe")
    return [
        name
        for name, folder in adapter_folders().items()
        if hash_file(folder / ADAPTER_WEIGHTS) in said
    ]


def domains_of(recipe: Recipe) -> list[str]:
    """The demo's adapters that are terms of a recipe, by the SHA-256 sums of their files."""
    files = [term.source.file.path for term in recipe.terms if isinstance(term.source, Adapter)]
    return [
        name
        for name, folder in adapter_folders().items()
        if any(_same(folder / ADAPTER_WEIGHTS, path) for path in files)
    ]


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and hash_file(one) == hash_file(other)


def training_texts(names: Sequence[str]) -> Texts:
    """The text that adapters of the demo were trained on, in turns.

    Args:
        names: "kjv", "stepwise" or both.
    """
    sets = [list(_KINDS[name]()) for name in names]
    longest = max(map(len, sets))
    mixed = [one[i] for i in range(longest) for one in sets if i < len(one)]
    return Texts(" and ".join(f"the training text of {name}" for name in names), mixed)


def _scripture() -> Iterator[Passage]:
    for number, verses in enumerate(chapters("kjv_train.txt")):
        for start in range(0, len(verses), 9):
            yield Passage(" ".join(verses[start : start + 9]), document=f"kjv {number}")


def _steps() -> Iterator[Passage]:
    for number, one in enumerate(islice(training_examples(STEPWISE_SEED), STEPWISE_EXAMPLES)):
        yield Passage(one.answer, one.prompt, f"stepwise {number}", PLAIN)


_KINDS = {"kjv": _scripture, "stepwise": _steps}


def calibration_for(
    format: Format, name: str, domains: Sequence[str], given: Texts | str | Path | None
) -> Texts | None:
    """The texts to calibrate on.

    Args:
        format: the format.
        name: the merged model's.
        domains: the demo's adapters that it was made of.
        given: texts; a file of texts; "kjv" or "stepwise" for what an adapter of the demo was
            trained on; "none" for no calibration; or None for the texts of the merge's own
            domains, where they are known.

    Raises:
        LabkitError: texts for a format that takes none, none for one that needs some, or a file
            that is none.
    """
    if format.calibration == "never":
        if given is not None:
            raise LabkitError(
                f"{format.name} is not calibrated; leave "
                f"{spelled('calibration', '--calibration')} out"
            )
        return None
    if isinstance(given, Texts):
        return given
    if given is None:
        if domains:
            return training_texts(domains)
    elif str(given) in _KINDS:
        return training_texts([str(given)])
    elif str(given) != "none":
        return Texts.read(user_path(given))
    if format.calibration == "must":
        raise LabkitError(
            f"{format.name} must be calibrated, and what {shown(name)} is for is not known; "
            "give texts of its domain: a .txt or .jsonl file, with "
            f"{spelled('calibration', '--calibration')}"
        )
    return None


def check_texts(domains: Sequence[str], given: Texts | Sequence[Texts] | None) -> list[Texts]:
    """The texts that the check measures on: the domain's first, then general ones.

    Args:
        domains: the demo's adapters that the model was made of.
        given: sets of texts in their place.
    """
    if isinstance(given, Texts):
        return [given]
    if given is not None:
        return list(given)
    sets = demo_texts()
    return [sets[name] for name in (*(HELD_OUT[one] for one in domains), GENERAL)]


@dataclass(frozen=True)
class _Tokenizer:
    tokenizer: Any


def calibration_passages(texts: Texts, tokenizer: Any) -> list[str]:
    """The passages to calibrate on, as text, in an order that takes from all documents."""
    from labkit.probing.scores import prompt_of

    reader = _Tokenizer(tokenizer)
    drawn = texts.take(len(texts))
    return [(prompt_of(reader, one) if one.prompt else "") + one.text for one in drawn]


def calibration_tokens(
    job: Job, sequences: int = SEQUENCES, length: int = LENGTH
) -> list[list[int]]:
    """The tokens to calibrate on: sequences of a length, each of whole passages but the last one.

    What is cut off gives further sequences, once every passage has been read: so an ordinary file
    of one long passage gives as many as others. Fewer come out, or a shorter last one, where the
    texts are short.
    """
    from labkit.inference.loading import load_tokenizer

    if job.calibration is None:
        return []
    tokenizer = load_tokenizer(job.model)
    found: list[list[int]] = []
    cut_off: list[int] = []
    for text in calibration_passages(job.calibration, tokenizer):
        tokens = tokenizer(text).input_ids
        if not found or len(found[-1]) >= length:
            if len(found) == sequences:
                break
            found.append([])
        room = length - len(found[-1])
        found[-1] += tokens[:room]
        cut_off += tokens[room:]
    found += [cut_off[start : start + length] for start in range(0, len(cut_off), length)]
    return [sequence for sequence in found if sequence][:sequences]


def shortage(found: Sequence[Sequence[int]], wanted: int = SEQUENCES) -> tuple[str, ...]:
    """A note where texts gave fewer sequences to calibrate on than were wanted.

    Args:
        found: the sequences; none where there were no texts.
        wanted: how many were.
    """
    if not 0 < len(found) < wanted:
        return ()
    return (
        f"the calibration's texts gave {len(found)} of {wanted} sequences of {LENGTH} tokens; "
        "longer texts give more",
    )
