"""MLX: folders that mlx-lm and LM Studio read, on Macs with Apple's processors.

mlx-lm makes them, and answers, on Linux too.
"""

from __future__ import annotations

import sys

from labkit.exporting.asking import ask
from labkit.exporting.environments import in_environment_of, make_environment, missing_uv
from labkit.exporting.job import Answers, Converted, Format, Job, Questions
from labkit.exporting.processes import run
from labkit.exporting.quantised_folders import group_size, tidy

PACKAGES = ("mlx-lm==0.32.2", "mlx==0.32.4" if sys.platform == "darwin" else "mlx[cpu]==0.32.4")
GROUP_SIZES = (64, 32)
"""mlx-lm's usual one first."""


def convert(job: Job) -> Converted:
    """Quantise to 4 bits by mlx-lm, in an environment that uv makes.

    Raises:
        LabkitError: uv cannot make the environment, no group size fits the model, or mlx-lm does
            not know it.
    """
    command = in_environment_of(*PACKAGES)
    make_environment(command, "mlx-lm", job.work / "environment", job.go_on)
    size, made = group_size(job.model, GROUP_SIZES), job.work / "made"
    done = run(
        "mlx_convert",
        {"source": str(job.staged), "out": str(made), "group_size": size},
        job.work / "convert",
        "mlx-lm's conversion",
        job.go_on,
        command,
    )
    return Converted.by(
        done,
        files=tidy(job, made),
        runs=".",
        usage="mlx_lm.chat --model .",
        notes=(f"{size} weights in a row share a scale",),
    )


def answer(job: Job, converted: Converted, questions: Questions) -> Answers:
    """Ask mlx-lm.

    Raises:
        LabkitError: mlx-lm cannot load the folder.
    """
    told, command = {"model": str(job.out)}, in_environment_of(*PACKAGES)
    folder = job.work / "answer"
    return ask("mlx_answer", told, questions, folder, "mlx-lm", job.go_on, command)


FORMATS = (
    Format(
        name="mlx",
        what="4 bits a weight for MLX, embeddings too: mlx-lm and LM Studio on Macs",
        needs="uv",
        missing=missing_uv,
        calibration="never",
        bits=4.6,
        seconds=1,
        convert=convert,
        answer=answer,
        library="mlx",
        tags=("mlx", "4-bit"),
    ),
)
