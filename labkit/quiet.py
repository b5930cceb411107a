"""Libraries that log what their user did not ask for, held back for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep back what a library logs below an error; its progress bars stay.

    Args:
        library: the name of its logger, such as "lm_eval".
    """
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
