"""Runs the tools of a format in a process of their own.

A crash in a library of C++ would end the notebook's kernel; libraries patch others, start threads
and log; and some need an environment in which labkit is not installed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, shown
from labkit.files.small_files import read_json

WORKERS = Path(__file__).parent / "workers"
LOG, JOB, RESULT = "log.txt", "job.json", "result.json"
SECONDS_TO_END = 5.0
"""How long a process that is told to end may take."""
SECONDS_BETWEEN = 0.1
"""How often it is looked at a process that runs, and `go_on` is called."""
END_WITH_LABKIT = 'read -r nothing; kill -s KILL -- "-$0"'
"""For the shell: wait until the pipe's other end is closed, then end a group of processes."""
SIGNALS = range(129, 160)
"""What a program between labkit and a worker, such as uv, says of one that a signal ended: 128 more
than the signal's number."""
EXCEPTION = re.compile(r"[\w.]*(Error|Exception): \S.*")
LONGEST_REASON = 300
LAST_LINES = 20
"""How much of a log a failure carries along."""
READ_OF_LOG = 100_000
"""Bytes at the end of a log in which the reason of a failure is looked for."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONIOENCODING": "utf-8",
}


@dataclass(frozen=True)
class Done:
    """What a process did.

    Attributes:
        result: what it wrote.
        peak_memory: bytes of memory that it, or a process that it started, took at most.
        processor_seconds: processor time of all of them.
    """

    result: dict[str, Any]
    peak_memory: int
    processor_seconds: float


def run(
    worker: str,
    job: dict[str, Any],
    folder: Path,
    what: str,
    go_on: Callable[[], None],
    command: Sequence[str] = (sys.executable,),
) -> Done:
    """Run a script of `workers/` in a process of its own, and wait for it.

    An interruption ends the process and all that it started, and so do what `go_on` raises, and the
    end of this process, whatever ended it.

    Args:
        worker: the script's name, without `.py`.
        job: what it reads; JSON.
        folder: a folder to make, for the job, the result, the log and whatever the worker writes.
        what: what it does, for the error: "llama.cpp's conversion".
        go_on: is called ten times a second meanwhile; `Job.go_on`.
        command: the Python to run it with.

    Raises:
        LabkitError: it cannot be started, failed or was ended; with the reason that it gave. Its
            last lines are a note of the error.
    """
    folder.mkdir()
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    # -P: what lies beside the script is not to be imported in place of a library.
    line = [*command, "-P", str(WORKERS / f"{worker}.py"), str(folder)]
    with (folder / LOG).open("wb") as log:
        try:
            process = subprocess.Popen(  # noqa: S603 # labkit's own scripts
                line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **OFFLINE},
                cwd=folder,  # some tools leave logs where they are run
                start_new_session=True,
            )
        except OSError as error:
            raise LabkitError(
                f"{what} cannot be started: {shown(line[0])}: {error.strerror}"
            ) from error
        try:
            with _ending_with_labkit(process.pid):
                status, usage, peak = _wait(process.pid, go_on)
        except BaseException:
            _end(process)
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    with suppress(ProcessLookupError, PermissionError):  # what a failed worker left running
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode or not (folder / RESULT).is_file():
        raise _failure(what, process.returncode, folder / LOG)
    return Done(
        read_json(folder / RESULT), peak or usage.ru_maxrss, usage.ru_utime + usage.ru_stime
    )


@contextmanager
def _ending_with_labkit(group: int) -> Iterator[None]:
    """See to it that a group of processes ends when this process is killed.

    The group is a session of its own, which outlives this process. A shell waits at a pipe whose
    other end the system closes then.
    """
    watcher = subprocess.Popen(  # noqa: S603 # a number of the system's
        ["/bin/sh", "-c", END_WITH_LABKIT, str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends this process's group is to leave it
    )
    try:
        yield
    finally:
        watcher.kill()
        watcher.communicate()


def _wait(number: int, go_on: Callable[[], None]) -> tuple[int, Any, int]:
    """Wait for a process, and call a function meanwhile.

    Returns:
        its status, what the system says of it and those that it waited for, and bytes of memory
        that the largest of them took at most; 0 where the system keeps no such mark.
    """
    peak = 0
    while True:
        # The system's own account begins with the memory of the process that started this one.
        peak = max(peak, _largest(number))
        ended, status, usage = os.wait4(number, os.WNOHANG)
        if ended:
            return status, usage, peak
        go_on()
        time.sleep(SECONDS_BETWEEN)


def _largest(number: int) -> int:
    """The most memory that a process, or one that it started and that still runs, ever took."""
    largest = 0
    with suppress(OSError, ValueError, IndexError):  # it ended, or the system has no /proc
        folder = Path(f"/proc/{number}")
        status = (folder / "status").read_text(encoding="utf-8")
        largest = 1024 * int(status.split("VmHWM:")[1].split()[0])
        for thread in (folder / "task").iterdir():
            children = (thread / "children").read_text(encoding="utf-8")
            largest = max([largest, *(_largest(int(child)) for child in children.split())])
    return largest


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started: at first politely."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    until = time.monotonic() + SECONDS_TO_END
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(what: str, status: int, log: Path) -> LabkitError:
    """The error that says why a process failed, with its last lines as a note."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - READ_OF_LOG))
        lines = file.read().decode(errors="replace").splitlines()
    said = [shown(line.rstrip(), LONGEST_REASON) for line in lines if line.strip()][-LAST_LINES:]
    error = LabkitError(f"{what} failed: {_reason(status, said)}")
    if said:
        error.add_note("\n".join(["it said last:", *said]))
    return error


def _reason(status: int, said: Sequence[str]) -> str:
    """Why a process failed: the signal that ended it, its last exception, or its last words."""
    if status < 0 or status in SIGNALS:
        number = -status if status < 0 else status - 128
        reason = f"its process was ended by {signal.Signals(number).name}"
        if number == signal.SIGKILL:
            reason += ", as the system does when memory runs out"
        return reason
    if not said:
        return f"it ended with {status} and said nothing"
    # Warnings and progress may follow an exception.
    return next((line for line in reversed(said) if EXCEPTION.fullmatch(line)), said[-1].strip())
