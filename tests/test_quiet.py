"""Warnings are held back, errors are not, and the level comes back."""

import logging
from contextlib import suppress

from labkit.quiet import quiet


def test_below_an_error_nothing_is_logged(caplog):
    logger = logging.getLogger("a_library")
    logger.setLevel(logging.INFO)
    with suppress(RuntimeError), quiet("a_library"):
        logger.warning("a setting")
        logger.error("a fault")
        raise RuntimeError
    logger.info("later")
    assert [record.message for record in caplog.records] == ["a fault", "later"]
