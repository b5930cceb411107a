"""Reads the paths that a user gives: of a model, of a folder to make, of a cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from labkit.errors import LabkitError, shown


def user_path(given: str | Path, start: Path = Path()) -> Path:
    """Read a path: `~` and `~name` are home folders, and all of it can be looked at.

    Whether anything is there is not asked; but after this, asking raises nothing.

    Args:
        given: the path as the user wrote it.
        start: the folder that a relative path counts from; the working folder if left out.

    Raises:
        LabkitError: no such user; a name that the system does not take; a folder on the way that
            may not be entered; or a working folder that is gone.
    """
    try:
        path = start / Path(given).expanduser()
        if not path.is_absolute():
            Path.cwd()
        # Recipes, receipts and cards name it, and they are UTF-8.
        os.path.realpath(path).encode()
        path.stat()
    except RuntimeError as error:  # expanduser's
        raise LabkitError(
            f"{shown(given)} begins with the home folder of a user who is not known here; write "
            "the whole path"
        ) from error
    except UnicodeEncodeError as error:
        raise LabkitError(
            f"{shown(given)} is no path in UTF-8, which all that labkit writes is in; rename the "
            "folder"
        ) from error
    except ValueError as error:  # a zero byte
        raise LabkitError(f"{shown(given)} is no path: {shown(error)}") from error
    except FileNotFoundError as error:
        if error.filename is None:
            raise LabkitError(
                f"{shown(given)} counts from the working folder, which was removed; go to another "
                "folder, or write the whole path"
            ) from error
    except OSError as error:
        if error.errno != errno.ENOTDIR:
            raise LabkitError(f"{shown(given)} cannot be used: {error.strerror}") from error
    return path
