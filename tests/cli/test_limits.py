"""Processes with too little memory or too few threads, terminals that lack letters, odd names."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys

import pytest

THREADLESS = """
import threading

def start(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = start
from labkit.cli import main
main()
"""


def labkit(arguments, code="from labkit.cli import main; main()", **options):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        errors="surrogateescape",
        **options,
    )


def merge(base, adapter, out, **options):
    arguments = ["merge", base, adapter, "--weights", "0.5,1,1,0", "--out", out, "--device", "cpu"]
    return labkit([*arguments, "--quiet"], **options)


def require_one_line(done):
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("labkit: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("megabytes", [150, 250, 350, 450, 550, 650])
def test_too_little_memory_is_said_and_leaves_nothing(tiny_base, tiny_adapter, tmp_path, megabytes):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    done = merge(tiny_base, tiny_adapter, tmp_path / "out", preexec_fn=limit)
    if done.returncode:
        said = require_one_line(done)
        assert "too little memory" in said
        assert "ulimit -v" in said
        assert not list(tmp_path.iterdir())


def test_too_few_threads_are_said_and_leave_nothing(tiny_base, tiny_adapter, tmp_path):
    done = merge(tiny_base, tiny_adapter, tmp_path / "out", code=THREADLESS)
    assert "may start too few threads" in require_one_line(done)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_some_letters(tiny_base, tiny_adapter, tmp_path, encoding):
    named = tmp_path / "ажур-→"
    shutil.copytree(tiny_base, named)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": ""}
    arguments = ["merge", named, tiny_adapter, "--weights", "1x4", "--out", tmp_path / "out"]
    done = labkit([*arguments, "--dry-run"], env=environment)
    assert done.returncode == 0, done.stderr
    # Where there are no letters but ASCII's, typer takes it for a mistake, and writes UTF-8.
    assert encoding == "ascii" or r"\u0436" in done.stdout
    done = labkit(["verify", named], env=environment)
    assert r"\u0436" in require_one_line(done)


def test_a_folder_whose_name_is_no_utf8_is_refused_before_anything_is_calculated(
    tiny_base, tiny_adapter, tmp_path
):
    named = shutil.copytree(tiny_base, tmp_path / os.fsdecode(b"mod\xe8le"))
    out = tmp_path / "out"
    assert "is no path in UTF-8" in require_one_line(merge(named, tiny_adapter, out))
    assert not out.exists()
    out = tmp_path / os.fsdecode(b"out\xe8")
    assert "is no path in UTF-8" in require_one_line(merge(tiny_base, tiny_adapter, out))


def test_weights_near_the_largest_number(tiny_base, tiny_adapter, tmp_path):
    weights = "1e308,-1e308,1e308,0"
    arguments = ["merge", tiny_base, tiny_adapter, "--weights", weights, "--out", tmp_path / "out"]
    assert labkit([*arguments, "--dry-run"]).returncode == 0
    assert "become too large for" in require_one_line(labkit([*arguments, "--quiet"]))
    done = labkit(["picture", "--weights", weights, "--out", tmp_path / "a.png"])
    assert "of 1e+308 cannot be drawn; expected at most 1e+100" in require_one_line(done)
    done = labkit(["picture", "--weights", "1e100,-1e100", "--out", tmp_path / "a.png"])
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
