"""Breaks small real models, adapters and recipes at random, and merges them.

Each case must end in one line of error (LabkitError) or in a merge: never in another exception, a
hang, memory out of proportion, or a byte written outside the output folder.

    uv run python -m benchmarks.fuzz --cases 20000 --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file

import labkit as lk

LONGEST_SECONDS = 30
MOST_MEMORY = 600 << 20
"""Bytes that one case may add to the process's peak."""
WEIRD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0,
    1e308, float("nan"), float("inf"), "", "0", "8", "LORA", "..", "../../x", "/etc/passwd",
    "/dev/zero", "a\nb", "\x1b[31mred", "<script>alert(1)</script>", "\u202egnp.exe", "\ud800",
    "\x00", "x" * 10_000, "(a+)+$", "(.*)*b", "((((a*)*)*)*)*c", "[", "a{99999}", "(?P<a>", [], {},
    [[]], [None], [-1], [0, 0], [2**62, 2**62], ["q_proj"], {"a": 1}, {"": []}, {"x": {"y": []}},
)  # fmt: skip


def make_samples(root: Path) -> dict[str, Path]:
    """Make the folders that are broken: name -> a folder with base/, adapter/ and recipe.yaml."""
    from tests.architectures import make_architecture
    from tests.oracle import train

    small = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 24}
    base = make_architecture(root / "llama", "llama", shard="12KB", **small)
    plain = train(root / "plain", base, r=2, target_modules="all-linear")
    rich = train(
        root / "rich", base, r=2, target_modules=["q_proj", "v_proj"], use_dora=True,
        modules_to_save=["lm_head", "norm"], trainable_token_indices={"embed_tokens": [3, 1]},
        rank_pattern={"v_proj": 3}, alpha_pattern={"q_proj": 5}, layers_to_transform=[0, 1],
    )  # fmt: skip
    samples = {}
    for name, adapter in (("plain", plain), ("rich", rich), ("bins", plain)):
        folder = root / "samples" / name
        shutil.copytree(base, folder / "base")
        shutil.copytree(adapter, folder / "adapter")
        if name == "bins":
            tensors = {}
            for path in (folder / "base").glob("*.safetensors*"):
                tensors |= load_file(path) if path.suffix == ".safetensors" else {}
                path.unlink()
            torch.save(tensors, folder / "base" / "pytorch_model.bin")
            path = folder / "adapter" / "adapter_model.safetensors"
            torch.save(load_file(path), path.with_suffix(".bin"))
            path.unlink()
        (folder / "recipe.yaml").write_text(
            "base: base\nrest: 0.5\nterms:\n- adapter: adapter\n  weights: 0.5, 1\n"
        )
        samples[name] = folder
    return samples


def broken(folder: Path, chance: random.Random) -> str:
    """Break one file of a folder; tell which and how."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    path = chance.choice(files)
    kind = path.suffix
    how = chance.random()
    what = ""
    # What was broken before may be no JSON any more; then its bytes are broken further.
    with suppress(ValueError, IndexError):
        if kind == ".json" and how < 0.75:
            content = json.loads(path.read_text())
            what = _change_value(content, chance)
            path.write_text(json.dumps(content), encoding="utf-8")
        elif kind == ".safetensors" and how < 0.6:
            what = _change_header(path, chance)
    what = what or _change_bytes(path, chance)
    return f"{path.relative_to(folder)}: {what}"


def _change_value(content: Any, chance: random.Random) -> str:
    places = list(_places(content))
    container, key = chance.choice(places)
    new = chance.choice(WEIRD)
    action = chance.random()
    if action < 0.1 and isinstance(container, dict):
        del container[key]
        return f"without {key!r}"
    if action < 0.2 and isinstance(container, dict):
        container[str(chance.choice(WEIRD))] = container.pop(key)
        return f"{key!r} renamed"
    if action < 0.25:
        nested: Any = []
        for _ in range(chance.choice((10, 500))):
            nested = [nested]
        container[key] = nested
        return f"{key!r} nested"
    container[key] = new
    return f"{key!r} = {str(new)[:40]!r}"


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items):
        yield content, key
        if isinstance(value, (dict, list)) and value:
            yield from _places(value)


def _change_header(path: Path, chance: random.Random) -> str:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    what = _change_value(header, chance)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return f"header, {what}"


def _change_bytes(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    how = chance.choice(("cut", "flip", "insert", "repeat", "empty", "length", "number"))
    # Most of what matters stands at the start of a file, or at the end of an archive.
    span = chance.choice((16, 300, len(data)))
    at = chance.randrange(min(span, len(data)) or 1)
    if path.suffix == ".bin" and chance.random() < 0.5:
        at = max(0, len(data) - 1 - at)
    if how == "cut":
        del data[at:]
    elif how == "flip" and data:
        for _ in range(chance.choice((1, 1, 4))):
            data[(at + chance.randrange(8)) % len(data)] ^= 1 << chance.randrange(8)
    elif how == "insert":
        data[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 7, 64))))
    elif how == "repeat":
        data[at:at] = data[at : at + 40]
    elif how == "empty":
        data.clear()
    elif how == "length":
        data[:8] = chance.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, 99_999_999)).to_bytes(
            8, "little"
        )
    else:  # a NaN or infinity somewhere in the numbers
        data[at : at + 4] = chance.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff" * 4))
    path.write_bytes(bytes(data))
    return f"{how} at {at}"


def one_case(samples: dict[str, Path], place: Path, chance: random.Random) -> tuple[str, str, str]:
    """Break something and merge it: how it ended, what was broken, and what was said."""
    name = chance.choice(sorted(samples))
    folder = place / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(samples[name], folder)
    what = f"{name} {broken(folder, chance)}"
    if chance.random() < 0.15:
        what += f", {broken(folder, chance)}"
    out = place / "out"
    before = _listing(place, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended, said = "merged", ""
    try:
        with _limited():
            resolved = lk.plan(lk.Recipe.load(folder / "recipe.yaml"))
            repr(resolved)
            resolved._repr_html_()
            repr(resolved.write(out, progress=False, device="cpu", hashes=chance.random() < 0.2))
    except lk.LabkitError as error:
        ended, said = "refused", str(error)
        if not said.isprintable() or len(said) > 2000:
            ended = "BAD MESSAGE"
    except TimeoutError:
        ended = "HANG"
    # Everything else is what the fuzzer looks for.
    except Exception:  # noqa: BLE001
        ended, said = "TRACEBACK", traceback.format_exc()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    if grown > MOST_MEMORY:
        ended = f"MEMORY {grown >> 20} MB"
    if _listing(place, out) != before:
        ended = "WROTE OUTSIDE"
    if ended == "refused" and out.exists():
        ended = "LEFT SOMETHING"
    shutil.rmtree(out, ignore_errors=True)
    return ended, what, said


def _listing(place: Path, out: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in place.rglob("*")
        if path.is_file() and out not in path.parents
    )


@contextmanager
def _limited() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def run(cases: int, seed: int, place: Path, show: bool = True) -> Counter[str]:
    """Run so many cases; count how they ended, and print what must not happen."""
    # The picture hangs on the weights alone, and drawing it would take most of the time.
    from labkit.figures import picture

    picture.picture_bytes = lambda _figure: b"picture"
    samples = make_samples(place / "made")
    ended: Counter[str] = Counter()
    began = time.time()
    for case in range(cases):
        chance = random.Random(f"{seed} {case}")
        result, what, said = one_case(samples, place, chance)
        ended[result] += 1
        if result not in ("merged", "refused"):
            print(f"case {case} (seed {seed}): {result}: {what}\n{said}", flush=True)
        if show and (case + 1) % 1000 == 0:
            print(f"{case + 1} cases in {time.time() - began:.0f} s: {dict(ended)}", flush=True)
    return ended


def main() -> int:
    """Run the cases that the arguments ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        ended = run(options.cases, options.seed, Path(place))
    print(f"{sum(ended.values())} cases: {dict(ended)}")
    return bool(set(ended) - {"merged", "refused"})


if __name__ == "__main__":
    sys.exit(main())
