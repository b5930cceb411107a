"""The embedded demo: where its base model comes from, and two small real adapters."""

from labkit.demo.base import adapter_folders, base_folder

__all__ = ["adapter_folders", "base_folder"]
