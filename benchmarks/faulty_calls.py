"""Lets each system call of a merge fail once, and every read be short; checks what is left.

uv run python -m benchmarks.faulty_calls               every call
uv run python -m benchmarks.faulty_calls --cases 40    so many of them

The calls fail in a small C library that is compiled here (gcc, Linux) and loaded before the
system's. Each merge ends in a whole model, verified, or in one line and with nothing left.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.faults import Bench, digest, wait

SMALL = {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "vocab_size": 64}
FAULTS = (
    ("read", errno.EIO), ("write", errno.EIO), ("write", errno.ENOSPC), ("truncate", errno.EIO),
    ("fsync", errno.EIO), ("fsync", errno.EINVAL), ("close", errno.EIO), ("open", errno.EACCES),
    ("mkdir", errno.EACCES), ("rename", errno.EACCES), ("rename", errno.EIO),
    ("unlink", errno.EACCES),
)  # fmt: skip
"""Which calls fail, and with which error."""


def compiled(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "faulty_calls.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True
    )
    return library


class FaultyBench(Bench):
    """Merges in whose processes one call fails."""

    def __init__(self, place: Path) -> None:
        super().__init__(place, **SMALL)
        self.library = ctypes.CDLL(None)
        self.library.fault_calls.restype = ctypes.c_long
        self.folders = "".join(
            f"{path}:" for path in (self.base, self.adapter, self.out.parent)
        ).encode()

    def merge(self, kind: str, number: int, error: int, replaces: bool) -> int:
        """Merge once while a call fails; give back the exit status."""
        shutil.rmtree(self.out, ignore_errors=True)
        if replaces:
            assert self.run("0.5", []) == 0
        fail = (kind.encode(), ctypes.c_long(number), error, self.folders)
        self.library.fault(*fail)
        child = self.start("1", ["--overwrite"] if replaces else [])
        status = wait(child)
        self.calls = self.library.fault_calls()
        self.library.fault(b"", ctypes.c_long(0), 0, b"")
        return status

    def outcome(self, status: int, replaces: bool) -> str:
        """Check what is there after a merge; say it."""
        said = self.said()
        assert digest(self.base) == self.base_digest
        if status == 0:
            assert digest(self.out) == self.whole, "not whole"
            self.require_hashes()
            assert not self.leftovers() or "left" in said, (self.leftovers(), said)
            return "whole"
        assert status == 2, (status, said)
        assert len(said.splitlines()) == 1, said
        assert said.startswith("labkit: error: "), said
        assert not self.leftovers() or "left" in said, (self.leftovers(), said)
        if replaces:
            assert self.out.exists(), f"the old model is gone: {said}"
            assert digest(self.out) == self.old, f"refused, but there: {said}"
        else:
            assert not self.out.exists(), f"refused, but there: {said}"
        return "refused"

    def require_hashes(self) -> None:
        """Check that the receipt's SHA-256 are those of the files."""
        receipt = json.loads((self.out / "receipt.json").read_text())
        for name, expected in receipt["files_written"].items():
            assert hashlib.sha256((self.out / name).read_bytes()).hexdigest() == expected, name
        for name, expected in receipt["files_read"].items():
            folder = self.base if (self.base / name).exists() else self.adapter
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name


def run(bench: FaultyBench, most: int | None) -> tuple[Counter[str], list[str]]:
    """Run the cases, or so many of them; count the ends, and collect what must not happen."""
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    cases = [("short", 1, 0, False), ("short", 1, 0, True)]
    for replaces in (False, True):
        for kind, error in FAULTS:
            bench.merge(kind, 0, error, replaces)
            cases += [(kind, number, error, replaces) for number in range(1, bench.calls + 1)]
    if most is not None and len(cases) > most:
        step = (len(cases) - 2) / (most - 2)
        cases = cases[:2] + [cases[2 + int(step * number)] for number in range(most - 2)]
    for kind, number, error, replaces in cases:
        status = bench.merge(kind, number, error, replaces)
        name = f"{kind} {errno.errorcode.get(error, '')}"
        try:
            end = bench.outcome(status, replaces)
            assert kind != "short" or (end == "whole" and bench.calls > 10)
        except AssertionError as failure:
            end = "WRONG"
            how = "replacing" if replaces else "new"
            wrong.append(f"{name} number {number}, {how}: {failure}")
            for path in bench.out.parent.iterdir():
                shutil.rmtree(path, ignore_errors=True)
        seen[f"{name}: {end}"] += 1
    return seen, wrong


def main() -> int:
    """Run the cases that the arguments ask for, in a process with the library in front."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if "faulty_calls" not in os.environ.get("LD_PRELOAD", ""):
            environment = os.environ | {"LD_PRELOAD": str(compiled(Path(place)))}
            command = [sys.executable, "-m", "benchmarks.faulty_calls", *sys.argv[1:]]
            return subprocess.run(command, env=environment, check=False).returncode
        seen, wrong = run(FaultyBench(Path(place)), options.cases)
    for name, count in sorted(seen.items()):
        print(f"{count:5} {name}")
    print(f"{seen.total()} cases, {len(wrong)} wrong", *wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
