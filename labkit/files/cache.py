"""Where labkit keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from labkit.errors import LabkitError
from labkit.files.paths import user_path


def cache_folder() -> Path:
    """The user's cache for labkit; it need not exist yet.

    `$LABKIT_CACHE`, else the system's place for caches: on Linux `$XDG_CACHE_HOME/labkit` or
    `~/.cache/labkit`, on macOS `~/Library/Caches/labkit`.

    Raises:
        LabkitError: a path that cannot be used, or a user without a home folder.
    """
    own = os.environ.get("LABKIT_CACHE")
    try:
        return user_path(own or user_cache_path("labkit"))
    except RuntimeError as error:  # of platformdirs
        raise LabkitError(
            "this user has no home folder for a cache; set LABKIT_CACHE to a folder that can be "
            "written"
        ) from error
