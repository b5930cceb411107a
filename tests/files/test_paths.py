"""Paths that a user gives: one line for each that cannot be, wherever one is taken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import labkit as lk
from labkit.files.cache import cache_folder
from labkit.files.paths import user_path


def cannot_be(tmp_path):
    """Paths and what is said of them."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return {
        "~nouser/x": "~nouser/x begins with the home folder of a user who is not known here",
        "x" * 300: "cannot be used: File name too long",
        "/" + "x/" * 3000: "cannot be used: File name too long",
        "a\0b": r"a\\x00b is no path: embedded null byte",
        str(tmp_path / "loop"): "loop cannot be used: Too many levels of symbolic links",
    }


def test_paths_that_can_be(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none" / "none", tmp_path / "file" / "none", Path("none")):
        assert user_path(path) == path
        assert user_path(str(path)) == path


def test_wherever_a_path_is_taken(tmp_path, tiny_base, tiny_adapter, monkeypatch):
    for path, said in cannot_be(tmp_path).items():
        for take in (
            lambda path=path: user_path(path),
            lambda path=path: lk.Checkpoint(path),
            lambda path=path: lk.Adapter(path),
            lambda path=path: lk.bake(tiny_adapter, "1x4", path),
            lambda path=path: lk.push(path, "owner/name"),
            lambda path=path: lk.verify(path),
            lambda path=path: lk.plan(tiny_base, tiny_adapter, "1x4").write(path, progress=False),
            lambda path=path: lk.Recipe.load(path),
        ):
            with pytest.raises(lk.LabkitError, match=said) as caught:
                take()
            assert str(caught.value).isprintable()
        if "\0" not in path:
            monkeypatch.setenv("LABKIT_CACHE", path)
            with pytest.raises(lk.LabkitError, match=said):
                cache_folder()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_may_not_be_entered(tmp_path):
    (closed := tmp_path / "closed").mkdir(mode=0)
    try:
        with pytest.raises(lk.LabkitError, match="cannot be used: Permission denied"):
            user_path(closed / "x")
    finally:
        closed.chmod(0o700)


def test_a_working_folder_that_is_gone(tmp_path):
    code = (
        "import os, sys, labkit as lk\n"
        "os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\n"
        "try: lk.Checkpoint('base')\n"
        "except lk.LabkitError as error: print(error)\n"
    )
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "gone"], capture_output=True, text=True
    )
    assert done.stdout == (
        "base counts from the working folder, which was removed; go to another folder, or write "
        "the whole path\n"
    )
