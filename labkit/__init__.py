"""A lab bench for layer-weighted LoRA merges, in Jupyter.

`import labkit as lk` starts at once: torch, matplotlib and the widgets are imported where they are
used. The names in `labkit.__all__` (listed in `__init__.pyi`) are the whole public interface.
"""

import os

import lazy_loader

# Torch's threads wait for each other by turning in circles, and a machine that does something else
# as well (a browser, another notebook) then answers many times slower: see
# benchmarks/waiting_threads.py. OpenMP reads this once, when torch is loaded, which is later.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
