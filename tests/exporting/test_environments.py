"""Environments that uv makes for tools: the command, and what is said where there is none."""

import os
import sys

import pytest

from labkit.errors import LabkitError
from labkit.exporting import environments
from labkit.exporting.environments import (
    in_environment_of,
    make_environment,
    missing_packages,
    missing_uv,
)


def test_packages_that_are_not_installed_are_named_with_the_extra():
    said = missing_packages({"json": "json", "no_such": "no-such", "none": "none"}, "gptq")
    assert said == "no-such, none not installed; install it with pip install 'labkit[gptq]'"
    assert missing_packages({"json": "json"}, "gptq") == ""


def test_without_uv_it_is_said(monkeypatch):
    monkeypatch.setattr(environments.shutil, "which", lambda name: None)
    assert missing_uv() == (
        "uv, which makes an environment for its tools, is not installed; pip install uv"
    )
    monkeypatch.setattr(environments.shutil, "which", lambda name: f"/bin/{name}")
    assert missing_uv() == ""


def test_versions_and_the_day_are_pinned_and_nothing_of_the_project_is_read():
    command = in_environment_of("one==1.0", "two==2.0")
    assert command == (
        *("uv", "run", "--no-project", "--isolated", "--quiet"),
        *("--exclude-newer", "2026-11-15", "--python", sys.executable),
        *("--with", "one==1.0", "--with", "two==2.0", "python", "-E"),
    )


def test_an_environment_is_there_once_a_script_has_run_in_it(tmp_path):
    make_environment((sys.executable, "-E"), "the tool", tmp_path / "work", lambda: None)
    assert (tmp_path / "work" / "result.json").read_text() == "{}"


def test_the_last_words_of_uv_are_the_reason(tmp_path, monkeypatch):
    uv = tmp_path / "uv"
    uv.write_text(
        "#!/bin/sh\necho error: Failed to fetch >&2\necho '  cause: no network' >&2\nexit 2\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    command = in_environment_of("tool==1.0")
    with pytest.raises(LabkitError) as caught:
        make_environment(command, "the tool", tmp_path / "work", lambda: None)
    assert str(caught.value) == (
        "making an environment for the tool with uv failed: cause: no network; it is fetched once, "
        "from the package index"
    )
