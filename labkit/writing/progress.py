"""How a merge shows how far it is: a bar, a function that is told, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = bool | Callable[[int, int], None]
"""Whether to show a bar; or what to tell the bytes done, and of how many."""
Steps = bool | Callable[[str], None]
"""Whether to say what is done; or what to tell it, again and again while it lasts."""


def bar_of(total: int, progress: Progress, title: str = "merge") -> Any:
    """A bar for `total` bytes, of tqdm's making or like it."""
    if callable(progress):
        return _Told(total, progress)
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1000,
        desc=title,
        disable=not progress,
    )


class _Told:
    """Stands in for a progress bar: tells a function how many bytes are done, and of how many."""

    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        self.done, self.total, self.tell = 0, total, tell

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.done += count
        self.tell(self.done, self.total)
