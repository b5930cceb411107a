"""A lab bench for layer-weighted LoRA merges, in Jupyter.

`import labkit as lk` starts at once: torch, matplotlib and the widgets are imported where they are
used. The names below are the whole public interface.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError
from labkit.gradient import Gradient

if TYPE_CHECKING:
    from labkit.adapter import Adapter as Adapter
    from labkit.bake import bake as bake
    from labkit.checkpoint import Checkpoint as Checkpoint
    from labkit.demo import demo as demo
    from labkit.editor import GradientEditor as GradientEditor
    from labkit.lab import Lab as Lab
    from labkit.live import free as free
    from labkit.live import live as live
    from labkit.overlap import overlap as overlap
    from labkit.plan import Plan as Plan
    from labkit.plan import plan as plan
    from labkit.receipt import Receipt as Receipt
    from labkit.recipe import Recipe as Recipe
    from labkit.recipe import Term as Term
    from labkit.sliders import sliders as sliders
    from labkit.survey import spectra as spectra
    from labkit.survey import survey as survey
    from labkit.survival import survival as survival
    from labkit.verify import verify as verify

__version__ = "0.1.0"

# Public name -> the module that is imported when it is first used.
_LATER = {
    "Adapter": "labkit.adapter",
    "Checkpoint": "labkit.checkpoint",
    "GradientEditor": "labkit.editor",
    "Lab": "labkit.lab",
    "Plan": "labkit.plan",
    "Receipt": "labkit.receipt",
    "Recipe": "labkit.recipe",
    "Term": "labkit.recipe",
    "bake": "labkit.bake",
    "demo": "labkit.demo",
    "free": "labkit.live",
    "live": "labkit.live",
    "overlap": "labkit.overlap",
    "plan": "labkit.plan",
    "sliders": "labkit.sliders",
    "spectra": "labkit.survey",
    "survey": "labkit.survey",
    "survival": "labkit.survival",
    "verify": "labkit.verify",
}

__all__ = ["Gradient", "LabkitError", *_LATER]


class _Package(ModuleType):
    """The package's own type, so that a function may have the name of the module it stands in."""

    def __getattr__(self, name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module 'labkit' has no attribute {name!r}")
        value = getattr(import_module(_LATER[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing labkit.plan makes Python set the attribute `plan` to that module; what the
        # package offers under that name is the function.
        if name in _LATER and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *_LATER})


sys.modules[__name__].__class__ = _Package
