"""Every matplotlib figure, and the one palette that they share with the widgets.

Each function returns a `matplotlib.figure.Figure` that pyplot knows nothing of: nothing global is
changed, nothing has to be closed, and the figure shows itself when it is a cell's last line.
Figures take tables and gradients, and measure nothing. May import `surveys` and what is above
it. The names that `__init__.pyi` lists are public: `labkit.figures.heatmap` and the others. They
and matplotlib are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
