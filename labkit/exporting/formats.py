"""Every format that a merged model can be exported to, by name."""

from __future__ import annotations

from labkit.errors import LabkitError, shown
from labkit.exporting import exllama_folders, gguf_files, mlx_folders, transformers_formats
from labkit.exporting.job import Format

FORMATS: dict[str, Format] = {
    one.name: one
    for tools in (gguf_files, transformers_formats, mlx_folders, exllama_folders)
    for one in tools.FORMATS
}
"""Name -> format, in the order in which they are listed."""


def format_of(name: str) -> Format:
    """Find a format by its name; upper case, and `Q4_K_M` alone, are understood.

    Raises:
        LabkitError: no format of that name.
    """
    asked = name.strip().lower()
    for candidate in (asked, f"gguf-{asked}"):
        if candidate in FORMATS:
            return FORMATS[candidate]
    raise LabkitError(f"the format {shown(name)!r} is unknown; known are {', '.join(FORMATS)}")
