"""GGUF, the format of llama.cpp, Ollama, LM Studio and others.

llama.cpp's own converter and quantisers do the work (`workers/gguf_convert.py`), and llama.cpp
answers (`workers/llama_answer.py`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from labkit.exporting.asking import ask
from labkit.exporting.calibration import calibration_tokens, shortage
from labkit.exporting.environments import missing_packages
from labkit.exporting.job import Answers, Converted, Format, Job, Questions
from labkit.exporting.processes import Done, run
from labkit.machine import workers

PACKAGES = {
    "auto_round": "auto-round",
    "gguf": "gguf",
    "sentencepiece": "sentencepiece",
    "xllamacpp": "xllamacpp",
}
"""What the extra `labkit[gguf]` brings: module -> package."""

missing = partial(missing_packages, PACKAGES, "gguf")
"""Says what is not installed; nothing if all is."""


def convert(kind: str, job: Job) -> Converted:
    """Write a GGUF file.

    Args:
        kind: llama.cpp's name of the file's type, such as "Q4_K_M".
        job: what to convert.

    Raises:
        LabkitError: the converter does not know the model or its tokenizer.
    """
    file = f"{job.name}-{kind}.gguf"
    sequences = calibration_tokens(job)
    done = write_model(kind, job, job.out / file, job.work / "convert", sequences)
    types = done.result["types"]
    mixed = ", ".join(f"{count} of {name}" for name, count in sorted(types.items()))
    return Converted.by(
        done,
        files=(file,),
        runs=file,
        usage=shlex.join(["llama-cli", "-m", file]),
        calibrated=sum(map(len, sequences)),
        notes=(*([f"tensors: {mixed}"] if mixed else []), *shortage(sequences)),
    )


def write_model(
    kind: str, job: Job, path: Path, folder: Path, sequences: Sequence[Sequence[int]] = ()
) -> Done:
    """Let llama.cpp's converter write a model's file.

    Args:
        kind: as `convert` takes it.
        job: what to convert.
        path: the file.
        folder: a folder to make for the process.
        sequences: rows of tokens to calibrate on.

    Raises:
        LabkitError: as `convert` does.
    """
    from labkit.inference.loading import dtype_that_fits

    return run(
        "gguf_convert",
        {
            "source": str(job.staged),
            "out": str(path),
            "kind": kind,
            "name": job.name,
            "threads": workers(),
            "calibration": list(sequences),
            "calibration_name": job.calibration.name if job.calibration else "",
            "dtype": dtype_that_fits(job.model, ())[0] if sequences else "",
        },
        folder,
        "llama.cpp's conversion",
        job.go_on,
    )


def answer(job: Job, converted: Converted, questions: Questions) -> Answers:
    """Ask llama.cpp.

    Raises:
        LabkitError: it cannot load the file.
    """
    return ask_llama(job.out / converted.runs, job.work / "answer", questions, job.go_on)


def ask_llama(
    model: Path,
    folder: Path,
    questions: Questions,
    go_on: Callable[[], None],
    adapter: Path | None = None,
) -> Answers:
    """Ask a GGUF file in llama.cpp, perhaps with a LoRA on it.

    Raises:
        LabkitError: it cannot load a file.
    """
    told = {
        "model": str(model),
        "adapter": str(adapter) if adapter else None,
        "texts": list(questions.texts),
        "threads": workers(),
    }
    return ask("llama_answer", told, questions, folder, "llama.cpp", go_on)


def _format(
    kind: str, bits: float, narrow_bits: float, seconds: float, calibration: str, what: str
) -> Format:
    return Format(
        name=f"gguf-{kind.lower()}",
        what=what,
        needs="labkit[gguf]",
        missing=missing,
        calibration=calibration,
        bits=bits,
        narrow_bits=narrow_bits,
        seconds=seconds,
        convert=partial(convert, kind),
        answer=answer,
        library="gguf",
        tags=("gguf", "llama.cpp"),
    )


FORMATS = (
    _format("BF16", 16.1, 0, 9, "never", "GGUF with all the bits of a bfloat16 model"),
    _format("Q8_0", 8.6, 0, 10, "never", "GGUF, 8.5 bits a weight: hardly to be told from it"),
    _format("Q6_K", 6.7, 8.6, 40, "may", "GGUF, 6.6 bits a weight"),
    _format("Q5_K_M", 5.8, 6.9, 65, "may", "GGUF, 5.7 bits a weight"),
    _format("Q4_K_M", 5.0, 6.6, 65, "may", "GGUF, 4.8 bits a weight: usual on small machines"),
)
