"""Measures a converted model against the merge: by the runtime that people use.

The merge is read by transformers, in float32 where that fits into memory. What the runtime expects
after every token is compared with what the merge does, over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabkitError, shown
from labkit.probing.intervals import Bootstrap, Estimate
from labkit.probing.texts import Passage, Texts

if TYPE_CHECKING:
    from labkit.exporting.job import Answers, Questions
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
        """As the receipt has it."""
        return asdict(self)

    @property
    def notes(self) -> list[str]:
        """What is wrong with tokenizer and template."""
        found = []
        if self.same_tokens is False:
            found.append("the runtime cuts texts into other tokens than the merge's tokenizer")
        if self.same_template is False:
            found.append("the chat template in the export is not the merge's")
        return found


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
            if counts.any() and len(rows) < PASSAGES:
                passages.append(passage)
                rows.append(tokens[:TOKENS])
                counted.append(counts)
        if not rows:
            raise LabkitError(
                f"the texts {shown(texts.name)!r} have nothing to predict in the first {TOKENS} "
                "tokens of a passage; give others"
            )
        drawn.append(Drawn(texts, tuple(passages), rows, counted))
    return drawn


def questions_for(drawn: Sequence[Drawn], greedy: Sequence[int]) -> Questions:
    """What the runtime is asked: to read all passages, and then the merge's own text."""
    from labkit.exporting.job import Questions

    return Questions(
        sequences=[*(row for one in drawn for row in one.tokens), greedy],
        texts=[passage.text for one in drawn for passage in one.passages],
    )


def go_on(model: LiveModel, drawn: Sequence[Drawn]) -> list[int]:
    """The merge's own text: the beginning of the first passage, and how the merge goes on.

    It takes the most probable token at each step, past an end token too.
    """
    import torch

    found = drawn[0].tokens[0][:PROMPT]
    tokens, cache = torch.tensor([found]), None
    for _ in range(STEPS):
        output = model.forward(tokens, cache=cache)
        cache = output.past_key_values
        found = [*found, int(output.logits[0, -1].argmax())]
        tokens = torch.tensor([found[-1:]])
    return found


def compare(
    model: LiveModel,
    dtype: str,
    drawn: Sequence[Drawn],
    questions: Questions,
    answers: Answers,
) -> Checked:
    """Compare what the runtime said with what the merge says.

    Args:
        model: the merge.
        dtype: what it is read in.
        drawn: the passages.
        questions: what the runtime was asked.
        answers: what it said.

    Raises:
        LabkitError: the export has another number of tokens than the merge.
    """
    rows = iter(answers.log_probabilities)
    texts = tuple(_compared(model, one, [next(rows) for _ in one.tokens]) for one in drawn)
    greedy = np.array(questions.sequences[-1])
    found = np.load(next(rows)).argmax(-1)
    same = (found[:-1] == greedy[1:])[-STEPS:]
    tokens = answers.tokens
    template = getattr(model.tokenizer, "chat_template", None)
    return Checked(
        texts=texts,
        greedy=int(same.sum()),
        steps=len(same),
        same_tokens=None
        if tokens is None
        else [model.tokens(text)[0].tolist() for text in questions.texts] == list(tokens),
        same_template=None
        if tokens is None or not isinstance(template, str)
        else answers.chat_template == template,
        reference=dtype,
        tools=answers.tools,
    )


def _compared(model: LiveModel, drawn: Drawn, files: Sequence[Any]) -> CheckedText:
    import torch

    counts, columns = [], []
    for tokens, counted, file in zip(drawn.tokens, drawn.counted, files, strict=True):
        found = torch.from_numpy(np.load(file)[:-1][counted]).double()
        merge = (
            model.forward(torch.tensor([tokens])).logits[0, :-1].cpu()[torch.from_numpy(counted)]
        )
        merge = merge.double().log_softmax(-1)
        if merge.shape != found.shape:
            raise LabkitError(
                f"the export has {found.shape[1]} tokens, and the merge {merge.shape[1]}"
            )
        wanted = torch.tensor(tokens[1:])[torch.from_numpy(counted)][:, None]
        kl = (merge.exp() * (merge - found)).sum()
        top = (merge.argmax(-1) == found.argmax(-1)).sum()
        nll, nll_merge = (-one.gather(1, wanted).sum() for one in (found, merge))
        counts.append(float(counted.sum()))
        columns.append([float(one) for one in (kl, top, nll, nll_merge)])
    sums = np.array(columns)
    draws = Bootstrap([one.document for one in drawn.passages], np.array(counts))
    kl, top, nll, nll_merge = (draws.estimate(sums[:, i]) for i in range(4))
    return CheckedText(
        name=drawn.texts.name,
        sha256=drawn.texts.sha256,
        passages=len(drawn.passages),
        tokens=int(sum(counts)),
        kl=kl,
        top=top,
        nll=nll,
        nll_merge=nll_merge,
        nll_change=draws.estimate(sums[:, 2] - sums[:, 3]),
    )
