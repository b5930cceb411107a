"""What a format is, what its converter is told, and what converter and runtime answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit.exporting.processes import Done
from labkit.models.adapter import Adapter
from labkit.models.checkpoint import Checkpoint
from labkit.probing.texts import Texts


@dataclass(frozen=True)
class Job:
    """One export, as its converter and its runtime are told of it.

    Attributes:
        model: the merged model; where a LoRA is exported, its base.
        name: what the export's files are called after.
        staged: a folder with the model's weights as links, and copies of its config and tokenizer;
            none of labkit's files, and no code.
        out: the folder to write into.
        work: a folder for whatever else is written; it is removed at the end.
        calibration: texts to calibrate on; None where there are none, or the format takes none.
        adapter: the LoRA that is exported; None where it is the model.
        go_on: is called several times a second while others work; what it raises ends the export.
    """

    model: Checkpoint
    name: str
    staged: Path
    out: Path
    work: Path
    calibration: Texts | None = None
    adapter: Adapter | None = None
    go_on: Callable[[], None] = lambda: None

    @property
    def subject(self) -> Adapter | Checkpoint:
        """What is exported."""
        return self.adapter or self.model


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        files: the names of the files in `Job.out`.
        runs: the name of the one that a runtime is given; "." for the folder.
        usage: how to run it, as lines for a shell.
        tools: the tools that made it: name -> version.
        peak_memory: bytes of memory, at most.
        processor_seconds: processor time.
        calibrated: tokens that were read to calibrate.
        notes: what is worth knowing of it.
    """

    files: tuple[str, ...]
    runs: str
    usage: str
    tools: dict[str, str]
    peak_memory: int
    processor_seconds: float
    calibrated: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def by(
        cls,
        done: Done,
        files: tuple[str, ...],
        runs: str,
        usage: str,
        calibrated: int = 0,
        notes: tuple[str, ...] = (),
    ) -> Converted:
        """What a process made: its tools, its memory and its time, and what else there is to say.

        Args:
            done: the process.
            files: as in the attributes, and so are all others.
            runs: likewise.
            usage: likewise.
            calibrated: likewise.
            notes: likewise.
        """
        tools, peak, seconds = done.result["tools"], done.peak_memory, done.processor_seconds
        return cls(files, runs, usage, tools, peak, seconds, calibrated, notes)


@dataclass(frozen=True)
class Questions:
    """What a runtime is asked of a converted model.

    Attributes:
        sequences: rows of tokens to read, each from its own beginning.
        texts: texts to cut into tokens.
    """

    sequences: Sequence[Sequence[int]]
    texts: Sequence[str]


@dataclass(frozen=True)
class Answers:
    """What a runtime said of a converted model.

    Attributes:
        log_probabilities: a `.npy` file for each sequence: natural logarithms, float32, of shape
            tokens × vocabulary. Row i is what is expected after token i.
        tokens: the tokens of each text; None where the runtime reads the model's own tokenizer.
        chat_template: the template that travels with the weights; None where the runtime reads the
            model's own file.
        tools: the runtime: name -> version.
    """

    log_probabilities: Sequence[Path]
    tokens: Sequence[Sequence[int]] | None
    chat_template: str | None
    tools: dict[str, str]


@dataclass(frozen=True)
class Format:
    """A format that a merged model can be exported to.

    Attributes:
        name: its name, in small letters.
        what: what it is, in a sentence for whoever chooses.
        needs: what must be there: the extra `labkit[gguf]`, or a program.
        missing: says what of that is not there; nothing if all is.
        calibration: "never", "may" or "must".
        bits: for each weight, about; what the forecast of the disk counts with.
        narrow_bits: likewise for models with rows that are no multiple of 256 wide, where they take
            others; 0 where they take the same.
        bits_outside: for each weight outside the layers (embeddings, head); 0 where it is the same.
        seconds: of processor time for a billion weights, about; 0 where that was not measured.
        convert: writes the export.
        answer: asks the runtime that people use; None where labkit knows none on this machine.
        library: what the hub calls the library that loads it.
        tags: what it is found by on the hub.
    """

    name: str
    what: str
    needs: str
    missing: Callable[[], str]
    calibration: str
    bits: float
    convert: Callable[[Job], Converted]
    answer: Callable[[Job, Converted, Questions], Answers] | None
    narrow_bits: float = 0
    bits_outside: float = 0
    seconds: float = 0
    library: str = "transformers"
    tags: tuple[str, ...] = field(default=())
