"""The lab's thread: the latest job wins, and no job ends it."""

from __future__ import annotations

import threading
import time

import pytest

from labkit.bench.background import Latest


class Panic(BaseException):
    pass


@pytest.fixture
def raised():
    return []


@pytest.fixture
def latest(raised):
    made = Latest(raised.append)
    yield made
    made.close()


def test_a_job_runs_in_a_thread_of_its_own(latest):
    seen = []
    latest.submit(lambda stopped: seen.append((threading.current_thread(), stopped.is_set())))
    assert latest.wait(30)
    assert seen[0][0] is not threading.current_thread()
    assert seen[0][1] is False
    assert not latest.busy


def test_a_new_job_stops_the_one_before_it_and_takes_the_place_of_what_waits(latest):
    begun, done = threading.Event(), []

    def first(stopped):
        begun.set()
        done.append(("first", stopped.wait(30)))

    latest.submit(first)
    assert begun.wait(30)
    assert latest.busy
    assert not latest.waiting
    with latest._condition:  # both are asked for before the thread can look
        latest.submit(lambda stopped: done.append("second"))
        latest.submit(lambda stopped: done.append("third"))
        assert latest.waiting
    assert latest.wait(30)
    assert not latest.waiting
    assert done == [("first", True), "third"]


def test_a_job_with_a_delay_makes_room_for_a_newer_one(latest):
    done = []
    latest.submit(lambda stopped: done.append("early"), delay=60)
    assert latest.busy
    latest.submit(lambda stopped: done.append("late"), delay=0.01)
    assert latest.wait(30)
    assert done == ["late"]


def test_a_delay_is_waited_for(latest):
    done = []
    begun = time.monotonic()
    latest.submit(lambda stopped: done.append(time.monotonic() - begun), delay=0.2)
    assert not latest.wait(0.01)
    assert latest.wait(30)
    assert done[0] >= 0.2


def test_stop_ends_what_runs_and_forgets_what_waits(latest):
    begun, done = threading.Event(), []

    def job(stopped):
        begun.set()
        done.append(stopped.wait(30))

    latest.submit(job)
    assert begun.wait(30)
    latest.stop()
    assert latest.wait(30)
    assert done == [True]
    latest.submit(lambda stopped: done.append("never"), delay=60)
    latest.stop()
    assert latest.wait(30)
    assert done == [True]


@pytest.mark.parametrize("kind", [ValueError, Panic, KeyboardInterrupt, SystemExit])
def test_whatever_a_job_raises_is_told_and_the_next_one_runs(latest, raised, kind):
    def panics(stopped):
        raise kind("no way on")

    for _ in range(2):
        latest.submit(panics)
        assert latest.wait(30)
    assert [type(error) for error in raised] == [kind, kind]
    done = []
    latest.submit(lambda stopped: done.append("still here"))
    assert latest.wait(30)
    assert done == ["still here"]


def test_an_error_that_cannot_be_shown_does_not_end_the_thread(capfd):
    def cannot(error):
        raise Panic("nothing to show it on")

    latest = Latest(cannot)
    latest.submit(lambda stopped: 1 / 0)
    assert latest.wait(30)
    assert "nothing to show it on" in capfd.readouterr().err
    done = []
    latest.submit(lambda stopped: done.append("still here"))
    assert latest.wait(30)
    assert done == ["still here"]
    latest.close()


def test_after_close_nothing_runs(latest):
    done = []
    latest.submit(lambda stopped: done.append("never"), delay=60)
    thread = latest._thread
    latest.close()
    thread.join(30)
    assert not thread.is_alive()
    latest.submit(lambda stopped: done.append("never"))
    assert latest.wait(30)
    assert done == []
