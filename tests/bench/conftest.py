"""What tests of the lab share."""

from __future__ import annotations

import pytest

from labkit.inference.live_model import free


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, where labs keep what was drawn; and no model after it."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    yield
    free()
