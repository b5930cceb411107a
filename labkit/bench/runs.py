"""The runs of a lab: every gradient that was tried, what was asked, and what came of it.

A run is a gradient, a question and two texts. It is kept beside the lab's state, so that it is
there again when the kernel is not. Base, full LoRA and the best constant stand beside the runs in
every table: a gradient that is no better than a constant says little about layers.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.bench.journal import Entry, Journal
from labkit.errors import LabkitError, shown
from labkit.gradients.gradient import Gradient
from labkit.inference.live_model import LiveModel, Mix
from labkit.merging.recipe import Term
from labkit.probing.evaluation import BASE, FULL
from labkit.probing.intervals import Estimate
from labkit.probing.text_plane import Pair, Reading

if TYPE_CHECKING:
    import pandas as pd

MOST = 200
"""Runs without a star that are kept; of more, the oldest are forgotten."""
LONGEST_NAME = 60
BEST = "best constant"
RUN, VOTE = "run", "vote"
"""The kinds of entries in the file."""

VOTE_COLUMNS = (
    "time", "first", "first_gradient", "second", "second_gradient", "prompt", "format", "tokens",
    "temperature", "seed", "first_was", "vote", "first_answer", "second_answer",
)  # fmt: skip

Weights = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
"""For each adapter its gradient, and (pattern, gradient) of the modules that have their own."""
Turn = tuple[str, str, str, str]
"""What was said before in a conversation: the prompt, and what base, merge and full LoRA said."""


@dataclass(frozen=True)
class Question:
    """What the models were asked.

    Attributes:
        prompt: as it was written.
        format: the prompt's format.
        tokens: the longest answer.
        temperature: 0 always takes the most probable token.
        seed: of the random numbers.
        turns: what was said before, in a conversation.
    """

    prompt: str
    format: str
    tokens: int
    temperature: float
    seed: int
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Run:
    """A gradient that was tried.

    Attributes:
        key: what it is known by, for as long as it is kept.
        name: its name in the table.
        weights: the gradients.
        texts: name and SHA-256 of the two texts, as `Texts.sha256`.
        question: what was asked; None where only its point was measured.
        answer: what the merge answered.
        seconds: that the answer took.
        readings: its point, once it was measured.
        time: when it was tried first, in seconds since 1970.
        starred: whether it is never forgotten.
        kind: "run", or the name of a row that is always there.
    """

    key: str
    name: str
    weights: Weights
    texts: tuple[tuple[str, str], ...]
    question: Question | None = None
    answer: str = ""
    seconds: float = math.nan
    readings: Pair | None = None
    time: float = math.nan
    starred: bool = False
    kind: str = RUN

    @property
    def gradient(self) -> str:
        """All its gradients in one line, with runs of one weight written once."""
        said = []
        for adapter, (weights, patterns) in enumerate(self.weights):
            of = f"{adapter + 1} " if len(self.weights) > 1 else ""
            own = [f"{of}{pattern}: {gradient}" for pattern, gradient in patterns]
            first = f"{of}all modules: {weights}" if own or of else weights
            said += [first, *own]
        return "; ".join(said)

    @property
    def mean_weight(self) -> float:
        """The mean of all weights of its gradients for all modules."""
        means = [Gradient.parse(weights).mean for weights, _ in self.weights]
        return sum(means) / len(means)


def weights_of(terms: Sequence[Term]) -> Weights:
    """The gradients of a recipe's terms, in `Gradient.runs` notation."""
    return tuple(
        (
            term.weights.runs(),
            tuple((name, each.runs()) for name, each in sorted(term.weights_for.items())),
        )
        for term in terms
    )


def terms_of(run: Run, terms: Sequence[Term]) -> list[Term]:
    """A run's gradients, as terms of the same sources as those given.

    Raises:
        LabkitError: a run of another number of adapters.
    """
    if len(run.weights) != len(terms):
        raise LabkitError(
            f"{shown(run.name)} has gradients of {len(run.weights)} adapters, and the lab has "
            f"{len(terms)}"
        )
    return [
        Term(
            term.source,
            Gradient.parse(weights),
            {pattern: Gradient.parse(own) for pattern, own in patterns},
        )
        for term, (weights, patterns) in zip(terms, run.weights, strict=True)
    ]


def mix_of(run: Run, model: LiveModel, terms: Sequence[Term]) -> Mix:
    """A run's mixture for a live model; base and full LoRA are so outside the layers, too.

    Raises:
        LabkitError: as `terms_of`, or gradients of another length.
    """
    return model.mix(terms_of(run, terms) if run.kind == RUN else run.mean_weight)


@dataclass
class Runs:
    """All runs of a lab, in the order in which they were tried.

    Args:
        path: the file that keeps them; it need not exist yet.

    Attributes:
        always: the rows that are always there, by their names: base, full LoRA, best constant.
    """

    path: Path
    always: dict[str, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._journal = Journal(self.path, _worth_keeping, 4 * MOST)
        self._lock = threading.RLock()
        self._runs: dict[str, Run] = {}
        self.votes: list[Entry] = []
        for entry in self._journal.entries():
            if entry.get("kind") == VOTE:
                whole = set(VOTE_COLUMNS) <= entry.keys()
                if whole and isinstance(entry["time"], (int, float)):
                    self.votes.append(entry)
                continue
            with suppress(LabkitError, KeyError, TypeError, ValueError, AttributeError):
                run = _read_run(entry)
                # Two labs at a time can have given one name twice.
                names = {one.name for one in self._runs.values() if one.key != run.key}
                while run.name in names:
                    run = replace(run, name=f"{run.name}\u2032")
                self._runs[run.key] = run

    def __iter__(self) -> Iterator[Run]:
        with self._lock:
            return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, key: str) -> Run:
        """A run, or a row that is always there, by its key.

        Raises:
            LabkitError: there is none.
        """
        found = self._runs.get(key) or self.always.get(key)
        if found is None:
            raise LabkitError(f"there is no run {shown(key)!r} any more")
        return found

    def found(
        self, weights: Weights, texts: tuple[tuple[str, str], ...], question: Question | None
    ) -> Run | None:
        """The run of these gradients, texts and this question; or of these, without a question."""
        alike = self._alike(weights, texts)
        asked = [one for one in alike if one.question == question]
        return next(iter([*asked, *(one for one in alike if one.question is None)]), None)

    def heard(
        self,
        weights: Weights,
        texts: tuple[tuple[str, str], ...],
        question: Question,
        answer: str,
        seconds: float,
    ) -> Run:
        """Keep an answer; of a run whose point was measured without a question, it is the first."""
        with self._lock:
            run = self.found(weights, texts, question)
            if run is not None and run.question is not None:
                return run  # the same dice give the same answer
            known = next((one for one in self._alike(weights, texts) if one.readings), None)
            run = run or self._new(weights, texts)
            readings = run.readings or (known and known.readings)
            new = {"question": question, "answer": answer, "seconds": seconds}
            return self._put(replace(run, readings=readings, **new))  # type: ignore[arg-type]

    def measured(
        self, weights: Weights, texts: tuple[tuple[str, str], ...], readings: Pair
    ) -> None:
        """Keep the point of a gradient, with every run that has it."""
        with self._lock:
            alike = self._alike(weights, texts) or [self._new(weights, texts)]
            for run in alike:
                if run.readings is None:
                    self._put(replace(run, readings=readings))

    def rename(self, key: str, name: str) -> None:
        """Give a run another name.

        Raises:
            LabkitError: no such run, or a name that is empty, too long or another run's.
        """
        with self._lock:
            run, name = self._own(key), name.strip()
            if not name or len(name) > LONGEST_NAME or not name.isprintable():
                raise LabkitError(f"a run's name has 1 to {LONGEST_NAME} characters of one line")
            if name in (BASE, FULL, BEST) or any(
                one.name == name and one.key != key for one in self
            ):
                raise LabkitError(f"{shown(name)!r} is the name of another run; choose another")
            self._put(replace(run, name=name))

    def star(self, key: str, starred: bool) -> None:
        """Say whether a run is never forgotten.

        Raises:
            LabkitError: no such run.
        """
        with self._lock:
            self._put(replace(self._own(key), starred=starred))

    def vote(self, entry: Mapping[str, Any]) -> None:
        """Keep a vote of a blind listening."""
        kept = {"kind": VOTE, **entry}
        self.votes.append(kept)
        self._journal.add(kept)

    def frame(self) -> pd.DataFrame:
        """The runs as a table: base, full LoRA and best constant, then all others by time.

        Returns:
            a row for each run: `name`, `kind`, `starred`, `gradient` (for each adapter and kind of
            modules that has its own), `mean_weight`, `prompt`, `format`, `tokens`, `temperature`,
            `seed`, `turns` (of a conversation, before the prompt), `answer`, `seconds` (that the
            answer took), `time` (UTC); for `first` and `second` text each `_text`, `_sha256`,
            `_nll`, `_low`, `_high` (nats per token, 95 %), `_from_base`, `_from_base_low`,
            `_from_base_high` (less the base's, paired); `kl`, `kl_low`, `kl_high` (to the base, on
            the second text).
        """
        import pandas as pd

        rows = [_row(run) for run in (*self.always.values(), *self)]
        frame = pd.DataFrame(rows, columns=list(_row(_NOTHING)))
        frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
        return frame

    def _alike(self, weights: Weights, texts: tuple[tuple[str, str], ...]) -> list[Run]:
        return [one for one in self if (one.weights, one.texts) == (weights, texts)]

    def _new(self, weights: Weights, texts: tuple[tuple[str, str], ...]) -> Run:
        names = {one.name for one in self}
        number = len(names) + 1
        while f"run {number}" in names:
            number += 1
        now = datetime.now(UTC).timestamp()
        return Run(secrets.token_hex(6), f"run {number}", weights, texts, time=now)

    def _own(self, key: str) -> Run:
        run = self[key]
        if run.kind != RUN:
            raise LabkitError(f"{run.name} is always there, under its name")
        return run

    def _put(self, run: Run) -> Run:
        self._runs[run.key] = run
        plain = [one.key for one in self if not one.starred]
        for key in plain[: max(0, len(plain) - MOST)]:
            del self._runs[key]
        self._journal.add(_written(run))
        return run


_NOTHING = Run("", "", (("0", ()),), (("", ""), ("", "")))


def _row(run: Run) -> dict[str, Any]:
    question = run.question or Question("", "", 0, math.nan, 0)
    asked = run.question is not None
    row: dict[str, Any] = {
        "name": run.name,
        "kind": run.kind,
        "starred": run.starred,
        "gradient": run.gradient,
        "mean_weight": run.mean_weight,
        "prompt": question.prompt if asked else None,
        "format": question.format if asked else None,
        "tokens": question.tokens if asked else math.nan,
        "temperature": question.temperature,
        "seed": question.seed if asked else math.nan,
        "turns": len(question.turns),
        "answer": run.answer if asked else None,
        "seconds": run.seconds,
        "time": run.time,
    }
    for number, place in enumerate(("first", "second")):
        name, sha256 = run.texts[number]
        reading = run.readings[number] if run.readings else None
        row |= {f"{place}_text": name, f"{place}_sha256": sha256}
        mean, change = (reading.mean, reading.from_base) if reading else (None, None)
        row |= _interval(f"{place}_nll", f"{place}_", mean)
        row |= _interval(f"{place}_from_base", f"{place}_from_base_", change)
    return row | _interval("kl", "kl_", run.readings[1].divergence if run.readings else None)


def _interval(name: str, ends: str, estimate: Estimate | None) -> dict[str, float]:
    found = estimate or Estimate(math.nan, math.nan, math.nan)
    return {name: found.value, f"{ends}low": found.low, f"{ends}high": found.high}


def _written(run: Run) -> Entry:
    # JSON has no word for "not a number".
    return asdict(run) | {"seconds": None if math.isnan(run.seconds) else run.seconds}


def _read_run(entry: Entry) -> Run:
    """A run as the file has it.

    Raises:
        LabkitError, KeyError, TypeError, ValueError, AttributeError: an entry of another form.
    """
    asked, readings = entry["question"], entry["readings"]
    if asked is not None:
        turns = tuple(_strings(turn, 4) for turn in asked["turns"])
        asked = Question(
            str(asked["prompt"]), str(asked["format"]), int(asked["tokens"]),
            float(asked["temperature"]), int(asked["seed"]), turns,
        )  # fmt: skip
    if readings is not None:
        one, other = (_read_reading(each) for each in readings)
        readings = one, other
    weights = tuple(
        (
            Gradient.parse(str(each)).runs(),
            tuple((str(name), Gradient.parse(str(own)).runs()) for name, own in patterns),
        )
        for each, patterns in entry["weights"]
    )
    first, second = (_strings(text, 2) for text in entry["texts"])
    seconds = math.nan if entry["seconds"] is None else float(entry["seconds"])
    return Run(
        str(entry["key"]), str(entry["name"]), weights, (first, second), asked,
        str(entry["answer"]), seconds, readings, float(entry["time"]), bool(entry["starred"]),
    )  # fmt: skip


def _read_reading(entry: Entry) -> Reading:
    reading = Reading(
        tuple(map(str, entry["documents"])),
        *(tuple(map(float, entry[name])) for name in ("tokens", "nll", "base", "kl")),
    )
    lengths = {len(reading.documents), len(reading.tokens), len(reading.nll), len(reading.base)}
    if len(lengths) != 1 or len(reading.kl) not in (0, *lengths) or not sum(reading.tokens) > 0:
        raise ValueError("sums of other passages")
    return reading


def _strings(found: Sequence[Any], count: int) -> Any:
    if len(found) != count:
        raise ValueError(f"expected {count} texts")
    return tuple(map(str, found))


def _worth_keeping(entries: Sequence[Entry]) -> list[Entry]:
    """The last entry of each run with a star, and of the latest others; all votes."""
    votes = [one for one in entries if one.get("kind") == VOTE]
    runs: dict[str, Entry] = {}
    for entry in entries:
        if entry.get("kind") == RUN:
            runs[str(entry.get("key"))] = entry
    plain = [key for key, entry in runs.items() if entry.get("starred") is not True]
    for key in plain[: max(0, len(plain) - MOST)]:
        del runs[key]
    return [*votes, *runs.values()]
