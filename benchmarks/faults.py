"""Disturbs merges at random moments, and checks what they leave.

uv run python -m benchmarks.faults                     all of it
uv run python -m benchmarks.faults --kill 200 --term 50 --interrupt 50 --full 20 --race 20
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.tiny import make_adapter, make_base

# Large enough that a merge reads, merges and writes for a while, small enough for hundreds.
SIZE = {"hidden_size": 256, "intermediate_size": 768, "layers": 4, "vocab_size": 1000}


class Bench:
    """A base, an adapter, and what undisturbed merges make of them."""

    def __init__(self, place: Path, **size: int) -> None:
        # Imported before the forks, so that signals find merges and not imports.
        for module in (
            "cli.app",
            "writing.write",
            "writing.card",
            "figures.gradient_figure",
            "figures.shown_figure",
        ):
            importlib.import_module(f"labkit.{module}")
        importlib.import_module("matplotlib.backends.backend_agg")
        importlib.import_module("matplotlib.figure")
        self.place = place
        settings = {**SIZE, **size}
        self.base = make_base(place / "base", shard="2MB", **settings)
        self.adapter = make_adapter(place / "adapter", self.base)
        self.layers = settings["layers"]
        self.base_digest = digest(self.base)
        self.out = place / "targets" / "merged"
        self.out.parent.mkdir()
        began = time.time()
        assert self.run("0.5", []) == 0
        self.old = digest(self.out)
        assert self.run("1", ["--overwrite"]) == 0
        self.whole = digest(self.out)
        self.seconds = (time.time() - began) / 2
        shutil.rmtree(self.out)

    def start(self, weight: str, options: list[str], out: Path | None = None) -> int:
        """Start `labkit merge` in a forked process; give back its number."""
        child = os.fork()
        if child:
            return child
        # A shell starts what runs in the background with Ctrl-C ignored, and a fork inherits that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # A fork has everything imported already: the signal finds the merge, not the imports.
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        log = os.open(self.place / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)  # not one that a test runner put there
        sys.argv = [
            "labkit", "merge", str(self.base), str(self.adapter), "--weights",
            f"{weight}x{self.layers}", "--out", str(out or self.out), "--quiet", "--device", "cpu",
            *options,
        ]  # fmt: skip
        # What the command `labkit` runs: a fork has no other way to be one.
        from labkit.cli import main

        try:
            main()
        except SystemExit as status:
            os._exit(status.code if isinstance(status.code, int) else 3)
        # A traceback would be a failure of the test, with a status of its own.
        except BaseException:  # noqa: BLE001
            os._exit(99)
        os._exit(0)

    def run(self, weight: str, options: list[str], out: Path | None = None) -> int:
        """Merge undisturbed; give back the exit status."""
        return wait(self.start(weight, options, out))

    def said(self) -> str:
        """What the last merge printed on standard error."""
        return (self.place / "stderr").read_text()

    def leftovers(self) -> list[str]:
        """Folders beside the target that a merge left."""
        return [path.name for path in self.out.parent.iterdir() if path.name != self.out.name]


def wait(child: int) -> int:
    """Wait for a process; its exit status, or minus its signal."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def digest(folder: Path) -> str:
    """The SHA-256 of a model: its tensors, config and index, by name."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in (
            "config.json",
            "model.safetensors.index.json",
        ):
            found.update(path.name.encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def disturb(bench: Bench, number: signal.Signals, count: int, seed: int = 0) -> Counter[str]:
    """Send a signal at random moments of a merge; check what is there, and merge again.

    Every second merge replaces an older model.
    """
    seen: Counter[str] = Counter()
    chance = random.Random(f"{number} {seed}")
    for case in range(count):
        shutil.rmtree(bench.out, ignore_errors=True)
        replaces = case % 2 == 1
        if replaces:
            assert bench.run("0.5", []) == 0, bench.said()
        child = bench.start("1", ["--overwrite"])
        time.sleep(chance.uniform(0, bench.seconds * 1.1))
        os.kill(child, number)
        status = wait(child)
        if number == signal.SIGKILL:
            assert status in (0, -9), status
        else:
            assert status in (0, 130), (status, bench.said())
            lines = bench.said().splitlines()
            one_line = len(lines) == 1 and lines[0].startswith("labkit: error: ")
            assert status == 0 or one_line, (status, bench.said())
            assert not bench.leftovers(), bench.leftovers()
        if not bench.out.exists():
            assert not replaces, "the old model is gone"
            state = "absent"
        else:
            found = digest(bench.out)
            assert found == bench.whole or (replaces and found == bench.old), "not whole"
            state = "whole" if found == bench.whole else "old"
        left = "something left to clean" if bench.leftovers() else "nothing left"
        seen[f"{state}, {left}"] += 1
        # Removing what the disturbed merge left, and merging as if nothing had been.
        assert bench.run("1", ["--overwrite"]) == 0, bench.said()
        assert not bench.leftovers(), bench.leftovers()
        assert digest(bench.out) == bench.whole
        assert digest(bench.base) == bench.base_digest
    return seen


def full(bench: Bench, count: int, seed: int = 0) -> Counter[str]:
    """Merge under limits of the size of a file (RLIMIT_FSIZE)."""
    seen: Counter[str] = Counter()
    chance = random.Random(f"full {seed}")
    largest = max(path.stat().st_size for path in bench.base.iterdir())
    for _ in range(count):
        shutil.rmtree(bench.out, ignore_errors=True)
        limit = chance.randrange(4096, largest)
        with limited(limit):
            status = bench.run("1", [])
        assert status == 2, (status, bench.said())
        assert "became larger than the system allows" in bench.said(), bench.said()
        assert len(bench.said().splitlines()) == 1
        assert not bench.out.exists()
        assert not bench.leftovers()
        assert digest(bench.base) == bench.base_digest
        seen["refused, nothing left"] += 1
    return seen


class limited:  # noqa: N801
    """A limit of the size of files for children; this process writes none."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def small_disk(bench: Bench) -> Counter[str]:
    """Merge to an ext4 file system in a file, too small for the model."""
    image, mounted = bench.place / "disk.img", bench.place / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate((1 << 20) + sum(p.stat().st_size for p in bench.base.iterdir()) * 6 // 10)
    make = ["mkfs.ext4", "-q", "-m0", "-O", "^has_journal", image]
    made = subprocess.run(make, check=False, capture_output=True)
    done = (
        made.returncode
        or subprocess.run(
            ["mount", "-o", "loop", image, mounted], check=False, capture_output=True
        ).returncode
    )
    if done:
        return Counter({"skipped: no loop mounts here": 1})
    try:
        out = mounted / "merged"
        # The forecast refuses it first; without the forecast the disk itself does.
        assert bench.run("1", [], out) == 2
        assert "make room" in bench.said(), bench.said()
        # The forecast is in the way here, and no user may switch it off.
        import labkit.writing.write

        labkit.writing.write.SPARE_BYTES = -(1 << 40)
        assert bench.run("1", [], out) == 2
        assert "the disk became full" in bench.said(), bench.said()
        assert sorted(p.name for p in mounted.iterdir()) in ([], ["lost+found"])
    finally:
        subprocess.run(["umount", mounted], check=False)
    return Counter({"refused, nothing left": 2})


def race(bench: Bench, count: int) -> Counter[str]:
    """Let two merges with different weights run to one target at once."""
    seen: Counter[str] = Counter()
    for case in range(count):
        shutil.rmtree(bench.out, ignore_errors=True)
        options = ["--overwrite"] if case % 2 else []
        children = [bench.start(weight, options) for weight in ("0.5", "1")]
        statuses = sorted(wait(child) for child in children)
        assert statuses in ([0, 0], [0, 2]), (statuses, bench.said())
        assert options or statuses == [0, 2], statuses
        assert digest(bench.out) in (bench.old, bench.whole)
        assert not bench.leftovers(), bench.leftovers()
        seen[f"{'overwriting' if options else 'new'}: one whole, exits {statuses}"] += 1
    return seen


def changed(bench: Bench, count: int, seed: int = 0) -> Counter[str]:
    """Change, cut or remove a file of the base or the adapter while a merge runs."""
    seen: Counter[str] = Counter()
    chance = random.Random(f"changed {seed}")
    files = [*sorted(bench.base.glob("*.safetensors")), bench.adapter / "adapter_model.safetensors"]
    for _ in range(count):
        shutil.rmtree(bench.out, ignore_errors=True)
        path = chance.choice(files)
        content = path.read_bytes()
        how = chance.choice(("touched", "cut", "removed", "replaced"))
        child = bench.start("1", [])
        time.sleep(chance.uniform(0, bench.seconds))
        if how == "touched":
            os.utime(path)
        elif how == "cut":
            os.truncate(path, len(content) // 2)
        elif how == "removed":
            path.unlink()
        else:
            beside = path.with_suffix(".new")
            beside.write_bytes(content)
            beside.rename(path)
        status = wait(child)
        # It was finished already, or had not opened the file yet, or it noticed.
        assert status in (0, 2), (how, status, bench.said())
        if status == 2:
            assert len(bench.said().splitlines()) == 1, bench.said()
            assert not bench.out.exists()
        else:
            assert digest(bench.out) == bench.whole
        assert not bench.leftovers()
        seen[f"{how}: {'noticed, nothing left' if status else 'merged what was there'}"] += 1
        path.write_bytes(content)
    return seen


def main() -> int:
    """Run the counts that the arguments ask for."""
    parser = argparse.ArgumentParser()
    kinds: dict[str, tuple[int, Callable[[Bench, int], Counter[str]]]] = {
        "kill": (200, lambda bench, n: disturb(bench, signal.SIGKILL, n, seed)),
        "term": (50, lambda bench, n: disturb(bench, signal.SIGTERM, n, seed)),
        "interrupt": (50, lambda bench, n: disturb(bench, signal.SIGINT, n, seed)),
        "hangup": (50, lambda bench, n: disturb(bench, signal.SIGHUP, n, seed)),
        "full": (20, full),
        "disk": (1, lambda bench, _: small_disk(bench)),
        "race": (20, race),
        "changed": (40, changed),
    }
    for name, (count, _) in kinds.items():
        parser.add_argument(f"--{name}", type=int, default=None, metavar=str(count))
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    seed = options.pop("seed")
    everything = all(value is None for value in options.values())
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place))
        print(f"a merge takes {bench.seconds:.2f} s", flush=True)
        for name, (count, run) in kinds.items():
            wanted = count if everything else options[name] or 0
            if wanted:
                seen = run(bench, wanted)
                print(f"{name}: {sum(seen.values())} {dict(seen)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
