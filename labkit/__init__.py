"""A lab bench for layer-weighted LoRA merges, in Jupyter.

`import labkit as lk` starts at once: torch, matplotlib and the widgets are imported where they are
used. The names in `labkit.__all__` (listed in `__init__.pyi`) are the whole public interface.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
