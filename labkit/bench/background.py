"""Work off the kernel's main thread, where the latest request wins."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from functools import partial

Job = Callable[[threading.Event], None]
REST = 0.5
"""Seconds without a change after which the hand is at rest, and what takes longer is measured."""


class Latest:
    """Runs jobs one at a time in a thread of its own; a new job stops the one before it.

    A job is given an event, and has to return soon after it is set. Whatever a job raises, the
    thread lives on and runs the next one.

    Args:
        failed: told what a job raised. That can be more than an `Exception`: a panic in a tokenizer
            written in Rust is a `BaseException`.
    """

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._condition = threading.Condition()
        self._next: tuple[Job, float] | None = None
        self._running: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Job, delay: float = 0.0) -> None:
        """Run a job in place of what is running or waiting.

        Args:
            job: what to run.
            delay: seconds to wait for a newer job before beginning with this one.
        """
        with self._condition:
            if self._closed:
                return
            self._next = (job, delay)
            if self._running is not None:
                self._running.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="labkit lab")
                self._thread.start()
            self._condition.notify_all()

    def stop(self) -> None:
        """Stop what is running, and forget what is waiting."""
        with self._condition:
            self._next = None
            if self._running is not None:
                self._running.set()
            self._condition.notify_all()

    def close(self) -> None:
        """Stop for good."""
        with self._condition:
            self._closed = True
            self.stop()

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        with self._condition:
            return self._next is not None or self._running is not None

    @property
    def waiting(self) -> bool:
        """Whether a newer job waits for the one that is running."""
        with self._condition:
            return self._next is not None

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is running or waiting; False if it takes longer than `seconds`."""
        with self._condition:
            return self._condition.wait_for(
                lambda: self._next is None and self._running is None, seconds
            )

    def _run(self) -> None:
        while (begun := self._begin()) is not None:
            job, stopped = begun
            try:
                job(stopped)
            except BaseException as error:  # noqa: BLE001 - the thread lives on, the lab shows it
                self._report(error)
            with self._condition:
                self._running = None
                self._condition.notify_all()

    def _begin(self) -> tuple[Job, threading.Event] | None:
        """Wait for a job whose delay has passed; None after `close`."""
        with self._condition:
            while not self._closed:
                waiting = self._next
                if waiting is None:
                    self._condition.wait()
                    continue
                job, delay = waiting
                # A newer request, a stop or a close meanwhile takes this job's place.
                if delay > 0 and self._condition.wait_for(partial(self._outdated, waiting), delay):
                    continue
                self._next = None
                self._running = threading.Event()
                return job, self._running
            return None

    def _outdated(self, waiting: tuple[Job, float]) -> bool:
        return self._closed or self._next is not waiting

    def _report(self, error: BaseException) -> None:
        try:
            self._failed(error)
        except BaseException:  # noqa: BLE001 - an error that cannot be shown
            traceback.print_exc()
