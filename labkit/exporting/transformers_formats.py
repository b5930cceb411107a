"""GPTQ, AWQ, FP8 and W4A16: folders of safetensors that transformers and vLLM read.

GPT-QModel makes GPTQ and AWQ, and llm-compressor FP8 and W4A16. transformers reads them all, each
in the environment of its tool.

- GPTQ: Frantar et al., "GPTQ", 2022, arXiv 2210.17323.
- AWQ: Lin et al., "AWQ: Activation-aware Weight Quantization", 2023, arXiv 2306.00978.
"""

from __future__ import annotations

import sys
from functools import partial

from labkit.exporting.asking import ask
from labkit.exporting.calibration import SEQUENCES, calibration_tokens, shortage
from labkit.exporting.environments import (
    in_environment_of,
    make_environment,
    missing_packages,
    missing_uv,
)
from labkit.exporting.job import Answers, Converted, Format, Job, Questions
from labkit.exporting.processes import run
from labkit.exporting.quantised_folders import group_size, tidy
from labkit.machine import choose_device, workers

PACKAGES = {"gptqmodel": "gptqmodel", "optimum": "optimum"}
"""What the extra `labkit[gptq]` brings: module -> package."""
LLM_COMPRESSOR = "llmcompressor==0.14.0.1"
GROUP_SIZES = (128, 64, 32)
FEWER_SEQUENCES = {"awq": 8}
"""Fewer than the others calibrate on: AWQ reads them again for each scale that it tries."""
USAGE = "vllm serve ."


def convert_by_gptqmodel(method: str, job: Job) -> Converted:
    """Quantise to 4 bits by GPT-QModel.

    Args:
        method: "gptq" or "awq".
        job: what to convert.

    Raises:
        LabkitError: no group size fits the model, or GPT-QModel does not know it.
    """
    return _converted(
        job,
        "gptqmodel_convert",
        {
            "method": method,
            "group_size": group_size(job.model, GROUP_SIZES),
            "device": choose_device("auto"),
        },
        "GPT-QModel's conversion",
        (sys.executable,),
    )


def convert_by_llm_compressor(scheme: str, job: Job) -> Converted:
    """Quantise by llm-compressor, in an environment that uv makes.

    Args:
        scheme: "FP8_DYNAMIC" or "W4A16".
        job: what to convert.

    Raises:
        LabkitError: uv cannot make the environment, no group size fits the model, or llm-compressor
            does not know it.
    """
    command = in_environment_of(LLM_COMPRESSOR)
    make_environment(command, "llm-compressor", job.work / "environment", job.go_on)
    size = group_size(job.model, GROUP_SIZES) if scheme == "W4A16" else None
    return _converted(
        job,
        "llm_compressor_convert",
        {"scheme": scheme, "group_size": size},
        "llm-compressor's conversion",
        command,
    )


def _converted(
    job: Job, worker: str, told: dict[str, object], what: str, command: tuple[str, ...]
) -> Converted:
    made = job.work / "made"
    count = FEWER_SEQUENCES.get(str(told.get("method")), SEQUENCES)
    sequences = calibration_tokens(job, count)
    asked = {
        "source": str(job.staged),
        "out": str(made),
        "calibration": sequences,
        "threads": workers(),
        **told,
    }
    done = run(worker, asked, job.work / "convert", what, job.go_on, command)
    size = told["group_size"]
    return Converted.by(
        done,
        files=tidy(job, made),
        runs=".",
        usage=USAGE,
        calibrated=sum(map(len, sequences)),
        notes=(
            *([f"{size} weights in a row share a scale"] if size else []),
            *shortage(sequences, count),
        ),
    )


def answer(
    packages: tuple[str, ...],
    command: tuple[str, ...],
    job: Job,
    converted: Converted,
    questions: Questions,
) -> Answers:
    """Ask transformers, on the CPU and in float32.

    Args:
        packages: what transformers reads the weights by.
        command: the Python of the environment that has them.
        job: the export.
        converted: what was made.
        questions: what to ask.

    Raises:
        LabkitError: transformers cannot load the folder.
    """
    told = {"model": str(job.out), "threads": workers(), "packages": packages}
    folder = job.work / "answer"
    what = "transformers"
    return ask("transformers_answer", told, questions, folder, what, job.go_on, command)


def _by_gptqmodel(method: str, what: str) -> Format:
    return Format(
        name=method,
        what=what,
        needs="labkit[gptq]",
        missing=partial(missing_packages, PACKAGES, "gptq"),
        calibration="must",
        bits=4.7,
        bits_outside=16,
        convert=partial(convert_by_gptqmodel, method),
        answer=partial(answer, ("gptqmodel",), (sys.executable,)),
        tags=(method, "4-bit"),
    )


def _by_llm_compressor(name: str, scheme: str, calibration: str, bits: float, what: str) -> Format:
    command = in_environment_of(LLM_COMPRESSOR)
    return Format(
        name=name,
        what=what,
        needs="uv",
        missing=missing_uv,
        calibration=calibration,
        bits=bits,
        bits_outside=16,
        seconds=13 if calibration == "never" else 0,
        convert=partial(convert_by_llm_compressor, scheme),
        answer=partial(answer, ("compressed-tensors",), command),
        tags=("compressed-tensors", "llm-compressor", name),
    )


FORMATS = (
    _by_gptqmodel("gptq", "4 bits a weight, by GPTQ, for transformers and vLLM"),
    _by_gptqmodel("awq", "4 bits a weight, by AWQ, for transformers and vLLM"),
    _by_llm_compressor(
        "fp8", "FP8_DYNAMIC", "never", 8.1,
        "8-bit floats, weights and what enters them, for vLLM on GPUs that calculate with them",
    ),
    _by_llm_compressor(
        "w4a16", "W4A16", "may", 4.7, "4 bits a weight in compressed-tensors, for vLLM"
    ),
)  # fmt: skip
