"""Fixtures of the browser tests; what they are made of is in harness.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from harness import CHROMIUM, QUIET, Jupyter, Pages, running_jupyter


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    with running_jupyter(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as runner:
        opened = runner.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(browser: Any, jupyter: Jupyter) -> Iterator[Pages]:
    """Pages that the tests of one module share: starting a notebook takes ten seconds."""
    made = Pages(browser, jupyter)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quiet_pages(request: pytest.FixtureRequest) -> Iterator[None]:
    pages = request.getfixturevalue("pages")
    yield
    pages.check()
