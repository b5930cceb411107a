"""Work off the kernel's main thread, where the latest request wins."""

from __future__ import annotations

import threading
from collections.abc import Callable

Job = Callable[[threading.Event], None]


class Latest:
    """Runs jobs one at a time in a thread of its own; a new job stops the one before it.

    A job is given an event and returns soon after it is set.

    Args:
        failed: told the exception of a job that raised one.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._condition = threading.Condition()
        self._next: tuple[Job, float] | None = None
        self._running: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Job, settle: float = 0.0) -> None:
        """Run a job in place of what is running or waiting.

        Args:
            job: what to run.
            settle: seconds to wait for a newer job before beginning with this one.
        """
        with self._condition:
            if self._closed:
                return
            self._next = (job, settle)
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

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        with self._condition:
            return self._next is not None or self._running is not None

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is running or waiting; False if it takes longer than `seconds`."""
        with self._condition:
            return self._condition.wait_for(
                lambda: self._next is None and self._running is None, seconds
            )

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._next is not None or self._closed)
                if self._closed:
                    return
                # While the hand still moves, newer requests take this one's place.
                while self._next is not None:
                    job, settle = self._next
                    if settle <= 0 or not self._condition.wait(settle):
                        break
                if self._next is None:
                    self._condition.notify_all()
                    continue
                job, _ = self._next
                self._next = None
                self._running = threading.Event()
                stopped = self._running
            try:
                job(stopped)
            except Exception as error:  # noqa: BLE001 - the thread lives on, the lab shows it
                self._failed(error)
            with self._condition:
                self._running = None
                self._condition.notify_all()
