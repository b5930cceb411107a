"""Signals while a folder is built: the first ends it, and no other its clean-up."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from labkit.files.interruptions import SIGNALS, Interruptions

SIGNAL_NUMBERS = pytest.mark.parametrize("number", SIGNALS)


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """Handlers that raise, and afterwards those that were there."""

    def stop(number, _):
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    yield stop
    for number, handler in before.items():
        assert signal.signal(number, handler) is stop


@SIGNAL_NUMBERS
def test_the_first_interrupts_and_the_next_wait(number):
    seen = []

    def work():
        with Interruptions():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)
                signal.raise_signal(signal.SIGINT)
                seen.append("cleaned up")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert seen == ["cleaned up"]
    assert caught.value.args == (number,)
    assert not hasattr(caught.value, "__notes__")


def test_one_that_is_held_comes_at_the_end_with_what_was_done():
    seen = []

    def work():
        with Interruptions() as interruptions:
            interruptions.hold("it is done")
            signal.raise_signal(signal.SIGTERM)
            interruptions.hold()
            seen.append("done")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert seen == ["done"]
    assert caught.value.__notes__ == ["it is done"]


def test_an_error_says_more_than_one_that_waited():
    def work():
        with Interruptions() as interruptions:
            interruptions.hold()
            signal.raise_signal(signal.SIGTERM)
            raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        work()


def test_a_handler_that_goes_on_is_called_each_time(handlers):
    came = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    with Interruptions():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert came == [signal.SIGINT] * 2
    signal.signal(signal.SIGINT, handlers)


def test_what_python_does_not_handle_stays(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interruptions():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, handlers)


def test_in_another_thread_nothing_is_changed(handlers):
    found = []

    def work():
        with Interruptions():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [handlers]


STAGES = """
import os, sys, time
from pathlib import Path
import labkit.files.atomic_folder as atomic_folder, labkit.writing.engine as engine

wanted, go = sys.argv.pop(1), Path(sys.argv.pop(1))

def stage(name):
    if name in wanted.split(","):
        os.write(1, f"{name}\\n".encode())
        while not (go / name).exists():
            time.sleep(0.01)

def merge(self, *arguments, merge=engine.Engine.merge):
    os.write(1, b"at work\\n")
    if "stopping" in wanted:
        while not self.stopped.is_set():
            time.sleep(0.01)
    stage("stopping")
    return merge(self, *arguments)

def remove(folder, remove=atomic_folder._remove):
    stage("cleaning")
    remove(folder)

def take_place(*arguments, take_place=atomic_folder._take_place):
    stage("before placing")
    take_place(*arguments)
    stage("after placing")

engine.Engine.merge, atomic_folder._remove = merge, remove
atomic_folder._take_place = take_place
from labkit.cli.app import main
main()
"""


class Stages:
    """A merge in a process of its own, which waits at some stages for a word."""

    def __init__(self, base, adapter, out, stages, go):
        go.mkdir()
        self.go = go
        self.process = subprocess.Popen(
            [sys.executable, "-c", STAGES, ",".join(stages), str(go), "merge", str(base),
             str(adapter), "--weights", "1x4", "--out", str(out), "--quiet", "--device", "cpu"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # A shell's background jobs ignore Ctrl-C, and so would this when it is run in one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def interrupt_at(self, stage, number):
        while (line := self.process.stdout.readline()) != f"{stage}\n":
            assert line, self.process.stderr.read()
        self.process.send_signal(number)

    def go_on(self, stage):
        (self.go / stage).touch()

    def end(self):
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@pytest.fixture
def merging(tiny_base, tiny_adapter, tmp_path):
    started = []

    def start(*stages):
        out = tmp_path / "place" / "out"
        out.parent.mkdir()
        started.append(Stages(tiny_base, tiny_adapter, out, stages, tmp_path / "go"))
        return started[-1], out

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@SIGNAL_NUMBERS
def test_two_more_of_them_do_not_end_the_cleaning_up(merging, number):
    merge, out = merging("stopping", "cleaning")
    merge.interrupt_at("at work", number)
    merge.interrupt_at("stopping", signal.SIGINT)
    merge.go_on("stopping")
    merge.interrupt_at("cleaning", number)
    merge.go_on("cleaning")
    assert merge.end() == (130, "labkit: error: stopped; nothing was left behind\n")
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("stage", ["before placing", "after placing"])
def test_one_that_comes_too_late_says_what_is_there(merging, stage):
    merge, out = merging(stage)
    merge.interrupt_at(stage, signal.SIGINT)
    merge.go_on(stage)
    assert merge.end() == (130, f"labkit: error: stopped; {out} is in place and whole\n")
    assert os.listdir(out.parent) == ["out"]
