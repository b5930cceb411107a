"""Compares labkit's methods with mergekit's, on tiny models of two architectures in float32.

With `--extract` it compares LoRAs out of models instead, on the demo with its LoRA kjv merged: the
share of `‖ΔW‖²` that the factors keep over all matrices of the layers, and what each program takes.
With `--extract 1b` that is a model of random weights in TinyLlama's shape with a random LoRA of
rank 16 merged, and `--layers N` gives it N layers; `--folder` says where all of it is written.

mergekit goes into an environment of its own, since its pins are older than labkit's:

    uv venv mk && uv pip install --python mk/bin/python mergekit==0.1.5
    uv run python -m benchmarks.against_mergekit mk/bin/mergekit-yaml

For each method: the largest difference of a number in the layers, and the norm of all differences
beside that of the change. `dare` is compared at density 1; at others the two draw otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import labkit as lk
from benchmarks.merge import SHAPES, make_adapter, make_checkpoint
from tests.merging.methods.dense import make_pair, numbers_of

FIRST, SECOND = [1.0, 0.25, 0.5], [0.5, 0.75, 2.0]
TIES = {"ties": {"density": 0.3, "convention": "mergekit"}}
CASES = {
    "linear": ("linear", FIRST, SECOND),
    "slerp": ("slerp", [0.3] * 3, None),
    "ties": (TIES, FIRST, SECOND),
    "ties, second negative": (TIES, FIRST, [-weight for weight in SECOND]),
    "dare_linear": ({"dare": {"density": 1.0}}, FIRST, SECOND),
}
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.\d+\.")


def at_an_angle(base: Path, folder: Path) -> Path:
    """A model that is not nearly parallel to the base."""
    shutil.copytree(base, folder)
    for path in folder.glob("*.safetensors"):
        turned = {name: 0.7 * v + 0.4 * v.roll(1, 0) for name, v in load_file(path).items()}
        save_file(turned, path, metadata={"format": "pt"})
    return folder


def by_labkit(base: Path, models: list[Path], case: str, out: Path) -> Path:
    """Merge full models with labkit."""
    method, *gradients = CASES[case]
    terms = [
        lk.Term(lk.Checkpoint(model), lk.Gradient(gradient))
        for model, gradient in zip(models, gradients, strict=False)
        if gradient
    ]
    lk.plan(lk.Recipe(base, terms, 0.3, "float32", method=method)).write(out, progress=False)
    return out


def by_mergekit(program: str, base: Path, models: list[Path], case: str, out: Path) -> Path:
    """Merge the same with mergekit."""
    name = case.split(",")[0]
    content: dict[str, object] = {"merge_method": name, "dtype": "float32"}
    if name == "slerp":
        content |= {"models": [{"model": str(base)}, {"model": str(models[0])}]}
        content |= {"parameters": {"t": CASES[case][1][0]}}
    else:
        density = {} if name == "linear" else {"density": 0.3 if name == "ties" else 1.0}
        content["models"] = [
            {"model": str(model), "parameters": {"weight": gradient, **density}}
            for model, gradient in zip(models, CASES[case][1:], strict=True)
        ]
    if name != "linear":
        content["base_model"] = str(base)
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(content))
    command = [program, str(config), str(out), "--no-copy-tokenizer"]
    subprocess.run(command, check=True, capture_output=True)
    return out


def compare_extraction(program: Path, size: str, few: int | None, place: Path | None) -> None:
    """Extract LoRAs with both programs: of ranks 8 and 16 from the demo, else of rank 16."""
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder = Path(temporary)
        model = folder / "model"
        if size == "demo":
            base, loras = lk.demo()
            adapter: lk.Adapter = loras["kjv"]
        else:
            make_checkpoint(folder / "base", size, few)
            make_adapter(folder / "lora", size, few=few)
            base, adapter = lk.Checkpoint(folder / "base"), lk.Adapter(folder / "lora")
        lk.plan(base, adapter, [1.0] * base.layers).write(model, progress=False)
        for rank in (8, 16) if size == "demo" else (16,):
            ours, theirs = folder / f"ours{rank}", folder / f"theirs{rank}"
            commands = {
                ours: [sys.executable, "-m", "labkit", "extract", model, base.folder,
                       "--rank", rank, "--out", ours, "--quiet"],
                theirs: [program, "--model", model, "--base-model", base.folder,
                         "--max-rank", rank, "--out-path", theirs, "--quiet",
                         *([] if size == "demo" else ["--no-copy-tokenizer"])],
            }  # fmt: skip
            for out, command in commands.items():
                memory, seconds = resources_of([str(word) for word in command])
                print(
                    f"rank {rank}, {out.name}: {share_kept(out, base.folder, model):.4%} kept, "
                    f"{memory / 1e9:.2f} GB, {seconds:.0f} s of processor time",
                    flush=True,
                )


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
"""
"""Runs a command from a small process: the peak of a large one counts as that of its children."""


def resources_of(command: list[str]) -> tuple[int, float]:
    """Run a command; give its peak memory in bytes, and its processor time."""
    said = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], check=True, capture_output=True, text=True
    ).stdout
    memory, seconds = said.split()
    return int(memory) * 1024, float(seconds)


def tensors_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model, one after another."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                yield name, file.get_tensor(name)


def share_kept(adapter: Path, base: Path, model: Path) -> float:
    """The share of `‖ΔW‖²` that a LoRA's factors keep, over the matrices of the layers."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    stored = load_file(adapter / "adapter_model.safetensors")
    whole = left = 0.0
    for (name, old), (same, new) in zip(tensors_of(base), tensors_of(model), strict=True):
        if name != same:
            raise ValueError(f"{name} of the base, {same} of the model")
        if new.ndim != 2 or not LAYER.search(name):
            continue
        module = name.removesuffix(".weight")
        a, b = (
            stored[f"base_model.model.{module}.lora_{which}.weight"].double().numpy()
            for which in "AB"
        )
        patterns = config.get("alpha_pattern", {}), config.get("rank_pattern", {})
        alpha, rank = (
            pattern.get(module, default)
            for pattern, default in zip(patterns, (config["lora_alpha"], config["r"]), strict=True)
        )
        change = (new.double() - old.double()).numpy()
        whole += float(np.sum(change**2))
        left += float(np.sum((change - alpha / rank * (b @ a)) ** 2))
    return 1 - left / whole


def main() -> None:
    """Compare all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mergekit", help="the program mergekit-yaml")
    parser.add_argument(
        "--extract", nargs="?", const="demo", choices=["demo", *SHAPES], help="LoRAs out of models"
    )
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder else")
    given = parser.parse_args()
    program = str(Path(given.mergekit).absolute())
    if given.extract:
        extracting = Path(program).with_name("mergekit-extract-lora")
        compare_extraction(extracting, given.extract, given.layers, given.folder)
        return
    for architecture in ("llama", "gpt2"):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            base, *adapters = make_pair(folder, architecture)
            full = [folder / "one", folder / "two"]
            for adapter, out in zip(adapters, full, strict=True):
                lk.plan(base, adapter, "1x3", dtype="float32").write(out, progress=False)
            turned = at_an_angle(base, folder / "turned")
            for number, case in enumerate(CASES):
                models = [turned] if case == "slerp" else full
                ours = numbers_of(by_labkit(base, models, case, folder / f"ours{number}"))
                theirs = numbers_of(
                    by_mergekit(program, base, models, case, folder / f"theirs{number}")
                )
                theirs |= {n.removeprefix("transformer."): v for n, v in theirs.items()}
                names = [name for name in ours if LAYER.search(name)]
                apart = [ours[name] - theirs[name] for name in names]
                old = numbers_of(base)
                change = [ours[name] - old[name] for name in names]
                norms = [np.sqrt(sum(np.sum(one**2) for one in some)) for some in (apart, change)]
                largest = max(float(np.abs(one).max()) for one in apart)
                print(
                    f"{architecture}, {case}: largest difference {largest:.1e}, "
                    f"{norms[0] / norms[1]:.1e} of the change"
                )


if __name__ == "__main__":
    main()
