"""Every matplotlib figure, and the one palette that they share with the widgets.

Figures take tables and gradients, measure nothing, and leave pyplot and its global style alone.
The names that `__init__.pyi` lists are public, as `labkit.figures.heatmap`, and imported when they
are first used. May import `probing` and the folders above it in CONTRIBUTING.md's table.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
