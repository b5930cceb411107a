"""Where labkit keeps what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache for labkit; it need not exist yet.

    `$LABKIT_CACHE`, else `$XDG_CACHE_HOME/labkit`, else `~/.cache/labkit`.
    """
    own = os.environ.get("LABKIT_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    parent = Path(shared).expanduser() if shared else Path.home() / ".cache"
    return parent / "labkit"
