"""Tools run in processes of their own: what they answer, and how they fail."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from labkit.errors import LabkitError
from labkit.exporting import processes

HEAD = "import json, os, sys, time\nfolder = sys.argv[1]\n"
ANSWER = "open(os.path.join(folder, 'result.json'), 'w').write(json.dumps({}))\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "WORKERS", tmp_path)

    def run(script, job=None, go_on=lambda: None, **more):
        (tmp_path / "tool.py").write_text(HEAD + script)
        return processes.run("tool", job or {}, tmp_path / "work", "the tool", go_on, **more)

    return run


def test_a_worker_reads_its_job_and_its_answer_comes_back(run):
    done = run(
        "job = json.load(open(os.path.join(folder, 'job.json')))\n"
        "said = {'twice': 2 * job['number'], 'offline': os.environ['HF_HUB_OFFLINE']}\n"
        + ANSWER.replace("{}", "said"),
        {"number": 21},
    )
    assert done.result == {"twice": 42, "offline": "1"}


@pytest.mark.parametrize("starts", ["start()", "threading.Thread(target=start).start()"])
def test_memory_and_processor_time_are_those_of_all_that_it_started(run, starts):
    """A child of the worker, or of a thread of its, fills 300 MB and counts for half a second."""
    child = (
        "import time; x = bytearray(300_000_000); x[::4096] = b'1' * len(x[::4096]); "
        "t = time.process_time()\n"
        "while time.process_time() < t + 0.5: pass"
    )
    start = f"def start():\n    subprocess.run([sys.executable, '-c', {child!r}])\n"
    done = run(f"import subprocess, threading\n{start}{starts}\n" + ANSWER)
    assert 300_000_000 < done.peak_memory < 350_000_000
    assert 0.5 < done.processor_seconds < 5


def test_what_lies_beside_the_script_is_not_imported_in_place_of_a_library(run, tmp_path):
    (tmp_path / "decimal.py").write_text("raise SystemExit('the wrong one')")
    run("import decimal\n" + ANSWER)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "print('at work', flush=True)\nraise ValueError('no such layer')",
            "ValueError: no such layer",
        ),
        ("sys.exit('the file is too old')", "the file is too old"),
        ("sys.exit(3)", "it ended with 3 and said nothing"),
        ("pass", "it ended with 0 and said nothing"),
        ("os.kill(os.getpid(), 11)", "its process was ended by SIGSEGV"),
        (
            "os.kill(os.getpid(), 9)",
            "its process was ended by SIGKILL, as the system does when memory runs out",
        ),
        (
            "sys.exit(137)",  # as uv says it of the Python that it runs
            "its process was ended by SIGKILL, as the system does when memory runs out",
        ),
        ("sys.exit(139)", "its process was ended by SIGSEGV"),
        (
            "import atexit\natexit.register(lambda: print('100 %|#####| UserWarning: leaked'))\n"
            "raise ValueError('no such layer')",
            "ValueError: no such layer",
        ),
        (
            "print('KeyError: of long ago\\n' + 'step\\n' * 20, flush=True)\nsys.exit('too old')",
            "too old",
        ),
    ],
)
def test_a_failure_says_why_in_one_line(run, script, reason):
    with pytest.raises(LabkitError) as caught:
        run(script)
    assert str(caught.value) == f"the tool failed: {reason}"


def test_a_failure_carries_the_last_lines_of_the_log(run):
    with pytest.raises(LabkitError) as caught:
        run("for i in range(30): print('line', i, '\\x1b', flush=True)\nsys.exit('the end')")
    [note] = caught.value.__notes__
    lines = [rf"line {i} \x1b" for i in range(11, 30)]
    assert note.splitlines() == ["it said last:", *lines, "the end"]


def test_control_characters_in_what_a_tool_said_are_shown_as_text(run):
    with pytest.raises(LabkitError, match=r"the tool failed: red \\x1b\[31m"):
        run("sys.exit('red \\x1b[31m')")


def test_a_python_that_is_not_there(run):
    with pytest.raises(LabkitError) as caught:
        run("", command=["/no/python"])
    expected = "the tool cannot be started: /no/python: No such file or directory"
    assert str(caught.value) == expected


TWO_THAT_SLEEP = (
    "import subprocess\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "open(os.path.join(folder, 'ids'), 'w').write(f'{os.getpid()} {child.pid}')\n"
    "os.rename(os.path.join(folder, 'ids'), os.path.join(folder, 'started'))\n"
    "time.sleep(60)\n"
)


def test_an_interruption_ends_the_worker_and_what_it_started(run, tmp_path):
    """The worker starts a child and both would sleep for a minute; Ctrl-C comes meanwhile."""
    started = tmp_path / "work" / "started"

    def interrupt():
        while not started.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(TWO_THAT_SLEEP)
    thread.join()
    for number in map(int, started.read_text().split()):
        assert has_ended(number)


def test_another_thread_can_end_the_worker_and_what_it_started(run, tmp_path):
    """As a button does while a notebook's cell waits: `go_on` looks whether it was pressed."""
    started, pressed = tmp_path / "work" / "started", threading.Event()

    def press():
        while not started.exists():
            time.sleep(0.02)
        pressed.set()

    class CancelledError(Exception):
        pass

    def go_on():
        if pressed.is_set():
            raise CancelledError

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(CancelledError):
        run(TWO_THAT_SLEEP, go_on=go_on)
    thread.join()
    for number in map(int, started.read_text().split()):
        assert has_ended(number)


def test_whoever_may_end_it_is_asked_several_times_a_second(run):
    asked = []
    run("time.sleep(1)\n" + ANSWER, go_on=lambda: asked.append(time.monotonic()))
    assert len(asked) >= 3


KERNEL = """
import sys
from pathlib import Path
from labkit.exporting import processes
processes.WORKERS = Path(sys.argv[1])
work = Path(sys.argv[1]) / "work"
processes.run("tool", {}, work, "the tool", lambda: None, sys.argv[2:])
"""
SLEEPING = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
open('ids', 'w').write(f'{os.getpid()} {child.pid}')
os.rename('ids', 'started')
time.sleep(60)
"""


@pytest.mark.parametrize("between", [False, True])
def test_a_worker_ends_with_a_kernel_that_is_killed(tmp_path, between):
    """Also where a program such as uv stands between labkit and the worker's Python."""
    (tmp_path / "tool.py").write_text(SLEEPING)
    (tmp_path / "between.sh").write_text('"$@"\nexit $?\n')
    command = ["sh", str(tmp_path / "between.sh")] * between + [sys.executable]
    kernel = subprocess.Popen([sys.executable, "-c", KERNEL, str(tmp_path), *command])
    started = tmp_path / "work" / "started"
    for _ in range(1500):
        if started.exists():
            break
        time.sleep(0.02)
    numbers = [int(number) for number in started.read_text().split()]
    kernel.kill()
    kernel.wait()
    assert all(has_ended(number) for number in numbers)


def has_ended(number):
    """Whether a process is gone; one that nobody has waited for yet is."""
    for _ in range(100):
        try:
            os.kill(number, 0)
            with open(f"/proc/{number}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False
