"""The cache: the user's own choice first, then the system's place."""

import sys
from pathlib import Path

import platformdirs
import pytest

from labkit import LabkitError
from labkit.files import cache


@pytest.mark.skipif(sys.platform != "linux", reason="the place on Linux")
def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache.cache_folder() == Path("/own")
    monkeypatch.setenv("LABKIT_CACHE", "~/own")
    assert cache.cache_folder() == Path.home() / "own"
    monkeypatch.delenv("LABKIT_CACHE")
    assert cache.cache_folder() == Path("/shared/labkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "labkit"


def test_a_mac_has_its_own_place():
    from platformdirs.macos import MacOS

    assert Path(MacOS("labkit").user_cache_dir) == Path.home() / "Library" / "Caches" / "labkit"
    assert platformdirs.user_cache_path is cache.user_cache_path


def test_a_user_without_a_home(monkeypatch):
    def homeless(_name):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("LABKIT_CACHE", raising=False)
    monkeypatch.setattr(cache, "user_cache_path", homeless)
    with pytest.raises(LabkitError, match="has no home folder for a cache; set LABKIT_CACHE to"):
        cache.cache_folder()
