"""A file of JSON lines beside a lab's state: what is kept when the kernel is gone.

Each line is an entry of its own. What cannot be read of the file is passed over, and a file that
cannot be written costs a comfort, not the work. Several labs may write one file at a time.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LARGEST = 50_000_000
"""Bytes of a file that is read and added to; labkit's own stay far below."""
PATIENCE = 2
"""Seconds that another lab's writing is waited for."""

Entry = dict[str, Any]


class Journal:
    """Entries that outlive the kernel.

    Args:
        path: the file; it need not exist yet.
        keep: what of all entries, in their order, is worth keeping.
        most: lines of the file after which it is written anew with what is worth keeping.
    """

    def __init__(
        self, path: Path, keep: Callable[[Sequence[Entry]], list[Entry]], most: int
    ) -> None:
        self.path, self._keep, self._most = path, keep, most
        self._lines = 0

    def entries(self) -> list[Entry]:
        """What is in the file and worth keeping, as far as it can be read."""
        with suppress(OSError):
            return self._keep(self._read())
        return []

    def add(self, entry: Entry) -> None:
        """Put an entry at the file's end."""
        line = json.dumps(entry).encode() + b"\n"
        with suppress(OSError, Timeout):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=PATIENCE):
                if self._too_large():
                    return
                with self.path.open("ab+") as file:
                    # A line that another process did not end must not take this one with it.
                    if file.tell():
                        file.seek(-1, os.SEEK_END)
                        line = line if file.read(1) == b"\n" else b"\n" + line
                    file.write(line)
                self._lines += 1
                if self._lines > self._most:
                    self._write(self._keep(self._read()))

    def _too_large(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > LARGEST

    def _read(self) -> list[Entry]:
        found: list[Entry] = []
        if self.path.is_file() and not self._too_large():
            lines = self.path.read_bytes().splitlines()
            for line in lines:
                with suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, dict):
                        found.append(entry)
            self._lines = len(lines)
        return found

    def _write(self, entries: Sequence[Entry]) -> None:
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        try:
            aside.write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in entries))
            aside.replace(self.path)
        finally:
            aside.unlink(missing_ok=True)
        self._lines = len(entries)
        self._most = max(self._most, 2 * len(entries))
