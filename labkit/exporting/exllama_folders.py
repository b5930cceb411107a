"""EXL3 and EXL2, the formats of ExLlama: folders for GPUs of Nvidia's.

ExLlama needs such a GPU to make them. Where it is, and the library too, labkit runs it; elsewhere
it writes the job, to be run there: the calibration, and a script that takes it and the merge.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from labkit.errors import LabkitError, shown
from labkit.exporting.calibration import calibration_passages, calibration_tokens
from labkit.exporting.job import Converted, Format, Job
from labkit.exporting.processes import run
from labkit.exporting.quantised_folders import READABLE, tidy
from labkit.machine import choose_device

BITS = 4.0
SCRIPT = "convert.sh"
ROWS, LENGTH = 100, 2048
"""How many sequences of how many tokens ExLlama calibrates on, at most."""
SHORT_LENGTH = 512
"""Tokens of EXL2's sequences, which must all be full."""


@dataclass(frozen=True)
class Maker:
    """One of the two ExLlamas.

    Attributes:
        package: its package and module.
        version: that which the script asks for.
        module: what converts.
        calibration: the name of the calibration's file.
    """

    package: str
    version: str
    module: str
    calibration: str


MAKERS = {
    "exl3": Maker(
        "exllamav3", "1.6.5", "exllamav3.conversion.convert_model", "calibration.safetensors"
    ),
    "exl2": Maker("exllamav2", "0.3.2", "exllamav2.conversion.convert_exl2", "calibration.parquet"),
}


def arguments(
    name: str, source: str, out: str, work: str, calibration: str, rows: int
) -> list[str]:
    """What the converter is told.

    Args:
        name: "exl3" or "exl2".
        source: the model's folder.
        out: the folder to write into.
        work: a folder for its own files.
        calibration: the calibration's file; empty for the library's own texts.
        rows: how many sequences it gives.
    """
    said = ["-i", source, "-b", str(BITS)]
    if name == "exl3":
        said += ["-w", work, "-o", out]
        return [*said, "-cd", calibration, "-cr", str(rows)] if calibration else said
    said += ["-o", work, "-cf", out]
    if not calibration:
        return said
    lengths = ["-l", str(SHORT_LENGTH), "-ml", str(SHORT_LENGTH)]
    return [*said, "-c", calibration, "-r", str(rows), "-mr", str(min(rows, 16)), *lengths]


def script(name: str, calibration: str, rows: int) -> str:
    """The script that makes the export where a GPU is."""
    maker = MAKERS[name]
    path = f"$here/{calibration}" if calibration else ""
    told = " ".join(
        f'"{one}"' if "$" in one else one
        for one in arguments(name, "$1", "$out", "$out-work", path, rows)
    )
    return f"""#!/bin/sh
# Makes an {name.upper()} export on a machine with a GPU of Nvidia's and CUDA's compiler (nvcc):
#     sh {SCRIPT} FOLDER_OF_THE_MERGED_MODEL NEW_FOLDER
set -e
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
out=${{2%/}}
mkdir -p "$out" "$out-work"
exec uv run --no-project --isolated --with {maker.package}=={maker.version} \\
    python -m {maker.module} {told}
"""


def convert(name: str, job: Job) -> Converted:
    """Have ExLlama convert, or write the job for a machine that can.

    Args:
        name: "exl3" or "exl2".
        job: what to convert.

    Raises:
        LabkitError: ExLlama fails; or the texts are too short to calibrate on.
    """
    maker = MAKERS[name]
    gpu = choose_device("auto") == "cuda"
    here = gpu and find_spec(maker.package) is not None
    folder = job.work if here else job.out
    rows, tokens = _write_calibration(name, job, folder / maker.calibration)
    calibration = maker.calibration if rows else ""
    if not here:
        (folder / SCRIPT).write_text(script(name, calibration, rows), encoding="utf-8")
        return Converted(
            files=(*([calibration] if calibration else []), SCRIPT),
            runs=".",
            usage=shlex.join(["sh", SCRIPT, f"path/to/{job.model.name}", f"{job.name}-{name}"]),
            tools={},
            peak_memory=0,
            processor_seconds=0.0,
            calibrated=tokens,
            notes=(
                f"not converted: {maker.package} needs a GPU of Nvidia's, and "
                f"{'it' if gpu else 'one'} is not here; {SCRIPT} makes "
                "the export where both are",
            ),
        )
    made, own = job.work / "made", job.work / "own"
    made.mkdir()
    own.mkdir()
    found = str(folder / calibration) if calibration else ""
    done = run(
        "exllama_convert",
        {
            "package": maker.package,
            "module": maker.module,
            "arguments": arguments(name, str(job.staged), str(made), str(own), found, rows),
        },
        job.work / "convert",
        f"{maker.package}'s conversion",
        job.go_on,
    )
    return Converted.by(
        done,
        files=tidy(job, made),
        runs=".",
        usage="python main.py --model_dir .  # TabbyAPI",
        calibrated=tokens,
    )


def _write_calibration(name: str, job: Job, path: Path) -> tuple[int, int]:
    """Write the calibration's file, if there are texts.

    Returns:
        how many sequences it gives, and how many tokens.
    """
    if job.calibration is None:
        return 0, 0
    sequences = calibration_tokens(job, ROWS, LENGTH)
    tokens = sum(map(len, sequences))
    if name == "exl3":
        _write_tokens(sequences, path)
        return len(sequences), tokens
    # ExLlama cuts the texts itself; a sequence less, as it may find fewer tokens than labkit.
    rows = min(ROWS, tokens // SHORT_LENGTH - 1)
    if rows < 1:
        raise LabkitError(
            f"the texts {shown(job.calibration.name)!r} have {tokens} tokens, and EXL2 is "
            f"calibrated on {2 * SHORT_LENGTH} or more; give longer texts"
        )
    import pandas as pd

    from labkit.inference.loading import load_tokenizer

    passages = calibration_passages(job.calibration, load_tokenizer(job.model))
    pd.DataFrame({"text": passages}).to_parquet(path)
    return rows, rows * SHORT_LENGTH


def _write_tokens(sequences: list[list[int]], path: Path) -> None:
    """Write rows of tokens as ExLlama reads them: padded on the right, with their lengths."""
    import torch
    from safetensors.torch import save_file

    longest = max(map(len, sequences))
    rows = torch.tensor([one + [0] * (longest - len(one)) for one in sequences])
    save_file({"input_ids": rows, "lengths": torch.tensor([len(one) for one in sequences])}, path)
    path.chmod(READABLE)


def _missing(name: str) -> str:
    if name == "exl2" and find_spec("pyarrow") is None:
        return "pyarrow, which writes its calibration, is not installed; pip install pyarrow"
    return ""


def _format(name: str, what: str) -> Format:
    return Format(
        name=name,
        what=what,
        needs="pyarrow" if name == "exl2" else "a GPU of Nvidia's, now or later",
        missing=partial(_missing, name),
        calibration="may",
        bits=4.1,
        bits_outside=16,
        convert=partial(convert, name),
        answer=None,
        library=MAKERS[name].package,
        tags=(name,),
    )


FORMATS = (
    _format("exl3", "4 bits a weight for ExLlamaV3 and TabbyAPI"),
    _format("exl2", "4 bits a weight for ExLlamaV2, which EXL3 follows"),
)
