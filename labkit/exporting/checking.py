"""Measures a converted model against the merge: by the runtime that people use.

The merge is read by transformers, in float32 where that fits into memory. What the runtime expects
after every token is compared with what the merge does, over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.exporting.job import Answers, Questions
from labkit.probing.intervals import Bootstrap, Estimate
from labkit.probing.texts import Passage, Texts

if TYPE_CHECKING:
    from labkit.inference.live_model import LiveModel

PASSAGES, TOKENS = 12, 96
"""Passages of each set of texts that are read, and tokens of each, at most."""
PROMPT, STEPS = 32, 48
"""Tokens of the first passage that are gone on from, and how far."""


@dataclass(frozen=True)
class CheckedText:
    """What was measured on one set of texts, each for a token, with 95 % intervals.

    Attributes:
        name: of the texts.
        sha256: of all of them.
        passages: how many were read.
        tokens: how many tokens counted.
        kl: `KL(merge ‖ export)` of the next token, in nats.
        top: the share of tokens at which both find the same token most probable.
        nll: the export's NLL, in nats.
        nll_merge: the merge's.
        nll_change: the difference of the two, paired passage by passage.
    """

    name: str
    sha256: str
    passages: int
    tokens: int
    kl: Estimate
    top: Estimate
    nll: Estimate
    nll_merge: Estimate
    nll_change: Estimate


@dataclass(frozen=True)
class Checked:
    """What the check of an export found.

    Attributes:
        texts: what was measured on each set of texts; that of the merge's domain first.
        greedy: at how many tokens of the merge's own text, which takes the most probable token at
            each step, the export would have taken the same. If it is all of them, the export writes
            the same text.
        steps: of how many.
        same_tokens: whether the runtime cuts all passages into the same tokens; None where it reads
            the merge's own tokenizer.
        same_template: whether the chat template is the merge's; None likewise, or for a merge that
            has none.
        reference: what the merge was read in: "float32".
        tools: the runtime: name -> version.
    """

    texts: tuple[CheckedText, ...]
    greedy: int
    steps: int
    same_tokens: bool | None
    same_template: bool | None
    reference: str
    tools: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As the receipt has it; of one document there is no interval, which JSON calls null."""
        return asdict(self, dict_factory=_without_nan)

    @property
    def notes(self) -> list[str]:
        """What is wrong with tokenizer and template."""
        found = []
        if self.same_tokens is False:
            found.append("the runtime cuts texts into other tokens than the merge's tokenizer")
        if self.same_template is False:
            found.append("the chat template in the export is not the merge's")
        return found


def _without_nan(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in pairs
    }


@dataclass(frozen=True)
class Drawn:
    """The passages of one set that are read, as rows of tokens.

    Attributes:
        texts: the set.
        passages: those that are read.
        tokens: the tokens of each.
        counted: for each token whether the one after it counts.
    """

    texts: Texts
    passages: tuple[Passage, ...]
    tokens: list[list[int]]
    counted: list[np.ndarray]


def draw(model: LiveModel, sets: Sequence[Texts], calibration: Texts | None) -> list[Drawn]:
    """Draw the passages that are read; none that the export was calibrated on.

    Raises:
        LabkitError: a set of which nothing is left.
    """
    from labkit.probing.scores import UNCOUNTED, tokens_and_labels

    known = {one.text for one in calibration} if calibration else set()
    drawn = []
    for texts in sets:
        fresh = [one for one in texts if one.text not in known]
        if not fresh:
            raise LabkitError(
                f"the export is calibrated on all passages of {shown(texts.name)!r}, and would be "
                "measured on nothing else; give other texts for one of the two"
            )
        passages: list[Passage] = []
        rows: list[list[int]] = []
        counted: list[np.ndarray] = []
        for passage in Texts(texts.name, fresh).take(len(fresh)):
            tokens, labels = tokens_and_labels(model, passage)
            counts = np.array(labels[1:TOKENS]) != UNCOUNTED
            if counts.any():
                passages.append(passage)
                rows.append(tokens[:TOKENS])
                counted.append(counts)
            if len(rows) == PASSAGES:
                break
        if not rows:
            raise LabkitError(
                f"the texts {shown(texts.name)!r} have nothing to predict in the first {TOKENS} "
                "tokens of a passage; give others"
            )
        drawn.append(Drawn(texts, tuple(passages), rows, counted))
    return drawn


def listen(
    model: LiveModel, drawn: Sequence[Drawn], folder: Path, go_on: Callable[[], None]
) -> tuple[Questions, Answers]:
    """What the runtime is asked, and what the merge says to it.

    Asked is to read all passages, and then the merge's own text: the beginning of the first passage
    and how the merge goes on, with the most probable token at each step, past an end token too.

    Args:
        model: the merge. After this it is not needed any more: the runtime has the memory then.
        drawn: the passages.
        folder: a folder to make, for what the merge expects.
        go_on: is called before each passage and each token; `Job.go_on`.
    """
    import torch

    own = _own_text(model, drawn[0].tokens[0][:PROMPT], go_on)
    questions = Questions(
        sequences=[*(row for one in drawn for row in one.tokens), own],
        texts=[passage.text for one in drawn for passage in one.passages],
    )
    folder.mkdir()
    files = []
    for number, tokens in enumerate(questions.sequences):
        go_on()
        logits = model.forward(torch.tensor([tokens])).logits[0].cpu()
        files.append(folder / f"{number}.npy")
        np.save(files[-1], logits.double().log_softmax(-1).float().numpy())
    template = getattr(model.tokenizer, "chat_template", None)
    return questions, Answers(
        log_probabilities=files,
        tokens=[model.tokens(text)[0].tolist() for text in questions.texts],
        chat_template=template if isinstance(template, str) else None,
        tools={},
    )


def _own_text(model: LiveModel, start: list[int], go_on: Callable[[], None]) -> list[int]:
    import torch

    found = start
    tokens, cache = torch.tensor([found]), None
    for _ in range(STEPS):
        go_on()
        output = model.forward(tokens, cache=cache)
        cache = output.past_key_values
        found = [*found, int(output.logits[0, -1].argmax())]
        tokens = torch.tensor([found[-1:]])
    return found


def compare(
    drawn: Sequence[Drawn], questions: Questions, merge: Answers, export: Answers, dtype: str
) -> Checked:
    """Compare what the runtime said with what the merge said.

    Args:
        drawn: the passages.
        questions: what both were asked.
        merge: what the merge said.
        export: what the runtime said.
        dtype: what the merge was read in.

    Raises:
        LabkitError: the export has another number of tokens than the merge.
    """
    files = iter(zip(merge.log_probabilities, export.log_probabilities, strict=True))
    texts = tuple(_compared(one, [next(files) for _ in one.tokens]) for one in drawn)
    own = np.array(questions.sequences[-1])
    _, last = next(files)
    same = (np.load(last).argmax(-1)[:-1] == own[1:])[-STEPS:]
    has_own = export.tokens is not None
    return Checked(
        texts=texts,
        greedy=int(same.sum()),
        steps=len(same),
        same_tokens=export.tokens == merge.tokens if has_own else None,
        same_template=export.chat_template == merge.chat_template
        if has_own and merge.chat_template is not None
        else None,
        reference=dtype,
        tools=export.tools,
    )


def _compared(drawn: Drawn, files: Sequence[tuple[Path, Path]]) -> CheckedText:
    rows = []
    for tokens, counted, pair in zip(drawn.tokens, drawn.counted, files, strict=True):
        # Row i is what is expected after token i; the last one says nothing of the passage.
        merge, export = (np.load(file)[:-1][counted].astype(np.float64) for file in pair)
        if merge.shape != export.shape:
            raise LabkitError(
                f"the export has {export.shape[1]} tokens, and the merge {merge.shape[1]}"
            )
        place = np.arange(len(merge)), np.array(tokens[1:])[counted]
        rows.append(
            [
                float((np.exp(merge) * (merge - export)).sum()),
                float((merge.argmax(-1) == export.argmax(-1)).sum()),
                float(-export[place].sum()),
                float(-merge[place].sum()),
            ]
        )
    sums = np.array(rows)
    counts = np.array([float(counted.sum()) for counted in drawn.counted])
    draws = Bootstrap([one.document for one in drawn.passages], counts)
    kl, top, nll, nll_merge = (draws.estimate(sums[:, i]) for i in range(4))
    return CheckedText(
        name=drawn.texts.name,
        sha256=drawn.texts.sha256,
        passages=len(drawn.passages),
        tokens=int(counts.sum()),
        kl=kl,
        top=top,
        nll=nll,
        nll_merge=nll_merge,
        nll_change=draws.estimate(sums[:, 2] - sums[:, 3]),
    )
