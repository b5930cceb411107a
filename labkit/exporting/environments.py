"""Where a format's tools are: in labkit's own environment, or in one that uv makes for them.

Some tools ask for versions that labkit cannot live with (llm-compressor), or run on other machines
than most (mlx). uv makes an environment for them, in its cache, and labkit's scripts run there.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from labkit.errors import LabkitError
from labkit.exporting.processes import run

RESOLVED_AS_OF = "2026-11-15"
"""What the tools need of others is taken as of this day, so that it is what this was tried with."""


def missing_packages(packages: Mapping[str, str], extra: str) -> str:
    """Say which packages are not installed; nothing if all are.

    Args:
        packages: module -> package.
        extra: labkit's extra that brings them.
    """
    names = [package for module, package in packages.items() if find_spec(module) is None]
    return (
        f"{', '.join(names)} not installed; install it with pip install 'labkit[{extra}]'"
        if names
        else ""
    )


def missing_uv() -> str:
    """Say that uv is not there; nothing if it is."""
    if shutil.which("uv"):
        return ""
    return "uv, which makes an environment for its tools, is not installed; pip install uv"


def in_environment_of(*packages: str) -> tuple[str, ...]:
    """The Python of an environment with some packages, as the beginning of a command.

    Args:
        packages: with their versions: "mlx-lm==0.32.2".
    """
    pinned = (part for package in packages for part in ("--with", package))
    return (
        *("uv", "run", "--no-project", "--isolated", "--quiet"),
        *("--exclude-newer", RESOLVED_AS_OF, "--python", sys.executable),
        *pinned,
        # -E: what a user's PYTHONPATH names is of labkit's environment.
        *("python", "-E"),
    )


def make_environment(
    command: tuple[str, ...], tools: str, folder: Path, go_on: Callable[[], None]
) -> None:
    """Let uv fetch and install an environment, if it is not in its cache.

    Args:
        command: of `in_environment_of`.
        tools: what they are called, for the error.
        folder: a folder to make, for the log.
        go_on: as in `run`.

    Raises:
        LabkitError: uv cannot: there is no network, or no such version for this machine.
    """
    try:
        what = f"making an environment for {tools} with uv"
        run("nothing", {}, folder, what, go_on, command)
    except LabkitError as error:
        raise LabkitError(f"{error}; it is fetched once, from the package index") from error
