"""Compares labkit's methods with mergekit's, on tiny models of two architectures in float32.

mergekit goes into an environment of its own, since its pins are older than labkit's:

    uv venv mk && uv pip install --python mk/bin/python mergekit==0.1.5
    uv run python -m benchmarks.against_mergekit mk/bin/mergekit-yaml

For each method: the largest difference of a number in the layers, and the norm of all differences
beside that of the change. `dare` is compared at density 1; at others the two draw otherwise.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import yaml
from safetensors.torch import load_file, save_file

import labkit as lk
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


def main() -> None:
    """Compare all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mergekit", help="the program mergekit-yaml")
    program = str(Path(parser.parse_args().mergekit).absolute())
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
