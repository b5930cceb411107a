"""A sample of `benchmarks/faulty_calls.py`: calls of the system that fail, and short reads."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

CASES = 26
"""Of more than two thousand, those that run here."""


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc and Linux"
)
def test_every_merge_is_whole_or_refused_with_nothing_left():
    command = [sys.executable, "-m", "benchmarks.faulty_calls", "--cases", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{CASES} cases, 0 wrong" in done.stdout, done.stdout + done.stderr
